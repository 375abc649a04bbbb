"""R9: no deadlock, whatever the numbers of shards, ranks and loader workers: all take as many steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dmlm.pipeline.samples import Sample
from dmlm.trainer.config import Recipe, TrainConfig

EDGES = ((1, 4, 3), (7, 3, 0), (2, 1, 2), (5, 2, 1))
"""Fewer shards than ranks, empty shards, ..."""
NUM_SAMPLES, NUM_SEQUENCES = 5, 40


def choose_shapes(count: int) -> list[tuple[int, int, int]]:
    """Numbers of shards (1 to 7), ranks (1 to 4) and workers (0 to 3)."""
    rng = np.random.default_rng(9)
    shapes = list(EDGES)
    while len(shapes) < count:
        shape = (int(rng.integers(1, 8)), int(rng.integers(1, 5)), int(rng.integers(0, 4)))
        if shape not in shapes:
            shapes.append(shape)
    return shapes


def test_ranks_and_workers_take_as_many_steps_whatever_the_shards(
    amount: Callable[[int, int], int],
    run_ranks: Callable[..., list[dict[str, Any]]],
    write_shards: Callable[..., Path],
    tiny_recipe: Recipe,
    tmp_path: Path,
) -> None:
    samples = [
        Sample(
            key=f"utterance-{number}",
            source="toy",
            split="train",
            language="en",
            speech_tokens=np.arange(5 + number, dtype=np.int32),
            text_tokens=np.arange(100, 104, dtype=np.int32),
        )
        for number in range(NUM_SAMPLES)
    ]
    for num_shards, world_size, num_workers in choose_shapes(amount(4, 20)):
        directory = tmp_path / f"{num_shards}-shards"
        if not directory.exists():
            write_shards(directory, samples, num_shards=num_shards)
        assert len(list(directory.glob("*.tar"))) == num_shards
        config = TrainConfig(shards=(directory,), recipe=tiny_recipe, out_dir=tmp_path, device="cpu")
        ranks = run_ranks(config, world_size, num_workers)
        rows = tiny_recipe.batch.num_micro_batches // world_size
        for rank in ranks:
            assert [len(step) for step in rank["keys"]] == [rows] * tiny_recipe.num_steps
            assert len(rank["sequences"]) == NUM_SEQUENCES
        assert len({key for rank in ranks for key in rank["sequences"]}) == NUM_SAMPLES
