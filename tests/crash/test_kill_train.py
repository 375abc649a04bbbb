"""SIGKILL anywhere in a training run, saves included; going on gives the very same losses and weights."""

import json
import multiprocessing
import time
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dmlm.trainer.config import TrainConfig, recipe_from_json
from dmlm.trainer.loop import train

NUM_STEPS = 30
RECIPE = recipe_from_json(
    {
        "name": "kill",
        "num_steps": NUM_STEPS,
        "mix": [
            {"task": "asr", "weight": 3},
            {"task": "t2s", "weight": 1},
            {"task": "image", "weight": 1},
        ],
        "model": {"num_layers": 1, "width": 32, "num_heads": 2, "dropout": 0.1},
        "sequence": {"max_length": 64, "unit_noise": 0.1},
        "batch": {"max_tokens": 256, "pool_size": 8},
        "save_every_steps": 3,
        "log_every_steps": 1,
    }
)


@pytest.fixture(scope="module")
def processes() -> multiprocessing.context.ForkServerContext:
    """Starts processes that have torch and transformers imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dmlm.trainer.loop", "transformers.models.opt.modeling_opt"])
    return context


def checkpoints(run_dir: Path) -> set[Path]:
    return set(run_dir.glob("checkpoint-*/DONE"))


def wait_for_a_new_checkpoint(process: BaseProcess, run_dir: Path, known: set[Path]) -> None:
    deadline = time.monotonic() + 120
    while not checkpoints(run_dir) - known:
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def losses(run_dir: Path) -> dict[int, float]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return {line["step"]: line["loss"] for line in map(json.loads, lines)}


def test_killed_and_resumed_training_equals_an_undisturbed_run(
    processes: multiprocessing.context.ForkServerContext, token_shards: Path, tmp_path: Path
) -> None:
    whole = TrainConfig(shards=(token_shards,), recipe=RECIPE, out_dir=tmp_path / "whole", device="cpu")
    killed = replace(whole, out_dir=tmp_path / "killed", resume=True)
    train(whole)
    num_kills = 0
    for delay in (0.0, 0.05, 0.1):
        known = checkpoints(killed.out_dir)
        process = processes.Process(target=train, args=(killed,))
        process.start()
        wait_for_a_new_checkpoint(process, killed.out_dir, known)
        time.sleep(delay)
        process.kill()
        process.join()
        num_kills += process.exitcode == -9
    assert num_kills > 0
    train(killed)
    assert losses(killed.out_dir) == losses(whole.out_dir)
    assert losses(killed.out_dir).keys() == set(range(1, NUM_STEPS + 1))
    name = f"checkpoint-{NUM_STEPS:06d}/model.safetensors"
    expected = load_file(whole.out_dir / name)
    assert all(torch.equal(value, expected[key]) for key, value in load_file(killed.out_dir / name).items())
