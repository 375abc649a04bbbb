"""Tokens of many samples at once, from any of many shards: what training reads.

What can be checked of many arrays together costs little: their places when the table is opened, their headers
and ids whenever they are read.

Suffixes: N sample, M member, A array that is read, P page of an array, T token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dmlm.pipeline.errors import ShardCorruptError
from dmlm.pipeline.samples import TokenArray
from dmlm.pipeline.shards.format import NPY_HEADER_BYTES, TOKEN_MEMBERS, TokenMember, npy_header
from dmlm.pipeline.shards.reading import ShardReader, map_file

NUM_MEMBERS: Final = len(TOKEN_MEMBERS)
TOKEN_BYTES: Final = 4
PAGE_BYTES: Final = 4096
HEADER: Final = np.dtype(f"V{NPY_HEADER_BYTES}")
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShardTokens:
    """Where the token arrays of a shard lie: all that is kept of its index, which is larger."""

    name: str
    path: Path
    tar: memoryview
    num_ids_M: tuple[int, ...]
    """Ids that each member may have."""
    starts_NM: IntArray
    """First byte of each array."""
    counts_NM: npt.NDArray[np.int32]
    """Tokens of each array; -1 where there is none."""

    @classmethod
    def of(cls, shard: ShardReader, num_samples: int) -> "ShardTokens":
        """Of the first `num_samples`.

        Raises:
            ShardCorruptError: The index points where no array can lie.
        """
        starts_NM, counts_NM = _places_of(shard, num_samples)
        return cls(
            name=shard.name,
            path=shard.tar_path,
            tar=shard.tar,
            num_ids_M=tuple(shard.num_ids[name] for name in TOKEN_MEMBERS),
            starts_NM=starts_NM,
            counts_NM=counts_NM,
        )


class TokenTable:
    """The token arrays of several shards; samples are numbered through.

    An array is named by its place: `NUM_MEMBERS * sample + TOKEN_MEMBERS.index(member)`.
    """

    def __init__(self, shards: Sequence[ShardTokens]) -> None:
        self._names = [shard.name for shard in shards]
        self._paths = [shard.path for shard in shards]
        self._tars = [shard.tar for shard in shards]
        self._num_samples = [len(shard.counts_NM) for shard in shards]
        self._starts = np.concatenate([shard.starts_NM.ravel() for shard in shards])
        self._counts = np.concatenate([shard.counts_NM.ravel() for shard in shards])
        self._num_ids = np.array([shard.num_ids_M for shard in shards])
        is_count = np.bincount(self._counts + 1)[1:] > 0
        self._headers = np.array([*map(npy_header, np.flatnonzero(is_count).tolist())], HEADER)
        """Of all numbers of tokens that an array has."""
        self._header_of_count = is_count.cumsum(dtype=np.int32) - 1
        """Place of the header of each number of tokens, if any array has it."""
        self._shard_N = np.repeat(np.arange(len(shards), dtype=np.int32), self._num_samples)

    def __getstate__(self) -> dict[str, Any]:
        """For a loader's worker that is not forked: it maps the tars itself."""
        return {name: value for name, value in vars(self).items() if name != "_tars"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._tars = [map_file(path) for path in self._paths]

    def counts(self, places_A: IntArray) -> IntArray:
        """Tokens of each array; -1 where the sample lacks it."""
        return self._counts[places_A].astype(np.int64)

    def fetch(self, places_A: IntArray) -> Iterator[str]:
        """Brings arrays into memory, shard by shard; names each shard before it waits for its disk.

        NumPy waits without the GIL, so no other thread has to; the slices of `payloads` would keep it.
        """
        places_A = np.sort(places_A)  # by shard, and there as they lie
        starts_A, counts_A = self._starts.take(places_A), self._counts.take(places_A)
        first_A = (starts_A - NPY_HEADER_BYTES) // PAGE_BYTES
        num_pages_A = (starts_A + TOKEN_BYTES * counts_A.clip(0) - 1) // PAGE_BYTES - first_A + 1
        ends_A = num_pages_A.cumsum()
        pages_P = (first_A - ends_A + num_pages_A).repeat(num_pages_A)
        offsets_P = PAGE_BYTES * (pages_P + np.arange(len(pages_P)))
        start = 0
        for shard, part in self._cut_by_shard(places_A):
            yield self._names[shard]
            stop = ends_A.item(part.stop - 1)
            np.frombuffer(self._tars[shard], np.uint8).take(offsets_P[start:stop], mode="clip")
            start = stop

    def payloads(self, places_A: IntArray) -> list[memoryview]:
        """The int32 tokens of each array as bytes of the mapped tar: not copied, and cheaper than arrays.

        Their headers are checked; their ids are not, see `check_ids`.

        Raises:
            ShardCorruptError: A sample lacks its array, or the index does not point at one.
        """
        starts_A, counts_A = self._starts.take(places_A), self._counts.take(places_A)
        starts, tars = starts_A.tolist(), [self._tars[shard] for shard in self._shards_of(places_A).tolist()]
        if counts_A.min(initial=0) < 0 or not self._has_headers(tars, starts, counts_A):
            self._raise_bad_header(places_A)
        stops = (starts_A + TOKEN_BYTES * counts_A).tolist()
        return [tar[start:stop] for tar, start, stop in zip(tars, starts, stops, strict=True)]

    def check_ids(self, places_A: IntArray, tokens_T: TokenArray, starts_A: IntArray) -> None:
        """Checks the ids of arrays that were copied to `starts_A` of `tokens_T`, in that order.

        Raises:
            ShardCorruptError: An id is not in its member's range.
        """
        counts_A = self._counts[places_A]
        if not counts_A.all():  # nothing of an empty array is out of range
            places_A, starts_A, counts_A = (array[counts_A > 0] for array in (places_A, starts_A, counts_A))
        borders = np.empty(2 * len(places_A), np.int64)
        borders[::2], borders[1::2] = starts_A, starts_A + counts_A
        # As uint32 an id below 0 is huge, so the largest tells of both ends of the range.
        ids_T = tokens_T.view(np.uint32)
        largest_A = np.maximum.reduceat(ids_T, borders[borders < len(ids_T)])[::2].copy()
        shards_A = self._shards_of(places_A)
        num_ids_A = self._num_ids[shards_A, places_A % NUM_MEMBERS]
        if (largest_A >= num_ids_A).any():
            worst = int(np.argmax(largest_A >= num_ids_A))
            raise self._corrupt(
                int(places_A[worst]),
                f"ids must be in [0, {num_ids_A[worst]}), found {largest_A.view(np.int32)[worst]}",
            )

    def read(self, samples_N: IntArray, member: TokenMember) -> tuple[TokenArray, IntArray]:
        """Tokens of one member of many samples.

        Returns:
            Modality-local ids, one array behind the other, and the number of tokens of each.

        Raises:
            ShardCorruptError: A sample lacks the member, or its array is damaged.
        """
        places_A = NUM_MEMBERS * samples_N + TOKEN_MEMBERS.index(member)
        tokens_T = np.frombuffer(b"".join(self.payloads(places_A)), "<i4")
        counts_A = self.counts(places_A)
        # Where the largest of all suits every shard, none need be looked at alone.
        if tokens_T.view(np.uint32).max(initial=0) >= self._num_ids[:, TOKEN_MEMBERS.index(member)].min():
            self.check_ids(places_A, tokens_T, np.cumsum(counts_A) - counts_A)
        return tokens_T, counts_A

    def shard_of(self, sample: int) -> str:
        """Name of the shard that a sample lies in."""
        return self._names[int(self._shard_N[sample])]

    @cached_property
    def _first_samples(self) -> IntArray:
        return np.cumsum([0, *self._num_samples])

    def _has_headers(
        self, tars: list[memoryview], starts: list[int], counts_A: npt.NDArray[np.int32]
    ) -> bool:
        """Whether each array has the header that the writer gives one of its size."""
        found = b"".join(
            [tar[start - NPY_HEADER_BYTES : start] for tar, start in zip(tars, starts, strict=True)]
        )
        return found == self._headers.take(self._header_of_count.take(counts_A)).tobytes()

    def _shards_of(self, places_A: IntArray) -> npt.NDArray[np.int32]:
        return self._shard_N.take(places_A // NUM_MEMBERS)

    def _cut_by_shard(self, places_A: IntArray) -> Iterator[tuple[int, slice]]:
        """The shards that sorted places lie in, each with its part of the places."""
        shard_A = self._shards_of(places_A)
        borders = (np.flatnonzero(shard_A[1:] != shard_A[:-1]) + 1).tolist()
        for start, stop in pairwise((0, *borders, len(shard_A))):
            if start < stop:
                yield shard_A.item(start), slice(start, stop)

    def _raise_bad_header(self, places_A: IntArray) -> None:
        for place in places_A.tolist():
            sample, member = divmod(place, NUM_MEMBERS)
            start, count = int(self._starts[place]), int(self._counts[place])
            if count < 0:
                raise self._corrupt(place, f"has no {TOKEN_MEMBERS[member]}, but its index counts some")
            if self._tars[self._shard_N[sample]][start - NPY_HEADER_BYTES : start] != npy_header(count):
                raise self._corrupt(place, "not an npy array of int32 tokens")

    def _corrupt(self, place: int, problem: str) -> ShardCorruptError:
        sample, member = divmod(place, NUM_MEMBERS)
        shard = int(self._shard_N[sample])
        row = sample - int(self._first_samples[shard])
        return ShardCorruptError(
            f"{self._names[shard]}.tar: row {row}: {TOKEN_MEMBERS[member]}: {problem}; "
            "see `dmlm-cli verify`, then rerun `dmlm-cli tokenize`"
        )


def _places_of(shard: ShardReader, num_samples: int) -> tuple[IntArray, npt.NDArray[np.int32]]:
    """First byte and number of tokens of each array, sample × member; -1 tokens where there is none."""
    spans_NM2 = np.stack([shard.spans(f"{name}.npy")[:num_samples] for name in TOKEN_MEMBERS], axis=1)
    offsets_NM, sizes_NM = spans_NM2[..., 0], spans_NM2[..., 1]
    missing_NM = (offsets_NM < 0) & (sizes_NM < 0)
    possible_NM = (offsets_NM >= 0) & (sizes_NM >= NPY_HEADER_BYTES)
    possible_NM &= sizes_NM % TOKEN_BYTES == 0
    possible_NM &= offsets_NM + sizes_NM <= shard.footer.tar_bytes
    if not (possible_NM | missing_NM).all():
        row = int(np.argmin((possible_NM | missing_NM).all(axis=1)))
        raise ShardCorruptError(
            f"{shard.name}.parquet: row {row}: points where no array can lie; rerun `dmlm-cli tokenize`"
        )
    offsets_NM = np.where(missing_NM, 0, offsets_NM)
    counts_NM = np.where(missing_NM, -1, (sizes_NM - NPY_HEADER_BYTES) // TOKEN_BYTES)
    return offsets_NM + NPY_HEADER_BYTES, counts_NM.astype(np.int32)
