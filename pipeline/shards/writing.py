"""Samples -> one shard: the tar, then the index that vouches for it; each whole or not there."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

import pyarrow as pa

from dmlm.pipeline.errors import ShardCorruptError
from dmlm.pipeline.quarantine import LedgerEntry
from dmlm.pipeline.samples import Sample
from dmlm.pipeline.shards.card import ShardRecord
from dmlm.pipeline.shards.format import check_sample_ids, count_ids, encode_members
from dmlm.pipeline.shards.index import (
    ShardFooter,
    audio_seconds_in,
    build_index,
    index_row,
    num_tokens_in_index,
    read_index,
    write_index,
)
from dmlm.pipeline.shards.ustar import END_OF_TAR, Span, padding_of, tar_header
from dmlm.pipeline.storage import atomic_writer, sha256_file
from dmlm.pipeline.vocabulary import Vocabulary


class FinishedShard(NamedTuple):
    """A shard on disk."""

    record: ShardRecord
    footer: ShardFooter


class _TarWriter:
    """Appends members to a file and hashes what it writes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash, self.num_bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.num_bytes += len(data)

    def write_member(self, name: str, payload: bytes) -> Span:
        self.write(tar_header(name, len(payload)))
        span = Span(self.num_bytes, len(payload))
        self.write(payload + bytes(padding_of(len(payload))))
        return span

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def write_shard(
    directory: Path,
    name: str,
    samples: Iterable[Sample],
    vocabulary: Vocabulary,
    *,
    task_sha256: str,
    num_in: int,
    ledger: tuple[LedgerEntry, ...] = (),
) -> FinishedShard:
    """Writes `name`.tar and then `name`.parquet; the same arguments give the same bytes.

    Raises:
        CorruptInputError: An id is outside its modality's range.
        SampleError: A sample cannot be written, see `encode_members`.
        OSError: The disk is full or fails.
    """
    with atomic_writer(directory / f"{name}.tar", is_shared=True) as file:
        tar = _TarWriter(file)
        index = build_index(_write_samples(tar, samples, vocabulary))
        tar.write(END_OF_TAR)
    footer = ShardFooter(
        tar_sha256=tar.sha256,
        tar_bytes=tar.num_bytes,
        task_sha256=task_sha256,
        num_in=num_in,
        audio_seconds=audio_seconds_in(index),
        vocabulary=vocabulary,
        ledger=ledger,
    )
    index_path = directory / f"{name}.parquet"
    write_index(index_path, index, footer)
    return FinishedShard(_record(name, index_path, index, footer), footer)


def _write_samples(
    tar: _TarWriter, samples: Iterable[Sample], vocabulary: Vocabulary
) -> Iterator[Mapping[str, object]]:
    num_ids = count_ids(vocabulary)
    for sample in samples:
        check_sample_ids(sample, num_ids)
        members = encode_members(sample)
        spans = {suffix: tar.write_member(f"{sample.key}.{suffix}", payload) for suffix, payload in members}
        yield index_row(sample, spans)


def finished_shard(directory: Path, name: str, task_sha256: str) -> FinishedShard | None:
    """The shard, when it is whole and was made from just that; None when it has to be written (again)."""
    tar_path, index_path = directory / f"{name}.tar", directory / f"{name}.parquet"
    if not tar_path.is_file() or not index_path.is_file():
        return None
    try:
        index, footer = read_index(index_path)
    except ShardCorruptError:
        return None
    if footer.task_sha256 != task_sha256 or sha256_file(tar_path) != footer.tar_sha256:
        return None
    return FinishedShard(_record(name, index_path, index, footer), footer)


def _record(name: str, index_path: Path, index: pa.Table, footer: ShardFooter) -> ShardRecord:
    return ShardRecord(
        name=name,
        tar_sha256=footer.tar_sha256,
        tar_bytes=footer.tar_bytes,
        index_sha256=sha256_file(index_path),
        task_sha256=footer.task_sha256,
        num_samples=len(index),
        num_tokens=num_tokens_in_index(index),
    )
