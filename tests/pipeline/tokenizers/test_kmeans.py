from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from whisper.audio import log_mel_spectrogram, pad_or_trim
from whisper.model import AudioEncoder

from dmlm.pipeline.codebooks.codebook import Codebook, FitStatistics
from dmlm.pipeline.codebooks.fitting import fit_codebook
from dmlm.pipeline.converters.whisper import WhisperEncoderWeights
from dmlm.pipeline.encoders import WindowMode
from dmlm.pipeline.encoders.registry import open_encoder
from dmlm.pipeline.encoders.whisper import WhisperEncoder, count_frames
from dmlm.pipeline.errors import FingerprintMismatchError
from dmlm.pipeline.samples import TokenArray, Waveform
from dmlm.pipeline.tokenizers.kmeans import KMeansTokenizer


def fit(encoder: WhisperEncoder, waveforms: list[Waveform], num_clusters: int) -> Codebook:
    frames = (activations.activations_FD.numpy() for activations in encoder.encode(waveforms))
    return fit_codebook(
        frames, num_clusters=num_clusters, seed=0, encoder="whisper:tiny.en", features=encoder.fingerprint
    )


@torch.no_grad()
def plain_units(
    weights: WhisperEncoderWeights, codebook: Codebook, waveform: Waveform, mode: WindowMode
) -> TokenArray:
    """Functions of openai-whisper, one window at a time, and numpy's argmin over true distances."""
    units = np.zeros(count_frames(len(waveform)), np.int32)
    for start in range(0, max(len(waveform) - 64_000, 1), 416_000):  # windows of 30 s share 4 s
        window = waveform[start : start + 480_000]
        num_frames = count_frames(len(window))
        num_positions = 1500 if mode is WindowMode.PADDED else num_frames
        encoder = AudioEncoder(80, num_positions, weights.width, weights.num_heads, weights.num_layers)
        positions = weights.state["positional_embedding"][:num_positions]
        encoder.load_state_dict({**weights.state, "positional_embedding": positions})
        mel_MT = log_mel_spectrogram(pad_or_trim(window) if mode is WindowMode.PADDED else window)
        activations_FD = encoder.eval()(mel_MT[None])[0, :num_frames].double().numpy()
        centroids_KD = codebook.centroids_KD.astype(np.float64)
        distances = [np.square(frame_D - centroids_KD).sum(axis=1) for frame_D in activations_FD]
        first = 100 if start else 0  # a later window takes over in the middle of what it shares
        units[start // 320 + first : start // 320 + num_frames] = [
            int(distance.argmin()) for distance in distances[first:]
        ]
    return units


def share_of_equal_units(
    weights: WhisperEncoderWeights, waveforms: list[Waveform], mode: WindowMode, num_clusters: int
) -> float:
    encoder = WhisperEncoder(weights, window=mode, device="cpu")
    codebook = fit(encoder, waveforms, num_clusters)
    found = list(KMeansTokenizer(encoder, codebook).encode(waveforms))
    expected = [plain_units(weights, codebook, waveform, mode) for waveform in waveforms]
    assert [len(units) for units in found] == [len(units) for units in expected]
    return float(np.mean(np.concatenate(found) == np.concatenate(expected)))


@pytest.mark.parametrize("mode", list(WindowMode))
def test_units_equal_a_plain_loop(
    tiny_en: WhisperEncoderWeights, speech: list[Waveform], mode: WindowMode
) -> None:
    assert share_of_equal_units(tiny_en, speech, mode, num_clusters=100) >= 0.999


@pytest.mark.realdata
@pytest.mark.parametrize("mode", list(WindowMode))
def test_units_of_real_speech_equal_a_plain_loop(
    tiny_en: WhisperEncoderWeights, real_data: Path, mode: WindowMode
) -> None:
    paths = sorted((real_data / "LibriSpeech" / "test-other").rglob("*.flac"))[:4]
    waveforms = [soundfile.read(path, dtype="float32")[0] for path in paths]
    assert share_of_equal_units(tiny_en, waveforms, mode, num_clusters=200) >= 0.999


@pytest.mark.realdata
def test_units_of_a_real_recording_over_30_seconds_equal_a_plain_loop(
    tiny_en: WhisperEncoderWeights, real_data: Path
) -> None:
    paths = sorted((real_data / "LibriSpeech" / "train-ivr").rglob("*.flac"))
    (path,) = [path for path in paths if soundfile.info(path).duration > 30]
    waveform = soundfile.read(path, dtype="float32")[0]
    assert share_of_equal_units(tiny_en, [waveform], WindowMode.EXACT, num_clusters=100) >= 0.999


def test_tokens_are_int32_within_the_codebook(tiny_en: WhisperEncoderWeights, speech: list[Waveform]) -> None:
    encoder = WhisperEncoder(tiny_en, layer=1, device="cpu")
    tokenizer = KMeansTokenizer(encoder, fit(encoder, speech, 20))
    assert (tokenizer.num_tokens, tokenizer.sampling_rate_hz) == (20, 16_000)
    for waveform, units in zip(speech, tokenizer.encode(speech), strict=True):
        assert units.dtype == np.int32
        assert len(units) == count_frames(len(waveform))
        assert 0 <= units.min() <= units.max() < 20
    assert [len(units) for units in tokenizer.encode([speech[0][:100]])] == [0]


def test_codebook_of_other_activations_is_refused(
    tiny_en: WhisperEncoderWeights, speech: list[Waveform]
) -> None:
    codebook = fit(WhisperEncoder(tiny_en, layer=1, device="cpu"), speech[:1], 5)
    changed = {**tiny_en.state, "conv1.bias": tiny_en.state["conv1.bias"] + 1}
    others = {
        "layer=2.*layer=1": WhisperEncoder(tiny_en, layer=2, device="cpu"),
        "window=padded.*window=exact": WhisperEncoder(
            tiny_en, layer=1, window=WindowMode.PADDED, device="cpu"
        ),
        "encoder_sha256": WhisperEncoder(replace(tiny_en, state=changed), layer=1, device="cpu"),
    }
    for message, encoder in others.items():
        with pytest.raises(FingerprintMismatchError, match=message):
            KMeansTokenizer(encoder, codebook)


def test_fingerprint_names_batches_and_codebook(
    tiny_en: WhisperEncoderWeights, speech: list[Waveform]
) -> None:
    encoder = WhisperEncoder(tiny_en, layer=1, device="cpu", batch_seconds=12)
    codebook = fit(encoder, speech[:1], 5)
    fingerprint = KMeansTokenizer(encoder, codebook).fingerprint
    assert fingerprint["batch_seconds"] == 12
    assert fingerprint["codebook_sha256"] == codebook.sha256
    assert fingerprint.items() >= encoder.fingerprint.items()


def test_fingerprint_of_whisper_units_is_that_of_version_0_1() -> None:
    """Data sets made by one version must go on fitting together with those of the next."""
    encoder = open_encoder("whisper:tiny.en", layer=3, window=WindowMode.PADDED, device="cpu")
    statistics = FitStatistics(
        seed=0, num_seen=1, num_kept=1, inertia=0.0, variance=0.0, num_used=1, perplexity=1.0
    )
    codebook = Codebook(
        centroids_KD=np.eye(5, 384, dtype=np.float32),
        encoder="whisper:tiny.en",
        features=encoder.fingerprint,
        statistics=statistics,
    )
    fingerprint = KMeansTokenizer(encoder, codebook).fingerprint
    assert fingerprint == {
        "encoder": "whisper",
        "encoder_sha256": "c69df067679d76986a03f4bf37c7db1f7d67e78f077bc9e5a8a1b41f6b3e5524",
        "layer": 3,
        "window": "padded",
        "shared_frames": 200,
        "precision": "float32",
        "batch_seconds": 30.0,
        "num_clusters": 5,
        "codebook_sha256": "6cf9fe690c1da6ac38e2f33d14caad29dc6ef1c4cf1041fae56fc29b082e60ac",
    }
