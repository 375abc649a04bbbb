"""CoVoST 2: LANGUAGE/covost_v2.X_Y.tsv, Common Voice's validated.tsv and clips/*.mp3.

Items are the inner join of the two tables on `path`. Tables are read as CoVoST's own script does it: columns
by header, no quoting, and a backslash makes the character behind it stand for itself.
"""

import csv
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dmlm.pipeline.errors import ConfigError, CorruptInputError
from dmlm.pipeline.samples import Broken, Skipped, SourceItem, Utterance
from dmlm.pipeline.sources.interface import SourceOptions, to_key

EXPECTED = "LANGUAGE/covost_v2.X_Y.tsv with validated.tsv and clips/ beside it"
NAME = "covost"
SPLITS = ("dev", "test", "train")
_TRAIN_NAMES = ("train", "train_covost")
"""CoVoST's own training split goes beyond Common Voice's; its scripts join the two."""

_PAIR = re.compile(r"covost_v2\.(([a-z]{2,3})(?:-[A-Z]{2})?_([a-z]{2,3})(?:-[A-Z]{2})?)\.tsv")
_CLIP = re.compile(r"([A-Za-z0-9_-]+)\.[A-Za-z0-9]+")


@dataclass(frozen=True, slots=True)
class _Pair:
    name: str
    language: str
    translation_language: str
    table_path: Path

    @property
    def languages(self) -> str:
        """The name without regions, which data sets and the manifest call the pair by."""
        return f"{self.language}_{self.translation_language}"


@dataclass(frozen=True, slots=True)
class _Row:
    """Asked cells of a line, empty where they are not there, and why the line cannot be used."""

    where: str
    cells: tuple[str, ...]
    fault: str | None


def is_present(corpus_dir: Path) -> bool:
    """Whether there is a table of any pair."""
    return bool(_list_pairs(corpus_dir))


def every_choice(corpus_dir: Path, options: SourceOptions) -> tuple[SourceOptions, ...]:
    """Options for each pair that is there; just `options` where they name one."""
    if options.lang_pair:
        return (options,)
    return tuple(replace(options, lang_pair=pair.name) for pair in _list_pairs(corpus_dir))


def find_splits(corpus_dir: Path, options: SourceOptions) -> tuple[str, ...]:
    """Splits that the table of the pair names, sorted.

    Raises:
        ConfigError: The pair is not there, or none was asked for and there are several.
    """
    table_path = _choose_pair(corpus_dir, options.lang_pair).table_path
    present = {_split_of(row.cells[0]) for row in _read_table(table_path, ("split",))}
    return tuple(sorted(present))


def iter_split(corpus_dir: Path, split: str, options: SourceOptions) -> Iterator[SourceItem]:
    """Yields the clips of a split, sorted by file name.

    Raises:
        CorruptInputError: A table lacks a column.
    """
    pair = _choose_pair(corpus_dir, options.lang_pair)
    rows = [
        row
        for row in _read_table(pair.table_path, ("path", "translation", "split"))
        if _split_of(row.cells[2]) == split
    ]
    clips = {row.cells[0] for row in rows}
    validated = {
        row.cells[0]: row
        for row in _read_table(pair.table_path.with_name("validated.tsv"), ("path", "sentence", "client_id"))
        if row.cells[0] in clips
    }
    previous = None
    for row in sorted(rows, key=lambda row: row.cells[0]):
        clip = row.cells[0]
        if clip == previous and row.fault is None:
            yield _broken(split, row, "second line for this clip")
        else:
            yield _join(pair, split, row, validated.get(clip))
        previous = clip


def _join(pair: _Pair, split: str, row: _Row, validated: _Row | None) -> SourceItem:
    clip, translation, split_name = row.cells
    name = _CLIP.fullmatch(clip)
    if row.fault or name is None:
        return _broken(split, row, row.fault or f"{clip[:80]!r} is not a file name")
    key = name[1]
    audio_path = pair.table_path.parent / "clips" / clip
    if split_name not in (*SPLITS, *_TRAIN_NAMES):
        return Skipped(key=key, source=NAME, split=split, reason=f"split {split_name[:40]!r} is not official")
    if validated is None:
        return Skipped(key=key, source=NAME, split=split, reason="clip is not in validated.tsv")
    if validated.fault:
        return _broken(split, validated, validated.fault)
    if not audio_path.is_file():
        return Skipped(key=key, source=NAME, split=split, reason="clip was not downloaded")
    _, sentence, client_id = validated.cells
    return Utterance(
        key=key,
        source=NAME,
        split=split,
        audio_path=audio_path,
        text=sentence.strip() or None,
        language=pair.language,
        translation=translation.strip() or None,
        translation_language=pair.translation_language,
        speaker=_shorten(client_id),
        recording_id=key,
    )


def _broken(split: str, row: _Row, reason: str) -> Broken:
    key = to_key(Path(row.cells[0]).stem or row.where)
    return Broken(key=key, source=NAME, split=split, reason=f"{row.where}: {reason}")


def _read_table(path: Path, columns: tuple[str, ...]) -> Iterator[_Row]:
    with path.open("rb") as file:
        header = file.readline().decode("utf-8-sig", errors="replace").rstrip("\r\n").split("\t")
        missing = [column for column in columns if column not in header]
        if missing:
            raise CorruptInputError(
                f"{path}: no column {', '.join(missing)}; found {', '.join(header)[:200]}"
            )
        indices = [header.index(column) for column in columns]
        for number, line in enumerate(file, start=2):
            if line.strip():
                yield _parse_row(line, len(header), indices, f"{path.name}:{number}")


def _parse_row(line: bytes, num_columns: int, indices: list[int], where: str) -> _Row:
    fault = None
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        text, fault = line.decode("utf-8", errors="replace"), "line is not UTF-8"
    text = text.rstrip("\r\n")
    try:
        (cells,) = csv.reader([text], delimiter="\t", quoting=csv.QUOTE_NONE, escapechar="\\")
    except csv.Error as error:  # a carriage return inside
        cells, fault = text.split("\t"), str(error)
    if len(cells) != num_columns:
        fault = f"{len(cells)} columns, expected {num_columns}"
    return _Row(where, tuple(cells[i] if i < len(cells) else "" for i in indices), fault)


def _split_of(name: str) -> str:
    """Split that a line is counted in; what names none is counted once, in the training part."""
    return name if name in SPLITS else "train"


def _shorten(client_id: str) -> str | None:
    """Speaker name of 16 hex digits instead of Common Voice's 128, and not theirs."""
    return hashlib.sha256(client_id.encode()).hexdigest()[:16] if client_id else None


def _list_pairs(corpus_dir: Path) -> list[_Pair]:
    pairs = []
    for path in sorted(corpus_dir.glob("*/covost_v2.*.tsv")):
        name = _PAIR.fullmatch(path.name)
        if name and path.with_name("validated.tsv").is_file():
            pairs.append(_Pair(name[1], name[2], name[3], path))
    return pairs


def _choose_pair(corpus_dir: Path, wanted: str | None) -> _Pair:
    pairs = _list_pairs(corpus_dir)
    chosen = [pair for pair in pairs if wanted in (None, pair.name)]
    chosen = chosen or [pair for pair in pairs if wanted == pair.languages]
    if len(chosen) == 1:
        return chosen[0]
    if table_path := next(corpus_dir.glob(f"*/covost_v2.{wanted}.tsv"), None):
        raise ConfigError(
            f"{NAME}: {table_path.with_name('validated.tsv')} is missing; unpack Common Voice corpus 4 there"
        )
    names = ", ".join(pair.name for pair in pairs)
    problem = "several language pairs" if chosen else f"no language pair {wanted!r}"
    raise ConfigError(f"{NAME}: {problem} in {corpus_dir}; give --lang-pair, one of {names}")
