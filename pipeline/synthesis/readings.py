"""Read speech in LibriSpeech's layout: SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac beside a .trans.txt.

The chapter says what is read, sentences or word strings, so that each half of a held-out set can be scored
alone.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dmlm.pipeline.randomness import generator_for
from dmlm.pipeline.storage import write_bytes
from dmlm.pipeline.synthesis.speech import (
    SAMPLING_RATE_HZ,
    EnglishVoice,
    Speaker,
    duration_seconds,
    encode_audio,
)
from dmlm.pipeline.synthesis.texts import Reading
from dmlm.pipeline.synthesis.workers import map_in_order

TRAIN_SPLIT, DEV_SPLIT, TEST_SPLIT, TEXT_SPLIT = "train-sample", "dev-sample", "test-sample", "train-text"
SPLITS = (TRAIN_SPLIT, DEV_SPLIT, TEST_SPLIT)
SENTENCE_CHAPTERS = {TRAIN_SPLIT: "101", DEV_SPLIT: "151", TEST_SPLIT: "201", TEXT_SPLIT: "301"}
WORD_STRING_CHAPTERS = {TRAIN_SPLIT: "102", DEV_SPLIT: "152", TEST_SPLIT: "202"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingTask:
    """One file to be made."""

    split: str
    speaker: Speaker
    chapter: str
    index: int
    reading: Reading
    noise_seed: int

    @property
    def key(self) -> str:
        """LibriSpeech's utterance id."""
        return f"{self.speaker.name}-{self.chapter}-{self.index:04d}"

    @property
    def directory(self) -> str:
        """Chapter folder below LibriSpeech/."""
        return f"{self.split}/{self.speaker.name}/{self.chapter}"


def is_word_string(key: str) -> bool:
    """Whether an utterance of train-, dev- or test-sample is a word string; the others are sentences."""
    speaker_chapter_index = key.split("-")
    return len(speaker_chapter_index) == 3 and speaker_chapter_index[1] in WORD_STRING_CHAPTERS.values()


def transcript(text: str) -> str:
    """Text as LibriSpeech writes it: upper case, letters, digits and apostrophes only.

    Empty where there is neither a letter nor a digit.
    """
    return " ".join(re.findall(r"'*[^\W_](?:[^\W_]|')*", text.upper()))


def plan_readings(
    split: str, readings: Sequence[Reading], speakers: Sequence[Speaker], seed: int
) -> list[ReadingTask]:
    """Gives every reading a speaker, a chapter and a number."""
    rng = generator_for(seed, "sample", "readings", split)
    counts: Counter[tuple[str, str]] = Counter()
    tasks = []
    for reading in readings:
        speaker = speakers[int(rng.integers(len(speakers)))]
        chapters = WORD_STRING_CHAPTERS if reading.is_word_string else SENTENCE_CHAPTERS
        chapter = chapters[split]
        tasks.append(
            ReadingTask(
                split=split,
                speaker=speaker,
                chapter=chapter,
                index=counts[speaker.name, chapter],
                reading=reading,
                noise_seed=int(rng.integers(2**31)),
            )
        )
        counts[speaker.name, chapter] += 1
    return tasks


def write_readings(
    root: Path, tasks: Sequence[ReadingTask], voice: EnglishVoice, num_workers: int | None
) -> list[float]:
    """Writes `root`/LibriSpeech and returns the duration of each task in seconds.

    A recording that is there is one of the same settings, which an interrupted run had finished.
    """
    import soundfile

    corpus = root / "LibriSpeech"

    def write_one(task: ReadingTask) -> float:
        path = corpus / task.directory / f"{task.key}.flac"
        if path.is_file():
            return float(soundfile.info(path).frames / SAMPLING_RATE_HZ)
        waveform = voice.speak(task.reading.spoken, task.speaker, task.noise_seed)
        write_bytes(path, encode_audio(waveform, "FLAC"))
        return duration_seconds(waveform)

    seconds = list(map_in_order(write_one, tasks, num_workers, "LibriSpeech layout"))
    _write_transcripts(corpus, tasks)
    _write_speakers(corpus, tasks, seconds)
    return seconds


def _write_transcripts(corpus: Path, tasks: Iterable[ReadingTask]) -> None:
    lines = defaultdict(list)
    for task in tasks:
        lines[task.directory, f"{task.speaker.name}-{task.chapter}"].append(
            f"{task.key} {transcript(task.reading.text)}\n"
        )
    for (directory, chapter), chapter_lines in sorted(lines.items()):
        write_bytes(corpus / directory / f"{chapter}.trans.txt", "".join(chapter_lines).encode())


def _write_speakers(corpus: Path, tasks: Sequence[ReadingTask], seconds: Sequence[float]) -> None:
    totals: defaultdict[Speaker, float] = defaultdict(float)
    for task, task_seconds in zip(tasks, seconds, strict=True):
        totals[task.speaker] += task_seconds
    subset = tasks[0].split
    lines = [
        "; Synthetic: one female voice at several pitches and tempos; every split has the same speakers.",
        ";ID  |SEX| SUBSET           |MINUTES| NAME",
        *(
            f"{speaker.name} | F | {subset:16} | {total / 60:<5.2f} | {speaker.description}"
            for speaker, total in sorted(totals.items(), key=lambda item: item[0].name)
        ),
    ]
    write_bytes(corpus / "SPEAKERS.TXT", ("\n".join(lines) + "\n").encode())
