"""What is asked of vocoder and listener; both are at work in tests/trainer/vocoder/test_speaking.py."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Modality, Sample, TokenArray, Waveform
from dmlm.trainer.scoring import speech_evaluation
from dmlm.trainer.scoring.references import Reference
from dmlm.trainer.scoring.speech_evaluation import SpeechTools, hear_speech, open_speech_tools

UNITS = np.array([1, 2], np.int32)
REFERENCE = Reference(
    directory=Path(),
    sample=Sample(key="k", source="s", split="test", speech_tokens=UNITS),
    texts=("ciao",),
    hashes=("h",),
    language="it",
    text_rule="plain",
)


class Vocoder:
    """Notes whether the units are runs."""

    sampling_rate_hz = 16_000

    def __init__(self) -> None:
        self.are_runs: list[bool] = []

    def speak(self, units: TokenArray, *, are_runs: bool, language: str | None) -> Waveform:
        self.are_runs.append(are_runs)
        return np.zeros(160, np.float32)


class DeafListener:
    def hear(self, waveforms: Iterable[Waveform], languages: Sequence[str | None], rate_hz: int) -> list[str]:
        return ["" for _ in waveforms]


@pytest.mark.parametrize("are_collapsed", [True, False])
def test_units_are_spoken_as_they_were_trained_on_and_true_ones_as_they_are(
    are_collapsed: bool, tmp_path: Path
) -> None:
    recipe = SimpleNamespace(sequence=SimpleNamespace(collapse_runs=are_collapsed))
    checkpoint: Any = SimpleNamespace(settings=SimpleNamespace(recipe=recipe))
    vocoder: Any = Vocoder()
    listener: Any = DeafListener()
    tools = SpeechTools(vocoder=vocoder, listener=listener, recordings=None)
    hear_speech(checkpoint, [REFERENCE], [UNITS], tools, speech_dir=tmp_path)
    assert vocoder.are_runs == [are_collapsed, False]


@pytest.mark.parametrize("tool", ["Listener", "open_vocoder"])
def test_a_language_that_cannot_be_heard_or_spoken_is_refused_before_decoding(
    tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(languages: Collection[str | None]) -> None:
        raise ConfigError(f"does not know {languages}")

    for name in ("Listener", "open_vocoder"):
        check = refuse if name == tool else lambda languages: None
        opened = SimpleNamespace(check_languages=check)
        monkeypatch.setattr(speech_evaluation, name, lambda *_, opened=opened: opened)
    checkpoint: Any = SimpleNamespace(settings=SimpleNamespace(fingerprints={Modality.SPEECH: {}}))
    with pytest.raises(ConfigError, match=r"does not know \{'it'\}"):
        open_speech_tools(
            checkpoint, [REFERENCE], vocoder_dir=Path(), listener="whisper:tiny", root=None, device="cpu"
        )
