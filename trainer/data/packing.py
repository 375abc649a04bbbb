"""Packing: sequences of any length -> rows of a bounded number of tokens, without padding.

A packed row is one long sequence of sequences. Positions restart at each of them, and attention runs within
each of them (`attention.py`), so nothing can leak and no token is padding.

Suffixes: R row, S sequence, P part of a sequence, U run of targets, T token, N token that carries loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dmlm.pipeline.samples import TokenArray
from dmlm.trainer.data.tasks import GIVEN, TaskSequence

Item = TypeVar("Item")
IntArray = npt.NDArray[np.int64]


class Packer(Generic[Item]):
    """Fills rows with drawn items; each comes out once, at most `pool_size` rows after it was drawn.

    A row takes the oldest item and then, as early as possible, others that fill it to the last token; where
    no choice among `pool_size` items does, the choice that leaves least free. So rows are full and yet nearly
    in the order of the draws: nothing is sorted by length.
    """

    def __init__(self, capacity: int, pool_size: int, draw: Callable[[], tuple[Item, int]]) -> None:
        """Takes items and their lengths from `draw`, which never ends."""
        self._capacity, self._pool_size, self._draw = capacity, pool_size, draw
        self.pool: list[tuple[Item, int]] = []
        """Items that were drawn and wait, oldest first; may be set to go on from there."""

    def next_row(self) -> list[Item]:
        """Items of the next row.

        Raises:
            ValueError: An item is longer than a row.
        """
        # Bit s of sums[i]: the oldest item and some of the next i add up to s. Integers have as many bits as
        # they need, so one shift adds an item to every sum at once.
        pool, full = self.pool, 1 << self._capacity
        sums: list[int] = []
        reachable = 0
        for place in range(self._pool_size):
            if place == len(pool):
                pool.append(self._fetch())
            length = pool[place][1]
            # Only the oldest item is in every sum.
            reachable = reachable | reachable << length if place else 1 << length
            if reachable >= full:
                reachable &= 2 * full - 1
            sums.append(reachable)
            if reachable >= full:
                break
        return self._take(sums)

    def _fetch(self) -> tuple[Item, int]:
        drawn = self._draw()
        if drawn[1] > self._capacity:
            raise ValueError(f"length {drawn[1]} is over the capacity of {self._capacity}")
        return drawn

    def _take(self, sums: list[int]) -> list[Item]:
        """Takes the items of the largest sum out of the pool, of equal choices the earliest."""
        pool, wanted = self.pool, sums[-1].bit_length() - 1
        row = []
        for place in range(len(sums) - 1, 0, -1):
            if not sums[place - 1] >> wanted & 1:
                item, length = pool.pop(place)
                wanted -= length
                row.append(item)
        return [pool.pop(0)[0], *reversed(row)]


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedBatch:
    """One packed row: a micro-batch.

    It travels as its tokens and a few numbers per sequence; the tensors are made on first use, on the device
    where they are needed.
    """

    lengths: tuple[int, ...]
    """Of the sequences, in order; they add up to T."""
    keys: tuple[str, ...]
    """Of the samples, in order."""
    tasks: tuple[str, ...]
    """Names of the tasks, in order."""
    num_targets: int
    """N."""
    buffer: Tensor
    """int32: what is predicted T, what the model sees T (unless it is the same), lengths S, runs 4 × U.

    A run is a stretch of targets of one sequence and one modality: its first token, its length, the code of
    its modality, the number of its sequence.
    """
    num_runs: int
    """U."""

    @property
    def tokens_T(self) -> Tensor:
        """What the model sees."""
        return self._tensors.tokens_T

    @property
    def positions_T(self) -> Tensor:
        """Position of each token in its own sequence."""
        return self._tensors.positions_T

    @property
    def predictors_N(self) -> Tensor:
        """Places in the row whose next token carries loss."""
        return self._tensors.predictors_N

    @property
    def targets_N(self) -> Tensor:
        """That next token."""
        return self._tensors.targets_N

    @property
    def modality_N(self) -> Tensor:
        """Code of the modality that its loss goes to."""
        return self._tensors.modality_N

    @property
    def sequence_N(self) -> Tensor:
        """Number of its sequence in the row."""
        return self._tensors.sequence_N

    @property
    def lengths_S(self) -> Tensor:
        """int32: the lengths, where the batch is."""
        end = len(self.buffer) - 4 * self.num_runs
        return self.buffer[end - len(self.lengths) : end]

    def to(self, device: torch.device) -> "PackedBatch":
        """The same batch on another device."""
        if self.buffer.device == device:
            return self
        return replace(self, buffer=self.buffer.to(device, non_blocking=True))

    def pin_memory(self) -> "PackedBatch":
        """The same batch where a GPU can fetch it while it computes."""
        return replace(self, buffer=self.buffer.pin_memory())

    def count_targets(self, num_modalities: int) -> Tensor:
        """Tokens that carry loss, by modality code; costs little wherever the batch is."""
        _, lengths_U, modality_U, _ = self._runs.view(4, self.num_runs).long()
        counts_M: Tensor = lengths_U.new_zeros(num_modalities)
        return counts_M.index_add_(0, modality_U, lengths_U)

    @property
    def _runs(self) -> Tensor:
        return self.buffer[len(self.buffer) - 4 * self.num_runs :]

    @cached_property
    def _tensors(self) -> "_Tensors":
        num_tokens, num_sequences = sum(self.lengths), len(self.lengths)
        buffer = self.buffer.long()
        starts_U, lengths_U, modality_U, sequence_U = self._runs.view(4, self.num_runs).long()
        end = len(buffer) - 4 * self.num_runs - num_sequences
        lengths_S = buffer[end : end + num_sequences]
        count = torch.arange(num_tokens, device=buffer.device)
        starts_S = lengths_S.cumsum(0) - lengths_S
        # Told the sizes, a device need not wait to find them out.
        run_N = count[: self.num_runs].repeat_interleave(lengths_U, output_size=self.num_targets)
        first_U = starts_U - 1 - (lengths_U.cumsum(0) - lengths_U)
        predictors_N = count[: self.num_targets] + first_U[run_N]
        return _Tensors(
            tokens_T=buffer[end - num_tokens : end],
            positions_T=count - starts_S.repeat_interleave(lengths_S, output_size=num_tokens),
            predictors_N=predictors_N,
            targets_N=buffer[predictors_N + 1],
            modality_N=modality_U[run_N],
            sequence_N=sequence_U[run_N],
        )


class _Tensors(NamedTuple):
    tokens_T: Tensor
    positions_T: Tensor
    predictors_N: Tensor
    targets_N: Tensor
    modality_N: Tensor
    sequence_N: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """Sequences end to end, cut into parts whose tokens carry the same loss."""

    tokens_T: TokenArray
    """What is predicted."""
    inputs_T: TokenArray | None
    """What the model sees; None: the same."""
    lengths_P: IntArray
    modality_P: npt.NDArray[np.int8]
    """Code of the modality that the loss of a part's tokens goes to, or GIVEN."""
    num_parts_S: IntArray
    """Of each sequence; its first is given: no token is predicted across a border."""
    keys: Sequence[str]
    """Of the sequences' samples."""
    tasks: Sequence[str]
    """Of the sequences."""


def pack_sequences(
    sequences: Sequence[TaskSequence],
    *,
    keys: Sequence[str] = (),
    tasks: Sequence[str] = (),
) -> PackedBatch:
    """Puts sequences into one packed row, for tests and benchmarks; training packs by `pack_rows`.

    Args:
        sequences: What is predicted, and what the model sees.
        keys: Of their samples.
        tasks: Names of their tasks.
    """
    tokens_T = np.concatenate([sequence.tokens_T for sequence in sequences])
    parts = Parts(
        tokens_T=tokens_T,
        inputs_T=None,
        lengths_P=np.ones(len(tokens_T), np.int64),
        modality_P=np.concatenate([sequence.modality_T for sequence in sequences]),
        num_parts_S=np.array([len(sequence.tokens_T) for sequence in sequences]),
        keys=keys,
        tasks=tasks,
    )
    return pack_rows(parts, [len(sequences)])[0]


def pack_rows(parts: Parts, num_sequences: Sequence[int]) -> list[PackedBatch]:
    """Packs sequences into rows of `num_sequences` each; many rows at once cost little more than one."""
    lengths_P, loss_P = parts.lengths_P, parts.modality_P != GIVEN
    ends_P, ends_S, ends_R = lengths_P.cumsum(), parts.num_parts_S.cumsum(), np.cumsum(num_sequences)
    lengths_S = np.add.reduceat(lengths_P, ends_S - parts.num_parts_S)
    last_R = ends_S[ends_R - 1] - 1
    rows_T = np.concatenate([[0], ends_P[last_R]])
    number_S = count_up(np.asarray(num_sequences))
    start_S = rows_T[:-1].repeat(num_sequences)
    fields = (
        ends_P - lengths_P - start_S.repeat(parts.num_parts_S),
        lengths_P,
        parts.modality_P,
        number_S.repeat(parts.num_parts_S),
    )
    runs = np.stack([field.compress(loss_P) for field in fields]).astype(np.int32)

    tokens_T = [part.data for part in (parts.tokens_T, parts.inputs_T) if part is not None]
    small_S, lengths = lengths_S.astype(np.int32).data, lengths_S.tolist()
    ends = (ends_R, rows_T[1:], loss_P.cumsum()[last_R], (lengths_P * loss_P).cumsum()[last_R])
    batches = []
    s = t = r = n = 0
    for s_end, t_end, r_end, n_end in zip(*(column.tolist() for column in ends), strict=True):
        pieces: list[bytes | memoryview] = [
            *(tokens[t:t_end] for tokens in tokens_T),
            small_S[s:s_end],
            runs[:, r:r_end].tobytes(),
        ]
        batches.append(
            PackedBatch(
                lengths=tuple(lengths[s:s_end]),
                keys=tuple(parts.keys[s:s_end]),
                tasks=tuple(parts.tasks[s:s_end]),
                num_targets=n_end - n,
                num_runs=r_end - r,
                buffer=torch.frombuffer(bytearray().join(pieces), dtype=torch.int32),
            )
        )
        s, t, r, n = s_end, t_end, r_end, n_end
    return batches


def count_up(lengths_S: IntArray) -> IntArray:
    """0, 1, … below each length, one behind the other."""
    ends_S = lengths_S.cumsum()
    return np.arange(lengths_S.sum()) - (ends_S - lengths_S).repeat(lengths_S)
