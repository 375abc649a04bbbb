"""R6: SIGKILL at any moment of a training run; going on gives the very same losses and weights.

SIGTERM, by which a scheduler asks it to stop, is answered with a checkpoint and exit code 130.
"""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from dmlm.pipeline.errors import ExitCode
from dmlm.trainer.checkpoint import latest_checkpoint
from dmlm.trainer.config import Recipe, TrainConfig
from dmlm.trainer.data.dataset import open_training_data
from dmlm.trainer.data.stream import TokenStream
from dmlm.trainer.loop import train

SAVE_EVERY = 3
MAX_OPERATIONS = 60
"""On files, between a step and the kill: it may come in a save, in the log, or some steps later."""


def choose_kills(num_steps: int, num_kills: int) -> list[tuple[int, int]]:
    """Step and operations behind it, every other time none: in the middle of the step."""
    rng = np.random.default_rng(num_kills)
    steps = np.sort(rng.choice(np.arange(SAVE_EVERY, num_steps - 12), num_kills, replace=False))
    operations = rng.integers(1, MAX_OPERATIONS, num_kills)
    operations[::2] = 0
    return list(zip(steps.tolist(), operations.tolist(), strict=True))


def epoch_of_each_step(shards: Path, recipe: Recipe) -> list[int]:
    """Epoch of the speech that a step learns from."""
    stream, epochs = TokenStream(open_training_data([shards]), recipe, seed=0), []
    for _ in range(recipe.num_steps):
        num_draws, _ = stream.state()["groups"]["asr"]
        epochs.append(num_draws // len(stream.groups[0].rows_N))
        stream.next_step()
    return epochs


def test_killed_and_resumed_training_equals_an_undisturbed_run(
    amount: Callable[[int, int], int],
    recipe_of: Callable[[int, int], Recipe],
    run_dying: Callable[..., int | None],
    assert_same_run: Callable[[Path, Path], None],
    token_shards: Path,
    tmp_path: Path,
) -> None:
    num_kills = amount(5, 50)
    recipe = recipe_of(amount(36, 300), SAVE_EVERY)
    whole = TrainConfig(shards=(token_shards,), recipe=recipe, out_dir=tmp_path / "whole", device="cpu")
    killed = replace(whole, out_dir=tmp_path / "killed", resume=True)
    kills = choose_kills(recipe.num_steps, num_kills)
    epochs = epoch_of_each_step(token_shards, recipe)
    assert max(Counter(epochs[step] for step, _ in kills).values()) >= 3

    pools = []
    for step, num_operations in kills:
        assert run_dying(killed, step=step, num_operations=num_operations) == -9
        if (checkpoint := latest_checkpoint(killed.out_dir)) is not None:
            pools.append(json.loads((checkpoint / "trainer_state" / "stream.json").read_text())["pool"])
    assert sum(map(bool, pools)) > num_kills // 2
    train(killed)
    train(whole)
    assert_same_run(killed.out_dir, whole.out_dir)


def test_a_run_killed_before_its_first_checkpoint_begins_again(
    recipe_of: Callable[[int, int], Recipe],
    run_dying: Callable[..., int | None],
    assert_same_run: Callable[[Path, Path], None],
    token_shards: Path,
    tmp_path: Path,
) -> None:
    whole = TrainConfig(
        shards=(token_shards,), recipe=recipe_of(4, 4), out_dir=tmp_path / "whole", device="cpu"
    )
    killed = replace(whole, out_dir=tmp_path / "killed", resume=True)
    assert run_dying(killed, step=2, num_operations=0) == -9
    assert latest_checkpoint(killed.out_dir) is None
    train(killed)
    train(whole)
    assert_same_run(killed.out_dir, whole.out_dir)


def test_a_command_that_is_told_to_end_saves_and_says_how_to_go_on(
    recipe_of: Callable[[int, int], Recipe], token_shards: Path, tmp_path: Path
) -> None:
    (tmp_path / "long.yaml").write_text(json.dumps(recipe_of(100_000, 100_000).to_json()))
    command = [sys.executable, "-c", "from dmlm.cli import main; main()", "train", "--device", "cpu"]
    command += ["--shards", token_shards, "--recipe", tmp_path / "long.yaml", "--out", tmp_path / "run"]
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True) as process:
        try:
            while not metrics.is_file() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            process.terminate()
            _, message = process.communicate(timeout=60)
        finally:
            process.kill()  # it would train for hours
    assert process.returncode == ExitCode.INTERRUPTED, message
    checkpoint = latest_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    assert f"stopped and saved {checkpoint}; go on with --resume" in message
    num_steps = len(metrics.read_text().splitlines())
    assert checkpoint.name == f"checkpoint-{num_steps:06d}"
