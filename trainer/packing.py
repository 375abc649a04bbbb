"""Packing: sequences of any length -> rows of a bounded number of tokens, without padding.

A packed row is one long sequence of sequences. Positions restart at each of them, and attention runs within
each of them (`model.packed_attention`), so nothing can leak and no token is padding.

Suffixes: T token of the packed row, N token that carries loss.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from dmlm.pipeline.samples import TokenArray
from dmlm.trainer.tasks import GIVEN, TaskSequence

Item = TypeVar("Item")


class Packer(Generic[Item]):
    """Best-fit packing into a few open rows; each item comes out exactly once."""

    def __init__(self, capacity: int, num_open_rows: int) -> None:
        self._capacity, self._num_open_rows = capacity, num_open_rows
        self.open_rows: list[list[tuple[Item, int]]] = []
        """Items and lengths that wait for their row to be full; may be set to go on from there."""

    def add(self, item: Item, length: int) -> list[Item] | None:
        """Places an item in the open row that it fills best.

        Returns:
            A row that had to be closed to make room, or that this item filled; else None.

        Raises:
            ValueError: The item is longer than a row.
        """
        if length > self._capacity:
            raise ValueError(f"length {length} is over the capacity of {self._capacity}")
        fitting = [row for row in self.open_rows if self._free(row) >= length]
        if fitting:
            best = min(fitting, key=self._free)
            best.append((item, length))
            return self._close(best) if self._free(best) == 0 else None
        closed = None
        if len(self.open_rows) == self._num_open_rows:
            closed = self._close(min(self.open_rows, key=self._free))
        self.open_rows.append([(item, length)])
        return closed

    def flush(self) -> Iterator[list[Item]]:
        """Closes the rows that are still open."""
        while self.open_rows:
            yield self._close(self.open_rows[0])

    def _free(self, row: list[tuple[Item, int]]) -> int:
        return self._capacity - sum(length for _, length in row)

    def _close(self, row: list[tuple[Item, int]]) -> list[Item]:
        # By identity: rows of equal content are different rows.
        self.open_rows = [other for other in self.open_rows if other is not row]
        return [item for item, _ in row]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedBatch:
    """One packed row: a micro-batch."""

    tokens_T: Tensor
    positions_T: Tensor
    """Position of each token in its own sequence."""
    lengths: tuple[int, ...]
    """Of the sequences, in order; they add up to T."""
    keys: tuple[str, ...]
    """Of the samples, in order."""
    tasks: tuple[str, ...]
    """Names of the tasks, in order."""
    predictors_N: Tensor
    """Places in the row whose next token carries loss."""
    targets_N: Tensor
    """That next token."""
    modality_N: Tensor
    """Code of the modality that its loss goes to."""
    sequence_N: Tensor
    """Number of its sequence in the row."""

    def to(self, device: torch.device) -> "PackedBatch":
        """The same batch on another device."""
        tensors = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in (*("tokens_T", "positions_T"), *_LOSS_FIELDS)
        }
        return PackedBatch(lengths=self.lengths, keys=self.keys, tasks=self.tasks, **tensors)


_LOSS_FIELDS = ("predictors_N", "targets_N", "modality_N", "sequence_N")


def pack_sequences(
    sequences: Sequence[TaskSequence],
    *,
    keys: Sequence[str] = (),
    tasks: Sequence[str] = (),
    inputs: Sequence[TokenArray] | None = None,
) -> PackedBatch:
    """Puts sequences into one packed row.

    Args:
        sequences: What is predicted.
        keys: Of their samples.
        tasks: Names of their tasks.
        inputs: What the model sees in their place, of the same lengths; None: the sequences themselves.
    """
    lengths = [len(sequence.tokens_T) for sequence in sequences]
    tokens_T = np.concatenate([sequence.tokens_T for sequence in sequences])
    modality_T = np.concatenate([sequence.modality_T for sequence in sequences])
    # The first token of a sequence is BOS, which is given: no token is predicted across a border.
    predicted_N = np.flatnonzero(modality_T != GIVEN)
    return PackedBatch(
        tokens_T=_long(tokens_T if inputs is None else np.concatenate(inputs)),
        positions_T=_long(np.concatenate([np.arange(length) for length in lengths])),
        lengths=tuple(lengths),
        keys=tuple(keys),
        tasks=tuple(tasks),
        predictors_N=_long(predicted_N - 1),
        targets_N=_long(tokens_T[predicted_N]),
        modality_N=_long(modality_T[predicted_N]),
        sequence_N=_long(np.repeat(np.arange(len(lengths)), lengths)[predicted_N]),
    )


def _long(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.int64))
