"""Speech to text with a trained checkpoint: audio files -> windows -> units -> prompts -> text.

The text is what was said, or its translation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from dmlm.pipeline.audio import load_waveform, recording_seconds
from dmlm.pipeline.devices import open_device
from dmlm.pipeline.errors import AudioError, ConfigError
from dmlm.pipeline.samples import Sample, TokenArray, Waveform
from dmlm.pipeline.tokenizers import UNITS_PER_SECOND, SpeechTokenizer
from dmlm.pipeline.tokenizers.registry import Tokenizers
from dmlm.trainer.checkpoint import Checkpoint, load_checkpoint, resolve_checkpoint
from dmlm.trainer.decoding import DecodingConfig
from dmlm.trainer.decoding.generation import GREEDY, GeneratedText, generate_texts
from dmlm.trainer.trained_tasks import choose_language

MAX_WINDOW_SECONDS: Final = 30.0
"""Whisper's window; training data holds hardly anything longer."""
SHARE_FOR_UNITS: Final = 0.75
"""Of the longest sequence of the training; the rest is left for the text."""
CUT_BETWEEN: Final = (0.8, 0.97)
"""Part of a window in which the cut is looked for, as shares of its length."""
FILES_AT_ONCE: Final = 16
"""Their windows are decoded together."""
_HOP_SECONDS, _QUIET_HOPS = 0.02, 10

SpeechTask = Literal["asr", "s2tt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """What was said in one file, or why it could not be read."""

    path: Path
    text: str = ""
    duration_seconds: float = 0.0
    """Of the audio."""
    is_finished: bool = True
    """False: the text of a window was cut by a limit, or there was no room for it."""
    error: AudioError | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Recording:
    path: Path
    units: tuple[TokenArray, ...] = ()
    """Of its windows."""
    error: AudioError | None = None


def transcribe(
    checkpoint_dir: Path,
    files: Sequence[Path],
    device: str = "auto",
    language: str | None = None,
    *,
    task: SpeechTask = "asr",
    decoding: DecodingConfig = GREEDY,
) -> Iterator[Transcript]:
    """Transcribes or translates audio files of any length, in the order given.

    A file that cannot be read gives a transcript with an error, and the next file comes all the same.

    Args:
        checkpoint_dir: A checkpoint, or a run folder whose newest checkpoint is used.
        files: WAV, FLAC, MP3 or OGG.
        device: auto, cpu, cuda or cuda:N.
        language: Of the text; the prompt names it, as in training. `none`: it names none. None: the only one
            that the model was trained in, or English among several.
        task: asr or s2tt.
        decoding: How tokens are chosen.

    Raises:
        ConfigError: There is no checkpoint, it knows no speech, or it was not trained on the task, or in the
            language.
        CheckpointError: The checkpoint is damaged.
    """
    checkpoint = load_checkpoint(resolve_checkpoint(checkpoint_dir), str(open_device(device)))
    tokenizer = Tokenizers(checkpoint.codebook_dir, device).speech
    if tokenizer is None:
        raise ConfigError(f"{checkpoint.path}: was trained without speech")
    language = choose_language(checkpoint.settings.trained, task, language, checkpoint.path)
    # A model that training began with may have more positions than were trained.
    max_length = min(
        checkpoint.model.config.max_position_embeddings, checkpoint.settings.recipe.sequence.max_length
    )
    window_seconds = min(MAX_WINDOW_SECONDS, SHARE_FOR_UNITS * max_length / UNITS_PER_SECOND)
    num_windows = 0
    for start in range(0, len(files), FILES_AT_ONCE):
        recordings = [
            _read_recording(tokenizer, path, window_seconds) for path in files[start : start + FILES_AT_ONCE]
        ]
        yield from _write_out(checkpoint, recordings, language, task, decoding, num_windows)
        num_windows += sum(len(recording.units) for recording in recordings)


def text_of_units(
    checkpoint: Checkpoint,
    units: Sequence[TokenArray],
    languages: Sequence[str | None],
    task: SpeechTask = "asr",
    decoding: DecodingConfig = GREEDY,
    first_number: int = 0,
) -> list[GeneratedText]:
    """Text of each array of speech units, in order, or its translation; `languages` are of the texts.

    The others are as of `generate`.
    """
    samples = [
        Sample(
            key=str(index),
            source="",
            split="",
            language=language if task == "asr" else None,
            translation_language=language,
            speech_tokens=tokens,
        )
        for index, (tokens, language) in enumerate(zip(units, languages, strict=True))
    ]
    return generate_texts(checkpoint, task, samples, decoding, first_number)


def cut_recording(path: Path, window_seconds: float, sampling_rate_hz: int) -> Iterator[Waveform]:
    """Yields a recording in consecutive windows of at most `window_seconds`, cut where it is quietest.

    Raises:
        AudioError: The recording cannot be read.
    """
    start, end = 0.0, recording_seconds(path)
    while end - start > window_seconds:
        window = load_waveform(path, start, start + window_seconds, sampling_rate_hz)
        num_samples = _find_quiet_point(window, sampling_rate_hz)
        yield window[:num_samples]
        start += num_samples / sampling_rate_hz
    yield load_waveform(path, start, sampling_rate_hz=sampling_rate_hz)


def _read_recording(tokenizer: SpeechTokenizer, path: Path, window_seconds: float) -> _Recording:
    try:
        windows = cut_recording(path, window_seconds, tokenizer.sampling_rate_hz)
        return _Recording(path=path, units=tuple(tokenizer.encode(windows)))
    except AudioError as error:
        return _Recording(path=path, error=error)


def _write_out(
    checkpoint: Checkpoint,
    recordings: Sequence[_Recording],
    language: str | None,
    task: SpeechTask,
    decoding: DecodingConfig,
    first_number: int,
) -> Iterator[Transcript]:
    units = [window for recording in recordings for window in recording.units]
    texts = iter(text_of_units(checkpoint, units, [language] * len(units), task, decoding, first_number))
    for recording in recordings:
        if recording.error is not None:
            yield Transcript(path=recording.path, error=recording.error)
            continue
        parts = [next(texts) for _ in recording.units]
        yield Transcript(
            path=recording.path,
            text=" ".join(part.text for part in parts if part.text),
            duration_seconds=recording_seconds(recording.path),
            is_finished=all(part.is_finished for part in parts),
        )


def _find_quiet_point(window: Waveform, sampling_rate_hz: int) -> int:
    """Number of samples before the middle of the quietest 0.2 s near the end."""
    hop = int(_HOP_SECONDS * sampling_rate_hz)
    energy_F = np.square(window[: len(window) // hop * hop]).reshape(-1, hop).sum(axis=1)
    smooth_F = np.convolve(energy_F, np.ones(_QUIET_HOPS), mode="same")
    first, last = (int(share * len(smooth_F)) for share in CUT_BETWEEN)
    return (first + int(smooth_F[first:last].argmin())) * hop
