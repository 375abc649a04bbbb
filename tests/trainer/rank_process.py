"""One of the processes that test_distributed.py starts: checks that need a partner, and what came of them.

python rank_process.py FOLDER SHARDS ONE_SAMPLE; the environment is that of torchrun, the recipe in FOLDER.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from dmlm.pipeline.errors import DmlmError
from dmlm.trainer import step
from dmlm.trainer.config import Recipe, TrainConfig, load_recipe
from dmlm.trainer.distributed import Ranks, join_ranks
from dmlm.trainer.loop import train

learning_rate = step.learning_rate


def at_step(number: int, act: Callable[[], None]) -> None:
    """Lets this rank do something in the middle of a step, counted from 0."""

    def rate(current: int, *arguments: Any) -> float:
        if current == number:
            act()
        return learning_rate(current, *arguments)

    step.learning_rate = rate  # type: ignore[assignment]


def cut_power() -> None:
    raise SystemError("power cut")


def attempt(config: TrainConfig, ranks: Ranks) -> dict[str, Any]:
    """What a run came to on this rank."""
    try:
        report = train(config, ranks)
    except (DmlmError, KeyboardInterrupt, SystemError) as error:
        return {"error": type(error).__name__, "message": str(error)}
    finally:
        step.learning_rate = learning_rate
    return {"checkpoint": report.checkpoint.name, "total": report.total and asdict(report.total)}


def check_all(folder: Path, shards: Path, one_sample: Path, ranks: Ranks) -> dict[str, Any]:
    plain = load_recipe(folder / "recipe.yaml")

    def config(name: str, recipe: Recipe = plain, data: Path = shards, **more: Any) -> TrainConfig:
        return TrainConfig(shards=(data,), recipe=recipe, out_dir=folder / name, device="cpu", **more)

    results = {
        "uneven": attempt(config("uneven", replace(plain, num_steps=2), one_sample), ranks),
        "odd": attempt(config("odd", replace(plain, batch=replace(plain.batch, num_micro_batches=3))), ranks),
    }
    for recipe in (plain, replace(plain, parallel="fsdp2")):
        whole, cut = recipe.parallel, f"{recipe.parallel}_cut"
        results[whole] = attempt(config(whole, recipe), ranks)
        at_step(4, cut_power)
        results[cut] = attempt(config(cut, recipe), ranks)
        results[f"{whole}_resumed"] = attempt(config(cut, recipe, resume=True), ranks)
    if ranks.rank == 1:
        at_step(1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    results["stopped"] = attempt(config("stopped"), ranks)
    results["broken"] = attempt(config("broken", init=str(folder / "infinite")), ranks)
    return results


def outlive_the_other(folder: Path, shards: Path, ranks: Ranks) -> None:
    """Rank 1 dies in the middle of a step; rank 0 writes how long it took to see that."""
    times: list[float] = []
    if ranks.rank == 1:
        at_step(2, lambda: os.kill(os.getpid(), signal.SIGKILL))
    else:
        at_step(2, lambda: times.append(time.monotonic()))
    try:
        recipe = load_recipe(folder / "recipe.yaml")
        train(TrainConfig(shards=(shards,), recipe=recipe, out_dir=folder / "dying", device="cpu"), ranks)
    finally:
        (folder / "seconds.json").write_text(json.dumps(time.monotonic() - times[0]))


def main() -> None:
    folder, shards, one_sample = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    with join_ranks(os.environ, "cpu") as ranks:
        results = check_all(folder, shards, one_sample, ranks)
        (folder / f"rank{ranks.rank}.json").write_text(json.dumps(results))
        outlive_the_other(folder, shards, ranks)


if __name__ == "__main__":
    main()
