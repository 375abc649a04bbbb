"""The endless stream of packed rows: draws by weight, shuffles by epoch, builds, packs; and its exact state.

TrainingData -> Group (task × sources) -> Draw -> TaskSequence -> PackedBatch

A group's weight is its share of the *tokens*. The next draw comes from the group that is furthest behind its
share, so shares are exact and need no randomness.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dmlm.pipeline.errors import ConfigError, ShardCorruptError
from dmlm.pipeline.randomness import generator_for
from dmlm.pipeline.samples import TokenArray
from dmlm.trainer.config import MixEntry, Recipe
from dmlm.trainer.dataset import TrainingData
from dmlm.trainer.packing import PackedBatch, Packer, pack_sequences
from dmlm.trainer.tasks import (
    TASKS,
    Task,
    TaskSequence,
    add_noise,
    build_sequence,
    loss_token_counts,
    sequence_lengths,
)


@dataclass(slots=True, kw_only=True, eq=False)
class Group:
    """Samples of one entry of the mix, and how far the stream is in them."""

    name: str
    task: Task
    weight: float
    rows_N: npt.NDArray[np.int64]
    """Rows of the training data."""
    lengths_N: npt.NDArray[np.int64]
    """Of their sequences."""
    loss_tokens_M: npt.NDArray[np.int64]
    """Tokens of an epoch that carry loss, by modality code."""
    refused: Mapping[str, int]
    """Key and length of the samples whose sequence is too long."""
    num_tokens: int = 0
    """Drawn so far."""
    num_draws: int = 0
    order: tuple[int, npt.NDArray[np.int64]] = field(default=(-1, np.empty(0, np.int64)))
    """Epoch and its permutation; follows from `num_draws`."""

    def draw(self, seed: int) -> int:
        """Index of the next sample; every epoch is a permutation of its own."""
        epoch, place = divmod(self.num_draws, len(self.rows_N))
        if self.order[0] != epoch:
            rng = generator_for(seed, "stream", self.name, epoch)
            self.order = epoch, rng.permutation(len(self.rows_N))
        index = int(self.order[1][place])
        self.num_draws += 1
        self.num_tokens += int(self.lengths_N[index])
        return index


class Draw(NamedTuple):
    """One sequence that was drawn."""

    group: int
    sample: int
    """Number in the group."""
    number: int
    """Of the draw, over the whole run; seeds what is random about the sequence."""


class TokenStream:
    """Packed rows without end; the same data, recipe and seed always give the same rows."""

    def __init__(self, data: TrainingData, recipe: Recipe, seed: int) -> None:
        """Plans the groups from the index alone.

        Raises:
            ConfigError: No sample fits any entry of the mix.
        """
        self.groups = build_groups(data, recipe)
        self._filled = [number for number, group in enumerate(self.groups) if group.weight > 0]
        self._data, self._sequence, self._seed = data, recipe.sequence, seed
        self._packer: Packer[Draw] = Packer(recipe.batch.max_tokens, recipe.batch.num_open_rows)
        self._num_draws = 0

    def next_batch(self) -> PackedBatch:
        """The next packed row.

        Raises:
            ShardCorruptError: The index and the tokens of a sample do not agree.
        """
        while True:
            draw = self._draw()
            row = self._packer.add(draw, int(self.groups[draw.group].lengths_N[draw.sample]))
            if row is not None:
                return self._build(row)

    def state(self) -> dict[str, Any]:
        """Plain json from which `restore` goes on exactly."""
        return {
            "num_draws": self._num_draws,
            "groups": {group.name: [group.num_draws, group.num_tokens] for group in self.groups},
            "open_rows": [[list(draw) for draw, _ in row] for row in self._packer.open_rows],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on where a stream of the same data, recipe and seed gave `state`."""
        self._num_draws = state["num_draws"]
        for group in self.groups:
            group.num_draws, group.num_tokens = state["groups"][group.name]
        rows = [[Draw(*draw) for draw in row] for row in state["open_rows"]]
        self._packer.open_rows = [
            [(draw, int(self.groups[draw.group].lengths_N[draw.sample])) for draw in row] for row in rows
        ]

    def _draw(self) -> Draw:
        number = min(self._filled, key=lambda i: self.groups[i].num_tokens / self.groups[i].weight)
        draw = Draw(number, self.groups[number].draw(self._seed), self._num_draws)
        self._num_draws += 1
        return draw

    def _build(self, draws: Sequence[Draw]) -> PackedBatch:
        groups = [self.groups[draw.group] for draw in draws]
        samples = [
            self._data.read_sample(int(group.rows_N[draw.sample]), group.task.members)
            for group, draw in zip(groups, draws, strict=True)
        ]
        sequences = []
        for group, draw, sample in zip(groups, draws, samples, strict=True):
            sequence = build_sequence(group.task, sample, self._data.vocabulary, self._sequence)
            if len(sequence.tokens_T) != group.lengths_N[draw.sample]:
                raise ShardCorruptError(
                    f"sample {sample.key}: its index does not fit its tokens; rerun `dmlm-cli tokenize`"
                )
            sequences.append(sequence)
        return pack_sequences(
            sequences,
            keys=[sample.key for sample in samples],
            tasks=[group.task.name for group in groups],
            inputs=[self._inputs(sequence, draw) for sequence, draw in zip(sequences, draws, strict=True)],
        )

    def _inputs(self, sequence: TaskSequence, draw: Draw) -> TokenArray:
        if self._sequence.unit_noise == self._sequence.text_noise == 0:
            return sequence.tokens_T
        rng = generator_for(self._seed, "noise", draw.number)
        return add_noise(sequence, self._sequence, self._data.vocabulary, rng)


def build_groups(data: TrainingData, recipe: Recipe) -> tuple[Group, ...]:
    """Groups of the mix; a group without samples has weight 0, and the weights of the others add up to 1.

    Raises:
        ConfigError: No group has samples.
    """
    groups = tuple(_build_group(data, recipe, entry) for entry in recipe.mix)
    total = sum(group.weight for group in groups)
    if total == 0:
        sources = ", ".join(sorted(set(data.index["source"].to_pylist())))
        splits = ", ".join(sorted(set(data.index["split"].to_pylist())))
        raise ConfigError(
            f"no sample fits the recipe's mix: it trains on splits {', '.join(recipe.splits)}; "
            f"the shards hold sources {sources} with splits {splits}"
        )
    for group in groups:
        group.weight /= total
    return groups


def _build_group(data: TrainingData, recipe: Recipe, entry: MixEntry) -> Group:
    task = TASKS[entry.task]
    lengths_N = sequence_lengths(task, data.index, recipe.sequence)
    wanted_N = (
        (lengths_N > 0)
        & _matches(data.index["source"], (entry.source,))
        & _matches(data.index["split"], recipe.splits)
    )
    if task.name == "image":
        wanted_N &= _first_of_each(data.index["image_id"])
    fits_N = lengths_N <= recipe.sequence.max_length
    rows_N, refused_N = np.flatnonzero(wanted_N & fits_N), np.flatnonzero(wanted_N & ~fits_N)
    return Group(
        name=entry.task if entry.source == "*" else f"{entry.task}:{entry.source}",
        task=task,
        weight=entry.weight if len(rows_N) else 0.0,
        rows_N=rows_N,
        lengths_N=lengths_N[rows_N],
        loss_tokens_M=loss_token_counts(task, data.index, recipe.sequence)[rows_N].sum(axis=0),
        refused=dict(
            zip(data.index["key"].take(refused_N).to_pylist(), lengths_N[refused_N].tolist(), strict=True)
        ),
    )


def _matches(column: pa.ChunkedArray, patterns: Sequence[str]) -> npt.NDArray[np.bool_]:
    values = column.to_pylist()
    known = {value: any(fnmatchcase(value, pattern) for pattern in patterns) for value in set(values)}
    return np.array([known[value] for value in values])


def _first_of_each(column: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Whether a row is the first with its value: an image has a sample per caption."""
    values = column.to_pylist()
    first = {value: row for row, value in reversed(list(enumerate(values)))}
    return np.array([value is None or first[value] == row for row, value in enumerate(values)])
