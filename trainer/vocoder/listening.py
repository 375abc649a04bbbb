"""What Whisper hears in waveforms: speech made of units, and the recordings that units were made of.

Suffixes: B window, M mel band, T mel frame.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from dmlm.pipeline.audio import SAMPLING_RATE_HZ, load_utterance
from dmlm.pipeline.converters.checkpoints import hash_state
from dmlm.pipeline.converters.whisper import load_whisper_weights
from dmlm.pipeline.converters.whisper_decoder import load_whisper_decoder
from dmlm.pipeline.devices import open_device
from dmlm.pipeline.encoders.weights import find_whisper_weights
from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.progress import track
from dmlm.pipeline.samples import TokenArray, Utterance, Waveform
from dmlm.trainer.vocoder.synthesis import UnitVocoder

WINDOW_SAMPLES: Final = 30 * SAMPLING_RATE_HZ
SHORTEST_SAMPLES: Final = SAMPLING_RATE_HZ // 10
"""In less than 0.1 s nothing is said, but Whisper makes words up, such as in what is left after 30 s."""
BATCH_SIZE: Final = 8
ENGLISH: Final = "en"

_Window = tuple[list[str], Waveform]
"""At most 30 s, and the texts of its waveform, to which its own is added."""


class Listener:
    """A whole Whisper model: greedy, without timestamps, one window of 30 s after the other."""

    def __init__(self, name: str, device: str = "auto") -> None:
        """Opens Whisper by name or path, as `--encoder` takes it.

        Raises:
            ConfigError: Its weights cannot be found, or have no decoder that can be read.
            CorruptInputError: Its weights are damaged.
        """
        self.name = name
        model = _open_whisper(find_whisper_weights(name))
        self.weights_sha256 = hash_state(model.state_dict())
        self._model: Any = model.to(open_device(device))

    def check_languages(self, languages: Iterable[str | None]) -> None:
        """Raises ConfigError where a language is one that this Whisper does not know."""
        from whisper.tokenizer import LANGUAGES

        known = LANGUAGES if self._model.is_multilingual else (ENGLISH,)
        if unknown := sorted({language or ENGLISH for language in languages}.difference(known)):
            what = "many languages" if self._model.is_multilingual else "English only"
            raise ConfigError(
                f"{self.name} hears {what}, but not {', '.join(unknown)}; "
                "give a Whisper that does: evaluate --listener NAME"
            )

    def hear(
        self,
        waveforms: Iterable[Waveform],
        languages: Sequence[str | None],
        rate_hz: int = SAMPLING_RATE_HZ,
    ) -> list[str]:
        """What is said in each waveform; nothing in an empty one or one of less than 0.1 s.

        Waveforms are taken one by one, and few are held at a time.

        Raises:
            ConfigError: A language that this Whisper does not know.
        """
        self.check_languages(languages)
        texts: list[list[str]] = [[] for _ in languages]
        waiting: dict[str, list[_Window]] = {}
        spoken = track(waveforms, "hear", total=len(languages), unit="utterances")
        for waveform, language, parts in zip(spoken, languages, texts, strict=True):
            resampled = resample(waveform, rate_hz)
            batch = waiting.setdefault(language or ENGLISH, [])
            for start in range(0, len(resampled) - SHORTEST_SAMPLES + 1, WINDOW_SAMPLES):
                batch.append((parts, resampled[start : start + WINDOW_SAMPLES]))
                if len(batch) == BATCH_SIZE:
                    self._add_heard(batch, language or ENGLISH)
                    batch.clear()
        for language, batch in waiting.items():
            if batch:
                self._add_heard(batch, language)
        return [" ".join(parts) for parts in texts]

    def _add_heard(self, batch: Sequence[_Window], language: str) -> None:
        heard = self._hear_batch([window for _, window in batch], language)
        for (parts, _), text in zip(batch, heard, strict=True):
            parts.append(text.strip())

    def _hear_batch(self, windows: Sequence[Waveform], language: str) -> list[str]:
        from whisper.audio import log_mel_spectrogram, pad_or_trim
        from whisper.decoding import DecodingOptions, decode

        mels = [
            log_mel_spectrogram(pad_or_trim(torch.from_numpy(np.ascontiguousarray(window))), self._num_mels)
            for window in windows
        ]
        options = DecodingOptions(language=language, without_timestamps=True, fp16=False)
        mel_BMT = torch.stack(mels).to(self._model.device)
        return [result.text for result in decode(self._model, mel_BMT, options)]

    @property
    def _num_mels(self) -> int:
        num_mels: int = self._model.dims.n_mels
        return num_mels


def speak_units(
    vocoder: UnitVocoder,
    units: Sequence[TokenArray],
    *,
    are_runs: bool,
    languages: Sequence[str | None],
) -> Iterator[Waveform]:
    """Yields the speech made of each array of units, at the vocoder's sampling rate.

    Args:
        vocoder: Of these units.
        units: Modality-local ids.
        are_runs: One unit stands for a run of equal ones, so that its duration is the vocoder's guess.
        languages: Of each.
    """
    for array, language in zip(units, languages, strict=True):
        yield vocoder.speak(array, are_runs=are_runs, language=language)


def hear_recordings(
    recordings: Sequence[Utterance], languages: Sequence[str | None], listener: Listener
) -> list[str]:
    """What Whisper hears in recordings, such as those that samples were made of.

    Raises:
        ConfigError: A language that this Whisper does not know.
        AudioError: A recording cannot be read.
    """
    waveforms = (load_utterance(recording, SAMPLING_RATE_HZ) for recording in recordings)
    return listener.hear(waveforms, languages)


def resample(waveform: Waveform, rate_hz: int) -> Waveform:
    """The waveform at 16 kHz."""
    import soxr

    if rate_hz == SAMPLING_RATE_HZ or not len(waveform):
        return waveform
    resampled: Waveform = soxr.resample(waveform, rate_hz, SAMPLING_RATE_HZ, quality="HQ").astype(np.float32)
    return resampled


def _open_whisper(path: Path) -> Any:
    from whisper.model import ModelDimensions, Whisper

    encoder, decoder = load_whisper_weights(path), load_whisper_decoder(path)
    dimensions = ModelDimensions(
        n_mels=encoder.num_mels,
        n_audio_ctx=encoder.num_positions,
        n_audio_state=encoder.width,
        n_audio_head=encoder.num_heads,
        n_audio_layer=encoder.num_layers,
        n_vocab=decoder.num_tokens,
        n_text_ctx=decoder.num_positions,
        n_text_state=decoder.width,
        n_text_head=decoder.num_heads,
        n_text_layer=decoder.num_layers,
    )
    model = Whisper(dimensions)
    tensors = {f"encoder.{name}": tensor for name, tensor in encoder.state.items()}
    tensors |= {f"decoder.{name}": tensor for name, tensor in decoder.state.items()}
    model.load_state_dict(tensors, assign=True)
    return model.eval().requires_grad_(False)
