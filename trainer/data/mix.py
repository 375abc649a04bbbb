"""The mix: which samples train which task, and in what order they are drawn.

TrainingData -> Group (task × sources × splits) -> Mix -> draws

A group's weight is its share of the *tokens*. The next draw comes from the group that is furthest behind its
share, so shares are exact and need no randomness. All of this follows from the index: no token is read.

Suffixes: N sample of a group, D sequence that can be drawn, M modality.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heapreplace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dmlm.pipeline.errors import CheckpointError, ConfigError
from dmlm.pipeline.randomness import generator_for
from dmlm.trainer.config import MixEntry, Recipe, matches
from dmlm.trainer.data.dataset import TrainingData
from dmlm.trainer.data.tasks import TASKS, Task, Template, loss_token_counts, make_template, sequence_lengths

_NUM_AHEAD: Final = 256


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
    templates: tuple[Template, ...]
    """One per language, or pair of languages."""
    template_N: npt.NDArray[np.int64]
    """Number of each sample's template."""
    loss_tokens_M: npt.NDArray[np.int64]
    """Tokens of an epoch that carry loss, by modality code."""
    refused: Mapping[str, int]
    """Key and length of the samples whose sequence is too long."""
    lack: str = ""
    """Why it has no samples; empty where it has some."""
    num_tokens: int = 0
    """Drawn so far."""
    num_draws: int = 0
    order: tuple[int, npt.NDArray[np.int64]] = field(default=(-1, np.empty(0, np.int64)))
    """Epoch and its permutation; follows from `num_draws`."""

    next_draws: list[tuple[int, int]] = field(default_factory=list)
    """Sample and length of the next few, last first; follows from `num_draws`, too."""

    def draw(self, seed: int) -> tuple[int, int]:
        """Number of the next sample and its length; every epoch is a permutation of its own."""
        if not self.next_draws:
            self._look_ahead(seed)
        sample, length = self.next_draws.pop()
        self.num_draws += 1
        self.num_tokens += length
        return sample, length

    def _look_ahead(self, seed: int) -> None:
        epoch, place = divmod(self.num_draws, len(self.rows_N))
        if self.order[0] != epoch:
            rng = generator_for(seed, "stream", self.name, epoch)
            self.order = epoch, rng.permutation(len(self.rows_N))
        samples = self.order[1][place : place + _NUM_AHEAD][::-1]
        self.next_draws = list(zip(samples.tolist(), self.lengths_N[samples].tolist(), strict=True))


class Mix:
    """All groups as one list of sequences to draw from; the same groups and seed always give the same draws.

    A draw is a number: a group's sequences follow those of the group before it.
    """

    def __init__(self, groups: Sequence[Group], seed: int) -> None:
        self.groups, self._seed = groups, seed
        sizes = [len(group.rows_N) for group in groups]
        self._starts: list[int] = (np.cumsum(sizes) - sizes).tolist()
        self.group_D = np.repeat(np.arange(len(groups)), sizes)
        """Number of the group of each sequence."""
        self.rows_D = np.concatenate([group.rows_N for group in groups])
        """Row of the training data."""
        self.lengths_D = np.concatenate([group.lengths_N for group in groups])
        """Planned from the index."""
        self.template_D = np.concatenate([group.template_N for group in groups])
        """Number of the template in its group."""
        self._line: list[tuple[float, int]] = []
        self._line_up()

    def draw(self) -> tuple[int, int]:
        """The next sequence and its length."""
        number = self._line[0][1]
        group = self.groups[number]
        sample, length = group.draw(self._seed)
        heapreplace(self._line, (group.num_tokens / group.weight, number))
        return self._starts[number] + sample, length

    def state(self) -> dict[str, Any]:
        """Plain json from which `restore` goes on exactly."""
        return {group.name: [group.num_draws, group.num_tokens] for group in self.groups}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on where a mix of the same groups and seed gave `state`.

        Raises:
            CheckpointError: It was of other groups.
        """
        names = [group.name for group in self.groups]
        if sorted(state) != sorted(names):
            raise CheckpointError(
                f"the checkpoint was drawing from {', '.join(state)}, the recipe mixes {', '.join(names)}"
            )
        for group in self.groups:
            group.num_draws, group.num_tokens = state[group.name]
            group.next_draws = []
        self._line_up()

    def _line_up(self) -> None:
        """A heap, the group that is furthest behind its share first; of equal ones the first."""
        self._line = [
            (group.num_tokens / group.weight, number)
            for number, group in enumerate(self.groups)
            if group.weight > 0
        ]
        heapify(self._line)


def build_groups(data: TrainingData, recipe: Recipe) -> tuple[Group, ...]:
    """Groups of the mix; one without samples has weight 0, and the weights of the others add up to 1.

    Raises:
        ConfigError: No group has samples, with the reason of each; or a sample's language has no token.
    """
    groups = tuple(build_group(data, recipe, entry) for entry in recipe.mix)
    total = sum(group.weight for group in groups)
    if total == 0:
        lacks = "".join(f"\n  {group.name}: {group.lack}" for group in groups)
        raise ConfigError(f"no sample fits the recipe's mix:{lacks}")
    for group in groups:
        group.weight /= total
    return groups


def task_shares(groups: Sequence[Group]) -> dict[str, float]:
    """Share of the tokens that each task has, of those that have samples; they add up to 1."""
    shares: dict[str, float] = {}
    for group in groups:
        if group.weight:
            shares[group.task.name] = shares.get(group.task.name, 0.0) + group.weight
    return shares


def build_group(data: TrainingData, recipe: Recipe, entry: MixEntry) -> Group:
    """Group of one entry; its weight is the entry's, or 0 without samples.

    Raises:
        ConfigError: A sample's language has no token.
    """
    task = TASKS[entry.task]
    lengths_N = sequence_lengths(task, data.index, recipe.sequence)
    source_N = rows_that_match(data.index["source"], (entry.source,))
    split_N = source_N & rows_that_match(data.index["split"], recipe.splits, (entry.split,))
    if data.within_limit_N is not None:
        split_N &= data.within_limit_N
    wanted_N = split_N & (lengths_N > 0)
    if task.name == "image":
        wanted_N &= _first_of_each_image(data, np.flatnonzero(wanted_N))
    fits_N = lengths_N <= recipe.sequence.max_length
    rows_N, refused_N = np.flatnonzero(wanted_N & fits_N), np.flatnonzero(wanted_N & ~fits_N)
    templates, template_N = _build_templates(task, rows_N, data, recipe)
    return Group(
        name=_name_of(entry),
        task=task,
        weight=entry.weight if len(rows_N) else 0.0,
        rows_N=rows_N,
        lengths_N=lengths_N[rows_N],
        templates=templates,
        template_N=template_N,
        loss_tokens_M=loss_token_counts(task, data.index, recipe.sequence)[rows_N].sum(axis=0),
        refused=dict(
            zip(data.index["key"].take(refused_N).to_pylist(), lengths_N[refused_N].tolist(), strict=True)
        ),
        lack="" if len(rows_N) else _find_lack(data, recipe, entry, source_N, split_N, len(refused_N)),
    )


def _find_lack(
    data: TrainingData,
    recipe: Recipe,
    entry: MixEntry,
    source_N: npt.NDArray[np.bool_],
    split_N: npt.NDArray[np.bool_],
    num_refused: int,
) -> str:
    """Why an entry has no samples, given which ones are of its source, and which of these of its split."""
    if not source_N.any():
        return f"no source matches {entry.source}, there is {_list(data.index['source'])}"
    if not split_N.any():
        wanted = ", ".join(recipe.splits) + (f" and {entry.split}" if entry.split != "*" else "")
        return f"no split matches {wanted}, there is {_list(data.index['split'].filter(source_N))}"
    num_samples, members = split_N.sum(), " and ".join(TASKS[entry.task].members)
    if not num_refused:
        return f"none of {num_samples} samples has {members}"
    too_long = f"over sequence.max_length {recipe.sequence.max_length}"
    return f"{num_refused} of {num_samples} samples have {members}, and each is {too_long}"


def _list(column: pa.ChunkedArray) -> str:
    return ", ".join(sorted(column.unique().to_pylist()))


def _name_of(entry: MixEntry) -> str:
    """`asr`, `asr:librispeech`, `asr:librispeech/train-ivr`; draws and checkpoints depend on it."""
    samples = entry.source if entry.split == "*" else f"{entry.source}/{entry.split}"
    return entry.task if samples == "*" else f"{entry.task}:{samples}"


def _build_templates(
    task: Task, rows_N: npt.NDArray[np.int64], data: TrainingData, recipe: Recipe
) -> tuple[tuple[Template, ...], npt.NDArray[np.int64]]:
    """The different templates of some samples, and the number of each sample's."""
    names = ("language", "translation_language")
    (first_N, languages), (second_N, others) = (_encode(data.index[name]) for name in names)
    pairs_N = first_N[rows_N] * (len(others) + 1) + second_N[rows_N]
    kinds, examples, template_N = np.unique(pairs_N, return_index=True, return_inverse=True)
    templates = []
    for kind, example in zip(kinds.tolist(), examples.tolist(), strict=True):
        first, second = divmod(kind, len(others) + 1)
        spoken, written = (*languages, None)[first], (*others, None)[second]
        try:
            templates.append(make_template(task, spoken, written, data.vocabulary, recipe.sequence))
        except ConfigError as error:
            raise ConfigError(f"sample {data.keys[rows_N[example]]}: {error}") from None
    return tuple(templates), template_N


def _encode(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Number of each row's value, and the values; a row without one has the number behind the last."""
    encoded = pa.chunked_array(column.dictionary_encode()).unify_dictionaries().combine_chunks()
    values = encoded.dictionary.to_pylist()
    return encoded.indices.fill_null(len(values)).to_numpy().astype(np.int64), values


def rows_that_match(column: pa.ChunkedArray, *choices: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Whether each value of a column matches a pattern (glob) of every choice; a missing one does not."""
    codes_N, values = _encode(column)
    known = [all(matches(value, patterns) for patterns in choices) for value in values]
    return np.array([*known, False])[codes_N]


def _first_of_each_image(data: TrainingData, rows_N: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which of all samples are, among `rows_N`, the first of their image or of none: it has one per caption.

    Ids are those of a split: two lists of files may both call their first image by the same name.
    """
    image_N, image_ids = _encode(data.index["image_id"])
    image_N = image_N[rows_N]
    key_N = np.searchsorted(np.cumsum(data.dataset_sizes), rows_N, side="right")
    for name in ("source", "split"):
        codes_N, values = _encode(data.index[name])
        key_N = key_N * len(values) + codes_N[rows_N]
    first_N = image_N == len(image_ids)
    first_N[np.unique(key_N * (len(image_ids) + 1) + image_N, return_index=True)[1]] = True
    is_first_N = np.zeros(len(data.index), np.bool_)
    is_first_N[rows_N[first_N]] = True
    return is_first_N
