"""Options of a recipe in a training step: they change time and memory, not what is learnt."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from dmlm.pipeline.samples import Modality
from dmlm.trainer.config import Recipe, recipe_from_json
from dmlm.trainer.data.dataset import open_training_data
from dmlm.trainer.data.packing import PackedBatch
from dmlm.trainer.data.stream import TokenStream
from dmlm.trainer.distributed import ALONE
from dmlm.trainer.models.attention import KERNELS
from dmlm.trainer.models.model import build_model
from dmlm.trainer.step import TrainStep

RECIPE = recipe_from_json(
    {
        "name": "r",
        "num_steps": 4,
        "mix": [{"task": "asr", "weight": 2}, {"task": "image", "weight": 1}],
        "model": {"architecture": "llama", "num_layers": 2, "width": 32, "num_heads": 2, "dropout": 0.0},
        "sequence": {"max_length": 64},
        "batch": {"max_tokens": 128, "num_micro_batches": 2},
        "optimizer": {"num_warmup_steps": 2},
    }
)


def open_run(shards: Path, recipe: Recipe = RECIPE) -> tuple[PreTrainedModel, list[list[PackedBatch]]]:
    """A new model, and the batches of every step."""
    data = open_training_data([shards])
    text_dir = data.codebook_dirs[Modality.TEXT]
    model = build_model(recipe.model, data.vocabulary, text_dir=text_dir, max_length=64, seed=0)
    stream = TokenStream(data, recipe, seed=0)
    return model, [stream.next_step() for _ in range(recipe.num_steps)]


def losses_of(shards: Path, recipe: Recipe) -> tuple[TrainStep, list[float]]:
    model, steps = open_run(shards)
    take_step = TrainStep(model, recipe, 0, ALONE)
    return take_step, [take_step(number, step, lambda: False).loss for number, step in enumerate(steps)]


def test_on_a_cpu_a_step_runs_in_float32_with_one_call_per_sequence(token_shards: Path) -> None:
    take_step, losses = losses_of(token_shards, RECIPE)
    assert (take_step.products, take_step.kernel) == (torch.float32, "sequences")
    assert losses[-1] < losses[0]


def test_every_step_micro_batch_and_seed_drops_other_numbers(token_shards: Path) -> None:
    recipe = replace(RECIPE, model=replace(RECIPE.model, dropout=0.5))

    def loss_of(number: int, seed: int = 0, num_times: int = 1) -> float:
        """Of one batch given once or several times, by a new model."""
        model, (step, *_) = open_run(token_shards, recipe)
        return TrainStep(model.train(), recipe, seed, ALONE)(number, step[:1] * num_times, lambda: False).loss

    assert loss_of(0) == loss_of(0)
    losses = [loss_of(0), loss_of(1), loss_of(2), loss_of(0, seed=1), loss_of(0, num_times=2)]
    assert min(np.diff(sorted(losses))) > 1e-4


def test_options_that_leave_nothing_to_compile_are_named(
    token_shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, _ = open_run(token_shards)
    both = replace(RECIPE, torch_compile=True, gradient_checkpointing=True)
    TrainStep(model, both, 0, ALONE)
    assert "torch_compile has no effect" in caplog.text
    caplog.clear()
    TrainStep(model, replace(both, attention="dense"), 0, ALONE)
    assert not caplog.text


@pytest.mark.parametrize(
    ("option", "tolerance"),
    [
        ({"precision": "bfloat16"}, 1e-2),
        ({"attention": "dense"}, 1e-5),
        ({"gradient_checkpointing": True}, 0.0),
    ],
)
def test_an_option_reaches_the_model_and_leaves_the_losses(
    option: dict[str, Any], tolerance: float, token_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected = losses_of(token_shards, RECIPE)
    calls = []
    for name, kernel in KERNELS.items():

        def attend(query: Any, *more: Any, name: str = name, kernel: Any = kernel) -> torch.Tensor:
            calls.append((name, query.dtype))
            return kernel.attend(query, *more)

        monkeypatch.setitem(KERNELS, name, replace(kernel, attend=attend))
    _, losses = losses_of(token_shards, replace(RECIPE, **option))
    assert losses == pytest.approx(expected, rel=tolerance)
    assert set(calls) == {
        (
            option.get("attention", "sequences"),
            torch.bfloat16 if "precision" in option else torch.float32,
        )
    }
    num_passes = 2 if "gradient_checkpointing" in option else 1
    assert len(calls) == num_passes * RECIPE.num_steps * 2 * RECIPE.model.num_layers


def test_a_recipe_without_these_options_still_loads() -> None:
    content = RECIPE.to_json()
    for name in ("precision", "attention", "torch_compile", "gradient_checkpointing"):
        content.pop(name)
    assert recipe_from_json(json.loads(json.dumps(content))) == RECIPE


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_waits_once_for_the_gpu(token_shards: Path) -> None:
    model, steps = open_run(token_shards)
    take_step = TrainStep(model.cuda(), RECIPE, 0, ALONE)
    pinned = [[batch.pin_memory() for batch in step] for step in steps]
    take_step(0, pinned[0], lambda: False)  # builds the state of the optimizer
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            take_step(1, pinned[1], lambda: False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum("synchronizing" in str(warning.message) for warning in caught) == 1
