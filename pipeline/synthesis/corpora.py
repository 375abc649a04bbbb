"""`dmlm-cli sample`: synthetic corpora in the four true on-disk layouts, without any download.

texts -> speakers -> waveforms and pictures -> files -> sample.json, published last.

The same settings give the same bytes, whatever the number of workers, as long as the packages named in
sample.json and the kind of processor stay the same.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.storage import sha256_json
from dmlm.pipeline.synthesis import meetings, pictures, readings, translations
from dmlm.pipeline.synthesis.espeak import make_italian_speakers
from dmlm.pipeline.synthesis.pieces import draw_pieces
from dmlm.pipeline.synthesis.readmes import write_readmes
from dmlm.pipeline.synthesis.reports import (
    SampleReport,
    Settings,
    SplitReport,
    claim,
    publish,
    summarise,
)
from dmlm.pipeline.synthesis.speech import DIFFERENT, SIMILAR, EnglishVoice, make_speakers
from dmlm.pipeline.synthesis.texts import Reading, SampleTexts, draw_texts

ENGLISH_PACKAGES = ("dmlm", "hibari-tts", "onnxruntime", "numpy", "scipy", "soxr", "soundfile")
OTHER_PACKAGES = ("espeakng-loader", "pillow")

_TYPOGRAPHIC_APOSTROPHE = re.compile(r"\u2019(?=\w)")
"""Behind a word the same character may be a closing quotation mark."""


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """What `sample` is to write."""

    out_dir: Path
    seed: int = 0
    text_paths: tuple[Path, ...] = ()
    """Speak all lines of these UTF-8 files instead of making sentences: a LibriSpeech-style corpus only."""
    hours: float | None = None
    """Speak about so many hours of short pieces of the texts instead of their lines."""
    limit: int | None = None
    """At most this many utterances or images of each split of each corpus; None: the full sample."""
    num_workers: int | None = None
    """Threads; None: one per processor. Does not change a byte."""


def write_sample_corpora(config: SampleConfig) -> SampleReport:
    """Writes LibriSpeech/, ami/, covost/ and coco/ into `config.out_dir`, or finds them there complete.

    Raises:
        ConfigError: A setting is impossible, the text cannot be spoken, or the folder holds something else.
        MissingDependencyError: A voice is not installed.
    """
    texts = [_read_lines(path) for path in config.text_paths]
    settings = _settings(config, texts)
    packages = ENGLISH_PACKAGES if texts else (*ENGLISH_PACKAGES, *OTHER_PACKAGES)
    versions = {package: _installed_version(package) for package in packages}
    finished = claim(config.out_dir, settings, versions)
    if finished is not None:
        return finished
    splits = _write_texts(config, texts) if texts else _write_generated(config)
    write_readmes(config.out_dir, seed=config.seed, from_text=bool(texts), versions=versions)
    return publish(config.out_dir, settings, versions, splits)


def _settings(config: SampleConfig, texts: Sequence[Sequence[str]]) -> Settings:
    """Everything that the content depends on, save the versions of other packages."""
    for name, count in (("limit", config.limit), ("num_workers", config.num_workers)):
        if count is not None and count < 1:
            raise ConfigError(f"{name} must be at least 1, not {count}")
    if config.hours is not None and not texts:
        raise ConfigError("--hours: says how much of a --text to speak; give one")
    if config.hours is not None and not 0 < config.hours < math.inf:
        raise ConfigError(f"--hours {config.hours:g}: must be a number above 0")
    return {
        "dmlm": version("dmlm"),
        "seed": config.seed,
        "limit": config.limit,
        "text_sha256": sha256_json(texts) if texts else None,
        "hours": config.hours,
    }


def _installed_version(package: str) -> str:
    """Version, or that there is none: the English voice computes with scipy where it is installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _read_lines(text_path: Path) -> list[str]:
    """Lines with anything to speak, their letters and apostrophes in the form that transcripts have."""
    try:
        text = text_path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{text_path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{text_path}: not UTF-8 text (byte {error.start})") from error
    text = _TYPOGRAPHIC_APOSTROPHE.sub("'", unicodedata.normalize("NFC", text))
    lines = [line.strip() for line in text.splitlines() if readings.transcript(line)]
    if not lines:
        raise ConfigError(f"{text_path}: no line with anything to speak")
    return lines


def _write_generated(config: SampleConfig) -> tuple[SplitReport, ...]:
    texts = draw_texts(config.seed).limited(config.limit)
    # What takes seconds comes before what takes a minute: a missing voice is found at once.
    covost = _write_translations(config, texts)
    coco = _write_pictures(config, texts)
    voice = EnglishVoice()
    return (*_write_readings(config, texts, voice), *_write_meetings(config, texts, voice), *covost, *coco)


def _write_texts(config: SampleConfig, texts: Sequence[Sequence[str]]) -> tuple[SplitReport, ...]:
    if config.hours is None:
        lines, variety = [line for lines in texts for line in lines], SIMILAR
    else:
        lines, variety = draw_pieces(texts, config.hours, config.seed), DIFFERENT
    spoken = [Reading(line, is_word_string=False) for line in lines[: config.limit]]
    speakers = make_speakers(config.seed, variety)
    tasks = readings.plan_readings(readings.TEXT_SPLIT, spoken, speakers, config.seed)
    seconds = readings.write_readings(config.out_dir, tasks, EnglishVoice(), config.num_workers)
    return tuple(summarise("librispeech", [task.split for task in tasks], seconds))


def _write_readings(config: SampleConfig, texts: SampleTexts, voice: EnglishVoice) -> list[SplitReport]:
    speakers = make_speakers(config.seed)
    parts = zip(readings.SPLITS, (texts.train, texts.dev, texts.test), strict=True)
    tasks = [
        task
        for split, part in parts
        for task in readings.plan_readings(split, part.readings, speakers, config.seed)
    ]
    seconds = readings.write_readings(config.out_dir, tasks, voice, config.num_workers)
    return summarise("librispeech", [task.split for task in tasks], seconds)


def _write_meetings(config: SampleConfig, texts: SampleTexts, voice: EnglishVoice) -> list[SplitReport]:
    speakers = make_speakers(config.seed)
    train, test = (
        meetings.plan_meetings(meeting_ids, sentences, speakers, config.seed)
        for meeting_ids, sentences in (
            (meetings.TRAIN_MEETINGS, texts.train.meeting_sentences),
            (meetings.TEST_MEETINGS, texts.test.meeting_sentences),
        )
    )
    seconds = meetings.write_meetings(config.out_dir, [*train, *test], voice, config.seed, config.num_workers)
    return [
        SplitReport(
            corpus="ami",
            split=split,
            num_items=sum(len(plan.turns) for plan in plans),
            audio_seconds=round(sum(durations), 3),
        )
        for split, plans, durations in (
            ("train", train, seconds[: len(train)]),
            ("test", test, seconds[len(train) :]),
        )
    ]


def _write_translations(config: SampleConfig, texts: SampleTexts) -> list[SplitReport]:
    speakers = make_italian_speakers(config.seed)
    parts = zip(translations.SPLITS, (texts.train, texts.dev, texts.test), strict=True)
    clips = [
        clip
        for split, part in parts
        for clip in translations.plan_clips(split, part.translations, speakers, config.seed)
    ]
    seconds = translations.write_clips(config.out_dir, clips, config.num_workers)
    return summarise("covost", [clip.split for clip in clips], seconds)


def _write_pictures(config: SampleConfig, texts: SampleTexts) -> list[SplitReport]:
    reports = []
    for split, part in zip(pictures.SPLITS, (texts.train, texts.test), strict=True):
        pictures.write_pictures(config.out_dir, split, part.scenes, config.seed)
        reports.append(SplitReport(corpus="coco", split=split, num_items=len(part.scenes), audio_seconds=0.0))
    return reports
