"""Real weights and speech for the tests of encoders and tokenizers."""

from pathlib import Path

import numpy as np
import pytest
import soxr

from dmlm.pipeline.converters.whisper import WhisperEncoderWeights, load_whisper_weights
from dmlm.pipeline.encoders.weights import find_whisper_weights
from dmlm.pipeline.samples import Waveform

SENTENCES = (
    "Hello there.",
    "The quick brown fox jumps over the lazy dog.",
    "Seven plus two is nine, not ten.",
)


@pytest.fixture(scope="session")
def tiny_en_path() -> Path:
    return find_whisper_weights("whisper:tiny.en")


@pytest.fixture(scope="session")
def tiny_en(tiny_en_path: Path) -> WhisperEncoderWeights:
    return load_whisper_weights(tiny_en_path)


@pytest.fixture(scope="session")
def speech() -> list[Waveform]:
    """Three spoken sentences at 16 kHz, of different lengths."""
    from hibari import Hibari

    voice = Hibari()
    return [
        soxr.resample(np.asarray(voice(sentence, seed=index), np.float32).ravel(), 24_000, 16_000)
        for index, sentence in enumerate(SENTENCES)
    ]
