"""R10: a worker that dies or falls silent is seen, and nothing of it stays behind."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from dmlm.trainer import distributed
from dmlm.trainer.config import Recipe, TrainConfig

TIMEOUT_SECONDS = 4
SCRIPT = Path(__file__).with_name("loader_run.py")


def test_a_killed_worker_of_a_loader_is_seen_within_ten_seconds(
    tiny_recipe: Recipe, token_shards: Path
) -> None:
    shared = Path("/dev/shm")
    before = set(shared.iterdir()) if shared.is_dir() else set()
    command = [sys.executable, SCRIPT, token_shards, json.dumps(tiny_recipe.to_json())]
    output = subprocess.run(command, capture_output=True, timeout=90).stdout
    seen = json.loads(output)
    assert re.search(r"worker.*(killed|exited)|EOFError|Connection", seen["error"])
    assert seen["seconds"] < 10
    assert not any(Path(f"/proc/{worker}").exists() for worker in seen["workers"])
    assert not shared.is_dir() or set(shared.iterdir()) <= before


def test_ranks_wait_in_a_step_for_a_minute_at_most() -> None:
    assert distributed.TIMEOUT <= timedelta(minutes=1)


def test_a_rank_that_falls_silent_is_seen_when_the_time_is_up(
    run_ranks: Callable[..., list[dict[str, Any]]], tiny_recipe: Recipe, token_shards: Path, tmp_path: Path
) -> None:
    config = TrainConfig(shards=(token_shards,), recipe=tiny_recipe, out_dir=tmp_path, device="cpu")
    (left,) = run_ranks(config, 2, stopped={1: 1}, timeout_seconds=TIMEOUT_SECONDS)
    assert left["error"].startswith("RankError: rank 0: another rank ended or does not answer")
    assert left["seconds"] < TIMEOUT_SECONDS + 10


def test_a_rank_that_saves_for_longer_than_a_step_may_take_is_waited_for(
    run_ranks: Callable[..., list[dict[str, Any]]], tiny_recipe: Recipe, token_shards: Path, tmp_path: Path
) -> None:
    recipe = replace(tiny_recipe, save_every_steps=1)
    config = TrainConfig(shards=(token_shards,), recipe=recipe, out_dir=tmp_path, device="cpu")
    results = run_ranks(config, 2, timeout_seconds=TIMEOUT_SECONDS, save_seconds=TIMEOUT_SECONDS + 2)
    assert [result.get("error") for result in results] == [None, None]
    assert all(len(result["keys"]) == recipe.num_steps for result in results)
