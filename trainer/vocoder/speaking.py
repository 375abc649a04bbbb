"""`speak`: text -> units by the model -> waveform by the vocoder -> WAV files."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dmlm.pipeline.devices import open_device
from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Modality, Sample
from dmlm.pipeline.text_rules import apply_text_rule
from dmlm.pipeline.tokenizers.text import HuggingFaceTextTokenizer, load_text_tokenizer
from dmlm.trainer.checkpoint import load_checkpoint, resolve_checkpoint
from dmlm.trainer.config import matches
from dmlm.trainer.decoding import DecodingConfig
from dmlm.trainer.decoding.generation import GREEDY, generate
from dmlm.trainer.settings import RunSettings
from dmlm.trainer.trained_tasks import choose_language
from dmlm.trainer.vocoder.synthesis import open_vocoder
from dmlm.trainer.vocoder.wav import write_wav


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeakConfig:
    """What to say with what."""

    checkpoint: Path
    """A checkpoint, or a run folder whose newest checkpoint is used."""
    vocoder: Path
    """Folder of `train-vocoder`, or a Seamless model."""
    out_dir: Path
    language: str | None = None
    """Of the texts; `none`: the prompt names none. None: the only one trained, or English among several."""
    decoding: DecodingConfig = GREEDY
    device: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """One text, said."""

    text: str
    path: Path
    """WAV file of 16 bit."""
    duration_seconds: float
    seconds: float
    """To make it: its share of decoding, and the vocoder's work on it."""
    is_finished: bool
    """False: the model did not come to an end, or had no room for it and said nothing."""


def speak(config: SpeakConfig, texts: Sequence[str]) -> Iterator[Spoken]:
    """Says each text in a file `OUT/0001.wav`, `OUT/0002.wav`, …, in the order given.

    Raises:
        ConfigError: There is no checkpoint or vocoder, `out_dir` is a file, a text is empty, the model was
            not trained to speak, or not in the language, or the vocoder does not speak it.
        FingerprintMismatchError: The vocoder speaks other units than the model's.
        CorruptInputError: Checkpoint or vocoder is damaged.
    """
    if config.out_dir.is_file():
        raise ConfigError(f"{config.out_dir} is a file; --out must be a folder")
    checkpoint = load_checkpoint(resolve_checkpoint(config.checkpoint), str(open_device(config.device)))
    fingerprint = checkpoint.settings.fingerprints.get(Modality.SPEECH)
    if fingerprint is None:
        raise ConfigError(f"{checkpoint.path}: was trained without speech")
    language = choose_language(checkpoint.settings.trained, "t2s", config.language, checkpoint.path)
    vocoder = open_vocoder(config.vocoder, fingerprint, config.device)
    vocoder.check_languages([language])
    tokenizer = load_text_tokenizer(checkpoint.codebook_dir / Modality.TEXT)
    text_rule = spoken_text_rule(checkpoint.settings)
    samples = [_sample_of(tokenizer, text_rule, text, language) for text in texts]
    start = time.monotonic()
    outputs = {output.index: output for output in generate(checkpoint, "t2s", samples, config.decoding)}
    share_seconds = (time.monotonic() - start) / max(1, len(texts))
    are_runs = checkpoint.settings.recipe.sequence.collapse_runs
    for index, text in enumerate(texts):
        start, output = time.monotonic(), outputs[index]
        waveform = vocoder.speak(output.tokens, are_runs=are_runs, language=language)
        path = config.out_dir / f"{index + 1:04d}.wav"
        write_wav(path, waveform, vocoder.sampling_rate_hz)
        yield Spoken(
            text=text,
            path=path,
            duration_seconds=len(waveform) / vocoder.sampling_rate_hz,
            seconds=share_seconds + time.monotonic() - start,
            is_finished=output.is_finished,
        )


def spoken_text_rule(settings: RunSettings) -> str:
    """Text rule of the first data set whose source the mix speaks; else of the first of the training.

    A checkpoint does not tell which of its data sets held speech.
    """
    sources = [entry.source for entry in settings.recipe.mix if entry.task == "t2s"]
    spoken = [dataset for dataset in settings.datasets if matches(dataset.name, sources)]
    return (spoken or settings.datasets)[0].text_rule


def _sample_of(
    tokenizer: HuggingFaceTextTokenizer, text_rule: str, text: str, language: str | None
) -> Sample:
    ruled = apply_text_rule(text_rule, text)
    if not ruled:
        raise ConfigError(f"{text!r}: nothing to say")
    return Sample(key="", source="", split="", language=language, text_tokens=tokenizer.encode(ruled))
