"""The user's own text files: one file a split, one sample a line."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dmlm.pipeline.sources.interface import to_key
from dmlm.pipeline.storage import sha256_json

_MAX_STEM = 60
"""Letters of a file name that go into keys; keys have up to 80."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is not blank."""

    text: str
    where: str
    """`FILE:NUMBER`, the first line being 1."""
    key: str
    """Unique within the file, for lines that name none themselves."""
    fault: str | None = None
    """Why the line cannot be used."""


def find_files(place: Path, suffix: str) -> dict[str, Path]:
    """Files with that suffix by stem, sorted: all of a folder, or `place` itself."""
    if place.is_file():
        return {place.stem: place} if place.suffix == suffix else {}
    return {path.stem: path for path in sorted(place.glob(f"*{suffix}")) if path.is_file()}


def iter_lines(path: Path) -> Iterator[Line]:
    """Yields the lines of a file that are not blank; one that is not UTF-8 carries its fault."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            line = read_line(path, number, raw)
            if line.text or line.fault:
                yield line


def read_line(path: Path, number: int, raw: bytes) -> Line:
    """Line of a file from its bytes; the first has number 1."""
    where, key = f"{path.name}:{number}", f"{stem_to_key(path.stem)}-{number:08d}"
    try:
        return Line(raw.decode("utf-8-sig" if number == 1 else "utf-8").strip(), where, key)
    except UnicodeDecodeError:
        return Line("", where, key, fault=f"{where}: line is not UTF-8")


@cache
def stem_to_key(stem: str) -> str:
    """What the keys of a file's lines begin with; a mark of the whole name where letters cannot be in a key.

    What it gives stays as it is when given again.
    """
    key = to_key(stem)[:_MAX_STEM]
    if key == stem:
        return key
    mark = sha256_json(stem)[:8]
    return f"{key[: _MAX_STEM - len(mark) - 1]}-{mark}"
