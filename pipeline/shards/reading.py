"""Shard -> token arrays without a copy: the tar is mapped, the index says where everything lies."""

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dmlm.pipeline.errors import CorruptInputError, ShardCorruptError
from dmlm.pipeline.samples import Sample, TokenArray
from dmlm.pipeline.shards.card import check_dataset_folder, load_dataset_card
from dmlm.pipeline.shards.format import (
    MODALITY_OF,
    TokenMember,
    check_sample_ids,
    count_ids,
    decode_npy,
    decode_sample,
)
from dmlm.pipeline.shards.index import read_index, span_columns
from dmlm.pipeline.shards.ustar import SUFFIXES, Span
from dmlm.pipeline.vocabulary import check_ids

PLACE_COLUMNS: Final = tuple(name for suffix in SUFFIXES for name in span_columns(suffix))


class ShardReader:
    """Random access to the samples of one shard.

    Arrays that `read_tokens` and `read_sample` give are read-only views of the mapped tar; they keep it open.
    """

    def __init__(self, directory: Path, name: str, columns: Sequence[str] | None = None) -> None:
        """Opens `name`.tar and `name`.parquet; checksums are `verify_dataset`'s work.

        Args:
            directory: Folder of the data set.
            name: Of the shard, as the card has it.
            columns: Of the index, for who needs but a few beside the places of the tokens; None: all.
        """
        self.name = name
        if columns is not None:
            columns = [*columns, *PLACE_COLUMNS]
        self.index, self.footer = read_index(directory / f"{name}.parquet", columns)
        self.tar_path = directory / f"{name}.tar"
        self.tar = map_file(self.tar_path)
        """Its bytes, mapped."""
        if len(self.tar) != self.footer.tar_bytes:
            raise ShardCorruptError(
                f"{name}.tar: {len(self.tar)} bytes, its index says {self.footer.tar_bytes}; "
                "rerun `dmlm-cli tokenize`"
            )
        self.num_ids = count_ids(self.footer.vocabulary)
        """Ids that each member may have."""
        self._spans = {suffix: _span_array(self.index, suffix) for suffix in SUFFIXES}

    def __len__(self) -> int:
        return len(self.index)

    def spans(self, suffix: str) -> npt.NDArray[np.int64]:
        """Offset and size in bytes of a member in each row, row × 2; -1 where the sample lacks it."""
        return self._spans[suffix]

    def read_tokens(self, row: int, member: TokenMember) -> TokenArray:
        """Ids of one member of the sample in `row`, modality-local, without a copy.

        Raises:
            KeyError: The sample has no such member.
            ShardCorruptError: The index does not point at an array of such ids.
        """
        span = self._span(row, f"{member}.npy")
        if span is None:
            raise KeyError(f"{self.name}.tar: row {row} has no {member}")
        try:
            tokens = decode_npy(span.of(self.tar))
            check_ids(tokens, self.num_ids[member], MODALITY_OF[member])
        except CorruptInputError as error:
            raise self._corrupt(row, error) from error
        return tokens

    def read_sample(self, row: int) -> Sample:
        """The whole sample in `row`.

        Raises:
            ShardCorruptError: The index does not point at a sample, or an id is out of range.
        """
        spans = {suffix: span for suffix in SUFFIXES if (span := self._span(row, suffix)) is not None}
        try:
            sample = decode_sample(self.tar, spans)
            check_sample_ids(sample, self.num_ids)
        except CorruptInputError as error:
            raise self._corrupt(row, error) from error
        return sample

    def _span(self, row: int, suffix: str) -> Span | None:
        offset, size = self._spans[suffix][row].tolist()
        return None if offset < 0 else Span(offset, size)

    def _corrupt(self, row: int, error: CorruptInputError) -> ShardCorruptError:
        return ShardCorruptError(
            f"{self.name}.tar: row {row}: {error}; see `dmlm-cli verify`, then rerun `dmlm-cli tokenize`"
        )


def open_shard(directory: Path, name: str, columns: Sequence[str] | None = None) -> ShardReader:
    """Reader of the shard `name` (as the card names it) in a data set's folder, see `ShardReader`.

    Raises:
        ConfigError: `directory` is not a local folder.
        ShardCorruptError: The shard is missing, cut, or its index cannot be read.
    """
    check_dataset_folder(directory)
    return ShardReader(directory, name, columns)


def iter_samples(directory: Path) -> Iterator[Sample]:
    """Yields every sample of a finished data set, in order."""
    for record in load_dataset_card(directory).shards:
        shard = open_shard(directory, record.name)
        for row in range(len(shard)):
            yield shard.read_sample(row)


def map_file(path: Path) -> memoryview:
    """Read-only view of a whole file; raises ShardCorruptError when it is missing or empty."""
    try:
        # Not `mmap`, which would keep a file open for each of a thousand shards.
        with pa.memory_map(str(path)) as file:
            content = memoryview(file.read_buffer()).cast("B")
    except (OSError, pa.ArrowException) as error:
        is_full = isinstance(error, OSError) and error.errno == errno.ENOMEM
        advice = "raise vm.max_map_count" if is_full else "rerun `dmlm-cli tokenize`"
        raise ShardCorruptError(f"{path.name}: cannot be read: {error}; {advice}") from error
    if not content:
        raise ShardCorruptError(f"{path.name}: is empty; rerun `dmlm-cli tokenize`")
    return content


def _span_array(index: pa.Table, suffix: str) -> npt.NDArray[np.int64]:
    columns = [index[name].combine_chunks().fill_null(-1).to_numpy() for name in span_columns(suffix)]
    return np.stack(columns, axis=1)
