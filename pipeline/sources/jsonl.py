"""The user's own audio, images and texts: *.jsonl files, one json object a line.

    {"key": "a1", "audio": "clips/a1.wav", "text": "Hello.", "language": "en", "split": "train"}
    {"image": "photos/7.jpg", "text": "A red bus."}

Every field may be left out; a line without `audio`, `image` and `text` is skipped. Paths are relative to the
file; `start_seconds` and `end_seconds` name a stretch of `audio`; the split is else the name of the file.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from dmlm.pipeline.audio import MAX_RECORDING_SECONDS
from dmlm.pipeline.errors import AnnotationError
from dmlm.pipeline.samples import Broken, ImageCaption, Skipped, SourceItem, TextLine, Utterance
from dmlm.pipeline.sources.interface import SourceOptions, is_key
from dmlm.pipeline.sources.lines import Line, find_files, iter_lines
from dmlm.pipeline.storage import sha256_json
from dmlm.pipeline.suggestions import did_you_mean

EXPECTED = "*.jsonl files of one json object a line, or one such file,"
NAME = "jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """The fields of one line; all that a line may have."""

    key: str | None = None
    audio: str | None = None
    image: str | None = None
    image_id: str | None = None
    text: str | None = None
    language: str | None = None
    translation: str | None = None
    translation_language: str | None = None
    speaker: str | None = None
    split: str | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None


_FIELDS = tuple(field.name for field in fields(_Record))


def is_present(corpus_dir: Path) -> bool:
    """Whether there is a jsonl file."""
    return bool(find_files(corpus_dir, ".jsonl"))


def find_splits(corpus_dir: Path, options: SourceOptions) -> tuple[str, ...]:
    """Splits that the lines name, and files whose lines name none; sorted."""
    return tuple(sorted({_find_split(path, line) for path, line in _iter_lines(corpus_dir)}))


def iter_split(corpus_dir: Path, split: str, options: SourceOptions) -> Iterator[SourceItem]:
    """Yields the items of a split in the order of the lines; a line that is wrong is named by number."""
    for path, line in _iter_lines(corpus_dir):
        if _find_split(path, line) == split:
            yield parse_line(path, line)


def _iter_lines(corpus_dir: Path) -> Iterator[tuple[Path, Line]]:
    for path in find_files(corpus_dir, ".jsonl").values():
        for line in iter_lines(path):
            yield path, line


def _find_split(path: Path, line: Line) -> str:
    """Split of a line; nothing else of it is looked at."""
    try:
        return _split_of(_decode(line)) or path.stem
    except AnnotationError:
        return path.stem


def parse_line(path: Path, line: Line) -> SourceItem:
    """Item of a line of the file at `path`; Broken when the line is wrong, Skipped when nothing is in it."""
    split = path.stem
    try:
        content = _decode(line)
        split = _split_of(content) or split
        return _to_item(_to_record(content), path.parent, line.key, split)
    except AnnotationError as error:
        return Broken(key=line.key, source=NAME, split=split, reason=f"{line.where}: {error}")


def _decode(line: Line) -> Mapping[str, object]:
    if line.fault:
        raise AnnotationError("line is not UTF-8")
    try:
        content = json.loads(line.text)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"not json ({error})") from error
    if not isinstance(content, dict):
        raise AnnotationError(f"expected an object, found {type(content).__name__}")
    return content


def _split_of(content: Mapping[str, object]) -> str | None:
    split = content.get("split")
    return split if isinstance(split, str) and split.isprintable() else None


def _to_record(content: Mapping[str, object]) -> _Record:
    for name, value in content.items():
        if name not in _FIELDS:
            raise AnnotationError(
                f"unknown key {name[:40]!r}{did_you_mean(name, _FIELDS)}; known are {', '.join(_FIELDS)}"
            )
        if value is not None and not _fits(name, value):
            wanted = f"seconds from 0 to {MAX_RECORDING_SECONDS}" if name.endswith("_seconds") else "text"
            raise AnnotationError(f"{name} must be {wanted}, found {str(value)[:40]!r}")
    return _Record(**content)  # type: ignore[arg-type]


def _fits(name: str, value: object) -> bool:
    if not name.endswith("_seconds"):
        return isinstance(value, str) and (name != "split" or value.isprintable())
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return 0 <= value <= MAX_RECORDING_SECONDS


def _to_item(record: _Record, folder: Path, line_key: str, split: str) -> SourceItem:
    key = line_key if record.key is None else record.key
    if not is_key(key):
        raise AnnotationError(f"key {key[:80]!r} must be letters, digits, '_' or '-'")
    if record.audio and record.image:
        raise AnnotationError("audio and image in one line; write two lines")
    if record.audio:
        return _to_utterance(record, _find(folder, record.audio), key, split)
    if record.image:
        path = _find(folder, record.image)
        return ImageCaption(
            key=key,
            source=NAME,
            split=split,
            image_path=path,
            image_id=record.image_id or _image_id(path, folder, record.image),
            text=record.text,
            language=record.language,
        )
    if not (record.text and record.text.strip()):
        reason = "no audio, image or text"
        return Skipped(key=key, source=NAME, split=split, reason=reason, recording_id=split)
    return TextLine(
        key=key,
        source=NAME,
        split=split,
        text=record.text,
        language=record.language,
        translation=record.translation,
        translation_language=record.translation_language,
    )


def _to_utterance(record: _Record, path: Path, key: str, split: str) -> Utterance:
    start, end = record.start_seconds or 0.0, record.end_seconds
    if end is not None and end <= start:
        raise AnnotationError(f"end_seconds is {end}, but start_seconds is {start}")
    return Utterance(
        key=key,
        source=NAME,
        split=split,
        audio_path=path,
        start_seconds=start,
        end_seconds=end,
        text=record.text,
        language=record.language,
        translation=record.translation,
        translation_language=record.translation_language,
        speaker=record.speaker,
    )


def _find(folder: Path, name: str) -> Path:
    path = folder / name
    shown = path.name if Path(name).is_absolute() else name
    try:
        is_there = path.is_file()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise AnnotationError(f"{shown[:80]}: {error.strerror}") from error
    if not is_there:
        raise AnnotationError(f"no file {shown}")
    return path


def _image_id(path: Path, folder: Path, name: str) -> str:
    """The path from `folder`, which tells images apart without the folders of this machine.

    Where the line has the absolute path of an image elsewhere: its name and a mark of the path.
    """
    if not Path(name).is_absolute():
        return name
    if path.is_relative_to(folder.absolute()):
        return path.relative_to(folder.absolute()).as_posix()
    return f"{path.name}-{sha256_json(str(path))[:8]}"
