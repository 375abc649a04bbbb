"""R12: SIGKILL at any file operation of a save; the newest whole checkpoint then is the old or the new."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from dmlm.trainer.checkpoint import latest_checkpoint, load_checkpoint, load_trainer_state
from dmlm.trainer.config import Recipe, TrainConfig
from dmlm.trainer.loop import train


def step_of(checkpoint: Path | None) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-")) if checkpoint else 0


def damage(checkpoint: Path) -> None:
    """Flips a bit of the weights; DONE vouches for the others still."""
    path = checkpoint / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_killed_in_saves_a_run_never_falls_back_behind_the_save_before(
    amount: Callable[[int, int], int],
    recipe_of: Callable[[int, int], Recipe],
    run_dying: Callable[..., int | None],
    assert_same_run: Callable[[Path, Path], None],
    token_shards: Path,
    tmp_path: Path,
) -> None:
    num_kills = amount(6, 100)
    whole = TrainConfig(
        shards=(token_shards,),
        recipe=recipe_of(num_kills // 2 + 5, 1),
        out_dir=tmp_path / "whole",
        device="cpu",
    )
    killed = replace(whole, out_dir=tmp_path / "killed", resume=True)
    # Two saves, so that there is a checkpoint to fall back to; then the run dies in a step.
    count_path = tmp_path / "count"
    one_save = replace(whole, recipe=recipe_of(1, 1), out_dir=tmp_path / "one")
    assert run_dying(one_save, in_save=True, count_path=count_path) == 0
    num_operations = int(count_path.read_text()) * 5 // 4  # later saves also remove old checkpoints
    assert run_dying(killed, step=2, num_operations=0) == -9

    points = 1 + np.random.default_rng(num_kills).permutation(num_kills) * num_operations // num_kills
    num_whole = 2
    for number, point in enumerate(points.tolist()):
        before = latest_checkpoint(killed.out_dir)
        assert before is not None
        if number % 3 == 2 and num_whole >= 2:  # it is written again, over its stale DONE
            damage(before)
            before, num_whole = latest_checkpoint(killed.out_dir), 1
        assert run_dying(killed, in_save=True, num_operations=point) == -9
        after = latest_checkpoint(killed.out_dir)
        assert step_of(after) - step_of(before) in (0, 1), f"killed at operation {point}"
        num_whole += step_of(after) - step_of(before)
        assert after is not None
        assert load_checkpoint(after).step == load_trainer_state(after).step == step_of(after)
    train(killed)
    train(whole)
    assert_same_run(killed.out_dir, whole.out_dir)
    assert len(list(killed.out_dir.glob("checkpoint-*"))) in (2, 3)  # the newest two, and the best
    assert not list(killed.out_dir.rglob("*.tmp"))
