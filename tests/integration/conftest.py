"""Several processes that train together on gloo."""

import json
import runpy
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from dmlm.trainer.config import Recipe, TrainConfig, recipe_from_json

SCRIPT = Path(__file__).with_name("ranks_run.py")
LIMIT_SECONDS = 250
NUM_MICRO_BATCHES = 12
"""Can be shared by 1, 2, 3 and 4 ranks."""


@pytest.fixture(scope="session")
def tiny_recipe() -> Recipe:
    """Rows that any of 1 to 4 ranks can share evenly."""
    return recipe_from_json(
        {
            "name": "ranks",
            "num_steps": 2,
            "mix": [{"task": "asr", "weight": 1}],
            "model": {"architecture": "llama", "num_layers": 1, "width": 8, "num_heads": 1},
            "sequence": {"max_length": 64},
            "batch": {"max_tokens": 64, "num_micro_batches": NUM_MICRO_BATCHES, "pool_size": 8},
            "save_every_steps": 100,
        }
    )


@pytest.fixture
def run_ranks(processes: ForkServerContext, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Function that trains on several ranks and gives what each saw, see ranks_run.py.

    `run_ranks(config, world_size, num_workers=0, stopped={rank: step}, timeout_seconds=100, save_seconds=0)`;
    a rank that was stopped gives nothing. None may outlast LIMIT_SECONDS.
    """

    def run(
        config: TrainConfig,
        world_size: int,
        num_workers: int = 0,
        stopped: dict[int, int] | None = None,
        timeout_seconds: int = 100,
        save_seconds: int = 0,
    ) -> list[dict[str, Any]]:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        folder = tmp_path / f"ranks-{port}"
        folder.mkdir()
        started = []
        for rank in range(world_size):
            names = {
                "config": replace(config, out_dir=folder / "run"),
                "result_path": folder / f"{rank}.json",
                "num_workers": num_workers,
                "stop_at": (stopped or {}).get(rank),
                "timeout_seconds": timeout_seconds,
                "save_seconds": save_seconds,
                "environment": {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(world_size),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                },
            }
            started.append(processes.Process(target=runpy.run_path, args=(str(SCRIPT), names)))
            started[-1].start()
        deadline = time.monotonic() + LIMIT_SECONDS
        results = []
        try:
            for rank, process in enumerate(started):
                if rank not in (stopped or {}):
                    process.join(deadline - time.monotonic())
                    assert process.exitcode == 0, f"rank {rank} hangs or failed: {process.exitcode}"
                    results.append(json.loads((folder / f"{rank}.json").read_text()))
        finally:
            for process in started:
                process.kill()
                process.join()
        return results

    return run
