"""Speech to text with a trained checkpoint: audio file -> windows -> units -> prompt -> text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from dmlm.pipeline.audio import load_waveform, recording_seconds
from dmlm.pipeline.devices import open_device
from dmlm.pipeline.errors import AudioError, ConfigError
from dmlm.pipeline.samples import Modality, Sample, TokenArray, Waveform
from dmlm.pipeline.tokenizers import SpeechTokenizer
from dmlm.pipeline.tokenizers.registry import Tokenizers
from dmlm.pipeline.tokenizers.text import load_text_tokenizer
from dmlm.trainer.checkpoint import Checkpoint, load_checkpoint, resolve_checkpoint
from dmlm.trainer.decoding import decode_greedy
from dmlm.trainer.tasks import TASKS, build_prompt

MAX_WINDOW_SECONDS: Final = 30.0
"""Whisper's window; training data holds hardly anything longer."""
UNITS_PER_SECOND: Final = 50
SHARE_FOR_UNITS: Final = 0.75
"""Of the model's positions; the rest is left for the text."""
NUM_SPARE_TOKENS: Final = 16
"""A text of more tokens than units, and these, was never spoken."""
CUT_BETWEEN: Final = (0.8, 0.97)
"""Part of a window in which the cut is looked for, as shares of its length."""
_HOP_SECONDS, _QUIET_HOPS = 0.02, 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """What was said in one file, or why it could not be read."""

    path: Path
    text: str = ""
    duration_seconds: float = 0.0
    """Of the audio."""
    error: AudioError | None = None


def transcribe(
    checkpoint_dir: Path, files: Sequence[Path], device: str = "auto", language: str = "en"
) -> Iterator[Transcript]:
    """Transcribes audio files of any length, in the order given.

    A file that cannot be read gives a transcript with an error, and the next file comes all the same.

    Args:
        checkpoint_dir: A checkpoint, or a run folder whose newest checkpoint is used.
        files: WAV, FLAC, MP3 or OGG.
        device: auto, cpu, cuda or cuda:N.
        language: Language spoken; the prompt names it, as in training.

    Raises:
        ConfigError: There is no checkpoint, or it knows no speech.
        CheckpointError: The checkpoint is damaged.
    """
    checkpoint = load_checkpoint(resolve_checkpoint(checkpoint_dir), str(open_device(device)))
    tokenizer = Tokenizers(checkpoint.codebook_dir, device).speech
    if tokenizer is None:
        raise ConfigError(f"{checkpoint.path}: was trained without speech")
    for path in files:
        try:
            yield _transcribe_file(checkpoint, tokenizer, path, language)
        except AudioError as error:
            yield Transcript(path=path, error=error)


def transcribe_units(
    checkpoint: Checkpoint,
    units: Sequence[TokenArray],
    languages: Sequence[str | None],
    batch_size: int = 32,
) -> Iterator[tuple[int, str]]:
    """Yields the index and the text of each array of speech units, similar lengths together, not in order."""
    vocabulary, sequence = checkpoint.vocabulary, checkpoint.settings.recipe.sequence
    samples = [
        Sample(key=str(index), source="", split="", language=language, speech_tokens=tokens)
        for index, (tokens, language) in enumerate(zip(units, languages, strict=True))
    ]
    text_tokenizer = load_text_tokenizer(checkpoint.codebook_dir / Modality.TEXT)
    outputs = decode_greedy(
        checkpoint.model,
        [build_prompt(TASKS["asr"], sample, vocabulary, sequence) for sample in samples],
        allowed=vocabulary.text,
        eos_id=vocabulary.eos_id,
        max_new_tokens=[len(tokens) + NUM_SPARE_TOKENS for tokens in units],
        batch_size=batch_size,
    )
    for index, tokens in outputs:
        yield index, text_tokenizer.decode(tokens).strip()


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


def _transcribe_file(
    checkpoint: Checkpoint, tokenizer: SpeechTokenizer, path: Path, language: str
) -> Transcript:
    num_positions = checkpoint.model.config.max_position_embeddings
    window_seconds = min(MAX_WINDOW_SECONDS, SHARE_FOR_UNITS * num_positions / UNITS_PER_SECOND)
    units = list(tokenizer.encode(cut_recording(path, window_seconds, tokenizer.sampling_rate_hz)))
    texts = dict(transcribe_units(checkpoint, units, [language] * len(units)))
    return Transcript(
        path=path,
        text=" ".join(texts[index] for index in range(len(units)) if texts[index]),
        duration_seconds=recording_seconds(path),
    )


def _find_quiet_point(window: Waveform, sampling_rate_hz: int) -> int:
    """Number of samples before the middle of the quietest 0.2 s near the end."""
    hop = int(_HOP_SECONDS * sampling_rate_hz)
    energy_F = np.square(window[: len(window) // hop * hop]).reshape(-1, hop).sum(axis=1)
    smooth_F = np.convolve(energy_F, np.ones(_QUIET_HOPS), mode="same")
    first, last = (int(share * len(smooth_F)) for share in CUT_BETWEEN)
    return (first + int(smooth_F[first:last].argmin())) * hop
