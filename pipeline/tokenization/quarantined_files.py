"""The files of quarantined items: what they are, and whether they are others than they were.

A task knows files by name and size only, so a file repaired to the same size changes no task; hashing every
file of a corpus to notice it would cost more than encoding some. The few that the ledger names are hashed.
"""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from dmlm.pipeline.quarantine import LedgerEntry
from dmlm.pipeline.samples import ImageCaption, SourceItem, Utterance
from dmlm.pipeline.storage import sha256_file
from dmlm.pipeline.tokenization.shard_tasks import ShardTask


def file_of(item: SourceItem) -> Path | None:
    """Recording or image of an item; None where there is none."""
    match item:
        case Utterance():
            return item.audio_path
        case ImageCaption():
            return item.image_path
        case _:
            return None


def sha256_if_readable(path: Path) -> str | None:
    """Hexadecimal sha256 of a file; None where it cannot be read, which may be why it is quarantined."""
    try:
        return sha256_file(path) if path.is_file() else None
    except OSError:
        return None


def has_changed_files(task: ShardTask, ledger: Iterable[LedgerEntry]) -> bool:
    """Whether a file of `task` that is quarantined in `ledger` is not the one that was quarantined."""
    sha256_of = cache(sha256_if_readable)  # the captions of one image are as many entries
    # Broken annotations end at the source; their key may be that of another item, which has a file.
    before = {e.key: e.sha256 for e in ledger if e.outcome == "quarantined" and e.stage != "source"}
    suspects = [(before[item.key], file_of(item)) for item in task.items if item.key in before]
    return any(path is not None and sha256_of(path) != sha256 for sha256, path in suspects)
