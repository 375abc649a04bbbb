"""What a run is validated on: some held-out sequences of each task, the same every time.

TrainingData -> held-out groups -> rows of each task, and prompts with the answers hoped for

Suffixes: S sequence, P part of a sequence, T token, N sample of a group, D sequence that can be drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from glob import escape
from hashlib import sha256
from typing import Final

import numpy as np

from dmlm.pipeline.randomness import generator_for
from dmlm.pipeline.samples import Modality, TokenArray
from dmlm.pipeline.shards.format import MODALITY_OF
from dmlm.trainer.config import MixEntry, Recipe, matches
from dmlm.trainer.data.dataset import TrainingData
from dmlm.trainer.data.mix import Group, Mix, build_group, rows_that_match, task_shares
from dmlm.trainer.data.packing import PackedBatch, Parts, pack_rows
from dmlm.trainer.data.rows import RowBuilder
from dmlm.trainer.data.tasks import Task

NUM_TARGET_PARTS: Final = 2
"""The target itself and what ends it; see `tasks.Template`."""
SEED: Final = 0
"""Runs with different seeds are validated on the same sequences."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Question:
    """A prompt, and the target that the sample has, as global ids."""

    key: str
    prompt_T: TokenArray
    target_T: TokenArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TaskValidationSet:
    """Held-out sequences of one task."""

    task: Task
    share: float
    """Of the task in the tokens of the training."""
    num_sequences: int
    num_tokens: int
    rows: tuple[PackedBatch, ...]
    targets: tuple[TokenArray, ...]
    """Of all sequences, as global ids."""
    questions: tuple[Question, ...]
    """To be decoded."""

    @property
    def target_modality(self) -> Modality:
        """Modality of what the task answers."""
        return MODALITY_OF[self.task.target]


def build_validation_set(
    data: TrainingData, recipe: Recipe, trained: Sequence[Group]
) -> tuple[TaskValidationSet, ...]:
    """Held-out sequences of every task that is trained, of the sources that it is trained on.

    Args:
        data: Where they are.
        recipe: Of the run.
        trained: Groups of the recipe's mix that it trains on, in order.

    Returns:
        One set for each task that has held-out sequences.
    """
    splits = _held_out_splits(data, recipe)
    if not splits:
        return ()
    quiet = replace(recipe.sequence, unit_noise=0.0, text_noise=0.0, target_unit_noise=0.0)
    shares = task_shares(trained)
    tasks = (task for task in dict.fromkeys(entry.task for entry in recipe.mix) if task in shares)
    entries = tuple(MixEntry(task=task, weight=1.0) for task in tasks)
    held_out = replace(recipe, mix=entries, splits=tuple(map(escape, splits)), sequence=quiet)
    groups = [group for entry in entries if len((group := build_group(data, held_out, entry)).rows_N)]
    if not groups:
        return ()
    mix = Mix(groups, SEED)
    builder = RowBuilder(data, mix, quiet, SEED)
    sets = []
    for number, group in enumerate(groups):
        patterns = [
            entry.source
            for entry, of_entry in zip(recipe.mix, trained, strict=True)
            if entry.task == group.task.name and of_entry.weight
        ]
        is_trained_on_D = rows_that_match(data.index["source"], patterns)[mix.rows_D]
        draws = np.flatnonzero((mix.group_D == number) & is_trained_on_D)
        chosen = generator_for(SEED, "validation", group.name).permutation(draws)
        kept = chosen[: recipe.validation.num_sequences].tolist()
        if kept:
            parts = builder.build(kept, number=0)
            sets.append(_build_set(group.task, shares[group.task.name], parts, recipe))
    return tuple(sets)


def sha256_of(sets: Sequence[TaskValidationSet]) -> str:
    """Of all sequences; losses on others cannot be compared."""
    return sha256(b"".join(row.buffer.numpy().tobytes() for s in sets for row in s.rows)).hexdigest()


def _held_out_splits(data: TrainingData, recipe: Recipe) -> list[str]:
    present = data.index.group_by(["source", "split"]).aggregate([]).to_pylist()
    trained = {row["split"] for row in present if recipe.trains_on(row["source"], row["split"])}
    wanted = {row["split"] for row in present if matches(row["split"], recipe.validation.splits)}
    return sorted(wanted - trained)


def _build_set(task: Task, share: float, parts: Parts, recipe: Recipe) -> TaskValidationSet:
    ends_S = parts.num_parts_S.cumsum()
    starts_P = parts.lengths_P.cumsum() - parts.lengths_P
    starts_S, targets_S = starts_P[ends_S - parts.num_parts_S], ends_S - NUM_TARGET_PARTS
    prompts = [parts.tokens_T[start:stop] for start, stop in zip(starts_S, starts_P[targets_S], strict=True)]
    targets = [parts.tokens_T[starts_P[p] : starts_P[p] + parts.lengths_P[p]] for p in targets_S.tolist()]
    questions = [
        Question(key=key, prompt_T=prompt, target_T=target)
        for key, prompt, target in zip(parts.keys, prompts, targets, strict=True)
    ]
    lengths = np.add.reduceat(parts.lengths_P, ends_S - parts.num_parts_S).tolist()
    return TaskValidationSet(
        task=task,
        share=share,
        num_sequences=len(targets),
        num_tokens=sum(lengths),
        rows=tuple(pack_rows(parts, _cut_into_rows(lengths, recipe.batch.max_tokens))),
        targets=tuple(targets),
        questions=tuple(questions[: recipe.validation.num_decoded if task.source else 0]),
    )


def _cut_into_rows(lengths: Sequence[int], max_tokens: int) -> list[int]:
    """Number of sequences in each row: as many as fit, in order."""
    rows, free = [0], max_tokens
    for length in lengths:
        if length > free:
            rows.append(0)
            free = max_tokens
        rows[-1] += 1
        free -= length
    return rows
