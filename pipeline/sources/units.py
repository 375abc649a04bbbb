"""Speech that comes as units: SPLIT.units of `KEY ID …` lines, and SPLIT.txt of `KEY TEXT` if there is one.

A tab or a space ends the key. What made the units is not known, so their fingerprint is a name that the user
gives, else a hash of all unit files, and the size of the codebook.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Broken, Skipped, SourceItem, UnitInventory, UnitLine
from dmlm.pipeline.sources.interface import SourceOptions, is_key
from dmlm.pipeline.sources.lines import find_files, iter_lines
from dmlm.pipeline.storage import sha256_file, sha256_json

EXPECTED = "*.units files of lines `KEY ID ID …`, or one such file,"
NAME = "units"
MAX_UNITS = 1 << 20
"""Larger ids are no codebook's but mistakes."""

_IDS = re.compile(r"\d{1,7}( \d{1,7})*", re.ASCII)


def is_present(corpus_dir: Path) -> bool:
    """Whether there is a unit file."""
    return bool(find_files(corpus_dir, ".units"))


def find_splits(corpus_dir: Path, options: SourceOptions) -> tuple[str, ...]:
    """Names of the unit files without suffix, sorted."""
    return tuple(find_files(corpus_dir, ".units"))


def iter_split(corpus_dir: Path, split: str, options: SourceOptions) -> Iterator[SourceItem]:
    """Yields the lines of a unit file in their order, then what only the transcripts have.

    Raises:
        ConfigError: The size given is beyond that of any codebook.
    """
    path = find_files(corpus_dir, ".units")[split]
    inventory = _take_inventory(corpus_dir, options)
    texts, faults = _read_texts(path.with_suffix(".txt"))
    for line in iter_lines(path):
        key, ids = _split_key(line.text or line.key)
        text = texts.pop(key, None)
        if fault := line.fault or _find_fault(key, ids, inventory.num_tokens):
            reason = fault if line.fault else f"{line.where}: {fault}"
            yield Broken(key=key if is_key(key) else line.key, source=NAME, split=split, reason=reason)
        else:
            yield UnitLine(
                key=key,
                source=NAME,
                split=split,
                units=ids,
                inventory=inventory,
                text=text,
                language=options.language if text else None,
            )
    yield from (Broken(key=key, source=NAME, split=split, reason=fault) for key, fault in faults.items())
    for key in texts:
        yield Skipped(
            key=key, source=NAME, split=split, reason="transcript without units", recording_id=split
        )


def _take_inventory(corpus_dir: Path, options: SourceOptions) -> UnitInventory:
    """Name and size of the codebook, as given or from all files, so that all splits have the same."""
    paths = find_files(corpus_dir, ".units").values()
    name = options.units_name or f"sha256:{sha256_json([sha256_file(path) for path in paths])[:16]}"
    lines = (_split_key(line.text or line.key)[1] for path in paths for line in iter_lines(path))
    num_units = options.num_units or 1 + max(map(_largest, filter(_IDS.fullmatch, lines)), default=0)
    if num_units > MAX_UNITS:
        raise ConfigError(f"--num-units {num_units}: no codebook is so large; the limit is {MAX_UNITS}")
    return UnitInventory(name=name, num_tokens=num_units)


def _split_key(text: str) -> tuple[str, str]:
    key, *rest = text.split(maxsplit=1)
    return key, " ".join(rest[0].split()) if rest else ""


def _find_fault(key: str, ids: str, num_tokens: int) -> str | None:
    if not is_key(key):
        return f"key {key[:80]!r} must be letters, digits, '_' or '-'"
    if not _IDS.fullmatch(ids):
        return "expected ids with spaces between them behind the key"
    if (largest := max(map(int, ids.split()))) >= num_tokens:
        return f"id {largest} is not in [0, {num_tokens})"
    return None


def _largest(ids: str) -> int:
    """Largest id, without those that cannot be one."""
    return max((number for number in map(int, ids.split()) if number < MAX_UNITS), default=0)


def _read_texts(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Transcripts by key, in the order of the lines, and faults by line; none without that file."""
    texts: dict[str, str] = {}
    faults: dict[str, str] = {}
    for line in iter_lines(path) if path.is_file() else ():
        key, text = _split_key(line.text or line.key)
        if line.fault:
            faults[f"{line.key}-text"] = line.fault
        elif not is_key(key) or key in texts:
            faults[f"{line.key}-text"] = f"{line.where}: {key[:80]!r} is no key, or has a line already"
        else:
            texts[key] = text
    return texts, faults
