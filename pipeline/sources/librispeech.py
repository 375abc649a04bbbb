"""LibriSpeech: SPLIT/SPEAKER/CHAPTER/*.flac, and beside them SPEAKER-CHAPTER.trans.txt where there is one.

Any folder of that shape is a split. Audio without a transcript line is speech-only; a line without
audio is skipped.
"""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dmlm.pipeline.samples import Broken, Skipped, SourceItem, Utterance
from dmlm.pipeline.sources.interface import SourceOptions, is_key, to_key

EXPECTED = "SPLIT/SPEAKER/CHAPTER/*.flac"
NAME = "librispeech"


@dataclass(slots=True)
class _Transcripts:
    """Lines of one chapter by key: texts, and why a line cannot be used."""

    texts: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)


def is_present(corpus_dir: Path) -> bool:
    """Whether any folder has the shape of a split."""
    return any(_is_split(folder) for folder in _list_folders(corpus_dir))


def find_splits(corpus_dir: Path, options: SourceOptions) -> tuple[str, ...]:
    """Names of all folders that have the shape of a split, sorted."""
    return tuple(folder.name for folder in _list_folders(corpus_dir) if _is_split(folder))


def iter_split(corpus_dir: Path, split: str, options: SourceOptions) -> Iterator[SourceItem]:
    """Yields the utterances of a split, sorted by the names of speaker, chapter and file."""
    for speaker_dir in _list_folders(corpus_dir / split):
        for chapter_dir in _list_folders(speaker_dir):
            yield from _iter_chapter(split, chapter_dir)


def _iter_chapter(split: str, chapter_dir: Path) -> Iterator[SourceItem]:
    speaker, chapter = chapter_dir.parent.name, chapter_dir.name
    transcripts = _read_transcripts(chapter_dir / f"{speaker}-{chapter}.trans.txt")
    audio = {path.stem: path for path in chapter_dir.glob("*.flac") if not path.name.startswith(".")}
    for key in sorted(audio.keys() | transcripts.texts.keys() | transcripts.faults.keys()):
        fault = transcripts.faults.get(key) or (None if is_key(key) else "file name cannot be a key")
        if fault:
            yield Broken(key=to_key(key), source=NAME, split=split, reason=fault)
        elif key not in audio:
            yield Skipped(
                key=key,
                source=NAME,
                split=split,
                reason="transcript without audio file",
                recording_id=f"{speaker}-{chapter}",
            )
        else:
            yield Utterance(
                key=key,
                source=NAME,
                split=split,
                audio_path=audio[key],
                text=transcripts.texts.get(key) or None,
                language="en",
                speaker=speaker,
                recording_id=f"{speaker}-{chapter}",
            )


def _read_transcripts(path: Path) -> _Transcripts:
    transcripts = _Transcripts()
    content = path.read_bytes() if path.is_file() else b""
    lines = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            _add_line(transcripts, line.strip(), f"{path.name}:{number}")
    return transcripts


def _add_line(transcripts: _Transcripts, line: bytes, where: str) -> None:
    name, *texts = line.split(maxsplit=1)
    key = name.decode("ascii", errors="replace")
    if not is_key(key):
        transcripts.faults[where] = f"{where}: line does not start with the name of an utterance"
    elif key in transcripts.texts or key in transcripts.faults:
        transcripts.faults[key] = f"{where}: second line for {key}"
    else:
        try:
            transcripts.texts[key] = b"".join(texts).decode("utf-8").strip()
        except UnicodeDecodeError:
            transcripts.faults[key] = f"{where}: text is not UTF-8"


def _is_split(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in ("*/*/*.flac", "*/*/*.trans.txt"))


def _list_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
