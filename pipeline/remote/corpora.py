"""Corpora at an address: all files below it are mirrored before the work begins."""

import logging
from collections.abc import Mapping
from pathlib import Path

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.remote.folder import RemoteFolder, alone_in, in_parallel

_logger = logging.getLogger(__name__)


def fetch_corpus(remote: RemoteFolder) -> Path:
    """Mirrors every file; the folder here. A corpus has no checksums: files of the right size are kept.

    Raises:
        ConfigError: There is nothing, or a file.
        CorruptInputError: A file came with another size than the listing has.
        StorageError: The address cannot be reached.
    """
    there = remote.list_files()
    if not there:
        if remote.is_file():
            raise ConfigError(f"{remote.address}: a file; give the address of its folder")
        raise ConfigError(f"{remote.address}: nothing there; check the address")
    with alone_in(remote.local):
        _mirror(remote, there)
    return remote.local


def _mirror(remote: RemoteFolder, there: Mapping[str, int]) -> None:
    missing = [name for name, size in there.items() if not _has_size(remote.local / name, size)]
    _logger.warning(
        "%s: %d files, %.1f MB; to be fetched into %s: %d files, %.1f MB",
        *(remote.address, len(there), sum(there.values()) / 1e6),
        *(remote.local, len(missing), sum(there[name] for name in missing) / 1e6),
    )

    def fetch(name: str) -> None:
        remote.fetch(name, lambda path: _has_size(path, there[name]))

    if missing:
        in_parallel(fetch, missing, f"mirror {remote.address}")
    for path in remote.local.rglob("*"):
        if path.is_file() and path.relative_to(remote.local).as_posix() not in there:
            path.unlink()


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
