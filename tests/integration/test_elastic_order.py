"""R8: the same global batches in the same order on 1, 2 and 4 ranks, over three epochs."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from dmlm.trainer.config import Recipe, TrainConfig


def global_order(ranks: list[dict[str, Any]]) -> list[list[str]]:
    """Keys of all micro-batches in their global order: number i of a step is of rank i mod world size."""
    steps = zip(*(rank["keys"] for rank in ranks), strict=True)
    return [row for shares in steps for rows in zip(*shares, strict=True) for row in rows]


def test_one_two_and_four_ranks_see_the_same_samples_in_the_same_order(
    amount: Callable[[Any, Any], Any],
    run_ranks: Callable[..., list[dict[str, Any]]],
    tiny_recipe: Recipe,
    token_shards: Path,
    tmp_path: Path,
) -> None:
    recipe = replace(tiny_recipe, num_steps=4)
    config = TrainConfig(shards=(token_shards,), recipe=recipe, out_dir=tmp_path, device="cpu")
    orders = {
        world_size: global_order(run_ranks(config, world_size)) for world_size in amount((1, 2), (1, 2, 4))
    }
    times_seen = Counter(chain.from_iterable(orders[1]))
    assert len(times_seen) == 28
    assert min(times_seen.values()) >= 3
    assert all(order == orders[1] for order in orders.values())
