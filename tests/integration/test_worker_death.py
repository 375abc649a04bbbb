"""R10: a worker that dies or falls silent is seen, and nothing of it stays behind."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from dmlm.trainer import distributed
from dmlm.trainer.config import Recipe, TrainConfig
from dmlm.trainer.data.dataset import open_training_data
from dmlm.trainer.data.stream import TokenStream

TIMEOUT_SECONDS = 4


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """No child and no shared memory is left behind."""
    shared = Path("/dev/shm")
    before = set(shared.iterdir()) if shared.is_dir() else set()
    yield
    assert not multiprocessing.active_children()
    assert not shared.is_dir() or set(shared.iterdir()) <= before


@pytest.mark.usefixtures("nothing_left")
def test_a_killed_worker_of_a_loader_is_seen_within_ten_seconds(
    tiny_recipe: Recipe, token_shards: Path
) -> None:
    dataset = TokenStream(open_training_data([token_shards]), tiny_recipe, seed=0).as_webdataset()
    entries = iter(DataLoader(dataset, batch_size=None, num_workers=2))
    next(entries)
    first, _ = multiprocessing.active_children()
    assert first.pid is not None
    start = time.monotonic()
    os.kill(first.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"worker.*(killed|exited)"):
        all(time.monotonic() < start + 60 for _ in entries)
    # Until the loader is gone torch raises again, wherever this process is, for each child that ends.
    raise_again = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    assert time.monotonic() - start < 10
    del entries
    signal.signal(signal.SIGCHLD, raise_again)


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
