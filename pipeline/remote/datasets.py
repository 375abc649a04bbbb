"""Data sets at an address.

Written: each shard is uploaded as soon as it is whole, and the card last of all, when every file that it
names has been read back. Read: the files that the card names are mirrored, each compared with its sha256,
and the card last of all. So neither side is a data set before it is a whole one.
"""

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from dmlm.pipeline.errors import CorruptInputError, ShardCorruptError
from dmlm.pipeline.remote.folder import MissingFileError, RemoteFolder, alone_in, in_parallel
from dmlm.pipeline.shards import DatasetCard
from dmlm.pipeline.shards.card import CARD_NAME, parse_dataset_card
from dmlm.pipeline.storage import has_sha256, write_bytes

SHARD_SUFFIXES = (".tar", ".parquet")
"""In the order of uploading: an index vouches for its tar."""
STALE_SECONDS: Final = 24 * 3600
"""What nobody has written to for so long has been left by a killed run."""


def fetch_dataset(remote: RemoteFolder, *, is_afresh: bool = False) -> Path:
    """Mirrors a finished data set; its folder here.

    Args:
        remote: Where it is.
        is_afresh: Read every byte from there, also of the files that are here and whole.

    Raises:
        ShardCorruptError: There is no finished data set, or a file is missing or not what the card says.
        StorageError: The address cannot be reached.
    """
    with alone_in(remote.local):
        content, sums = _read_card(remote)
        card_path = remote.local / CARD_NAME
        if not card_path.is_file() or card_path.read_bytes() != content:
            card_path.unlink(missing_ok=True)

        def fetch(name: str) -> None:
            if is_afresh or not has_sha256(remote.local / name, sums[name]):
                remote.fetch(name, lambda path: has_sha256(path, sums[name]))

        try:
            in_parallel(fetch, list(sums), f"mirror {remote.address} in {remote.local}")
        except (MissingFileError, CorruptInputError) as error:
            raise ShardCorruptError(str(error)) from error
        _remove_others(remote.local, sums)
        write_bytes(card_path, content)
    return remote.local


def fetch_missing(remote: RemoteFolder, names: Iterable[str]) -> None:
    """Mirrors those of the files that are there and not here, unchecked: who reads them checks them."""
    there = remote.list_files()
    missing = [name for name in names if name in there and not (remote.local / name).exists()]
    if missing:
        in_parallel(remote.fetch, missing, f"mirror {remote.address} in {remote.local}")


def fetch_shards(remote: RemoteFolder, names: Iterable[str]) -> None:
    """Mirrors what others have uploaded of these shards."""
    fetch_missing(remote, [name + suffix for name in names for suffix in SHARD_SUFFIXES])


def fetch_unfinished(remote: RemoteFolder, names: Iterable[str]) -> None:
    """Mirrors what others have uploaded of these shards, and of the rest if it was finished once."""
    fetch_missing(remote, [CARD_NAME])
    fetch_shards(remote, names)
    card_path = remote.local / CARD_NAME
    if card_path.is_file():
        try:
            card = parse_dataset_card(card_path.read_bytes(), str(card_path))
        except ShardCorruptError:  # it will be written again
            return
        fetch_missing(remote, card.files)


def send_shard(remote: RemoteFolder, name: str) -> None:
    """Uploads a shard, unless it is there already."""
    for suffix in SHARD_SUFFIXES:
        remote.send(name + suffix)


def send_dataset(remote: RemoteFolder, card: DatasetCard) -> None:
    """Publishes the data set of `remote.local`: compares every file, uploads what differs, and the card last.

    Raises:
        StorageError: The address cannot be reached; there is no card there then, or the one before.
    """
    names = [record.name + suffix for record in card.shards for suffix in SHARD_SUFFIXES]
    in_parallel(remote.send, [*names, *card.files], f"publish {remote.address}")
    remote.send(CARD_NAME)


def _read_card(remote: RemoteFolder) -> tuple[bytes, dict[str, str]]:
    """The card as it is there, and the sha256 of every other file of the data set."""
    try:
        content = remote.read(CARD_NAME)
    except MissingFileError as error:
        raise ShardCorruptError(
            f"{remote.address}: not a finished data set: {CARD_NAME} is missing; rerun `dmlm-cli tokenize`"
        ) from error
    card = parse_dataset_card(content, f"{remote.address}/{CARD_NAME}")
    sums = {f"{record.name}.tar": record.tar_sha256 for record in card.shards}
    sums |= {f"{record.name}.parquet": record.index_sha256 for record in card.shards}
    return content, {**sums, **card.files}


def _remove_others(directory: Path, kept: Iterable[str]) -> None:
    """Shards of an earlier data set at the same address, and what a killed run had fetched of a file."""
    kept = set(kept)
    for path in directory.rglob("*.????????.tmp"):
        with suppress(FileNotFoundError):  # a writer that is at work in the mirror has just finished it
            if path.stat().st_mtime < time.time() - STALE_SECONDS:
                path.unlink()
    for path in directory.iterdir():
        if path.suffix in SHARD_SUFFIXES and path.name not in kept:
            path.unlink()
