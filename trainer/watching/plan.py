"""What a run will do, computed from the index before its first step: tokens, weights of the loss, operations.

groups of the mix -> Plan -> table for the console

Suffixes: G group of the mix, K task (a place in TASKS), M modality.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import torch

from dmlm.pipeline.errors import ConfigError
from dmlm.trainer.config import Recipe
from dmlm.trainer.data.mix import Group, Mix
from dmlm.trainer.data.packing import Packer
from dmlm.trainer.data.tasks import MODALITIES, TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FloatArray = npt.NDArray[np.float64]

PASSES: Final = 3
"""Forward once, backward twice: gradients of inputs and of weights."""
NUM_ROWS_TRIED: Final = 200
PEAK_FLOPS: Final = {
    **{"B200": 2250e12, "GH200": 989e12, "H200": 989e12},
    **{"H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "A100": 312e12},
    **{"L40S": 362e12, "L40": 181e12, "L4": 121e12, "A40": 150e12, "A10": 125e12, "A6000": 155e12},
    **{"RTX 5090": 210e12, "RTX 4090": 165e12, "RTX 3090": 71e12},
}
"""Dense bfloat16 products per second, from NVIDIA's data sheets; the first name that fits counts."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """What the whole run is expected to hold."""

    recipe: Recipe
    groups: tuple[Group, ...]
    epochs_G: FloatArray
    tokens_G: FloatArray
    """All tokens."""
    loss_tokens_GM: FloatArray
    """Those that carry loss."""
    weights_GM: FloatArray
    """Of the loss: a group's part of it if all tokens were equally hard; up to a factor."""
    fill: float
    """Tokens, as a share of the capacity of the rows."""


def make_plan(groups: Sequence[Group], recipe: Recipe, seed: int) -> Plan:
    """Plans a run; packs its first rows to see how full they get.

    Raises:
        ConfigError: No token of the groups has a weight in the loss.
    """
    num_rows = recipe.num_steps * recipe.batch.num_micro_batches
    fill = _try_packing(groups, recipe, seed, min(num_rows, NUM_ROWS_TRIED))
    weights_G = np.array([group.weight for group in groups])
    tokens_G = num_rows * recipe.batch.max_tokens * fill * weights_G
    epochs_G = tokens_G / np.maximum([group.lengths_N.sum() for group in groups], 1)
    loss_tokens_GM = epochs_G[:, None] * np.stack([group.loss_tokens_M for group in groups])
    sequences_G = epochs_G * [len(group.rows_N) for group in groups]
    weights_GM = _loss_weights(loss_tokens_GM, sequences_G, recipe)
    if not weights_GM.any():
        loss = recipe.loss
        raise ConfigError(
            "nothing would be learnt: no token of this mix has a weight in the loss "
            f"(loss.text {loss.text}, loss.speech {loss.speech}, loss.image {loss.image})"
        )
    return Plan(
        recipe=recipe,
        groups=tuple(groups),
        epochs_G=epochs_G,
        tokens_G=tokens_G,
        loss_tokens_GM=loss_tokens_GM,
        weights_GM=weights_GM,
        fill=fill,
    )


def _loss_weights(loss_tokens_GM: FloatArray, sequences_G: FloatArray, recipe: Recipe) -> FloatArray:
    lambdas_M = np.array([getattr(recipe.loss, modality) for modality in MODALITIES])
    if recipe.loss.normalise == "none":
        return loss_tokens_GM
    shares_GM = loss_tokens_GM / np.maximum(loss_tokens_GM.sum(axis=0), 1)
    if recipe.loss.normalise == "sequence":
        shares_GM = sequences_G[:, None] * (loss_tokens_GM > 0)
    weights_GM: FloatArray = lambdas_M * shares_GM
    return weights_GM


def _try_packing(groups: Sequence[Group], recipe: Recipe, seed: int, num_rows: int) -> float:
    """Share of the capacity that tokens fill."""
    mix = Mix([replace(group, num_draws=0, num_tokens=0, next_draws=[]) for group in groups], seed)
    packer = Packer(recipe.batch.max_tokens, recipe.batch.pool_size, mix.draw)
    num_tokens = sum(mix.lengths_D[packer.next_row()].sum() for _ in range(num_rows))
    return float(num_tokens) / (num_rows * recipe.batch.max_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """Floating-point operations that training needs: matrix products, forward and backward.

    Attention counts inside each sequence and for earlier tokens only, the head for tokens with loss only.
    What is computed twice to save memory counts once, so a share of the peak is the MFU of the literature.
    """

    per_token: Mapping[str, float]
    """By task, as attention costs more in longer sequences."""
    per_loss_token: float
    peak_per_second: float | None
    """Of all devices together; None where it is not known."""

    def total(self, tokens_by_task: Mapping[str, int], num_loss_tokens: int) -> float:
        """Operations of so many tokens."""
        body = sum(num_tokens * self.per_token[task] for task, num_tokens in tokens_by_task.items())
        return body + num_loss_tokens * self.per_loss_token


def count_operations(model: "PreTrainedModel", groups: Sequence[Group], world_size: int) -> Operations:
    """Operations of a model on the sequences of these groups."""
    config, head = model.config, model.get_output_embeddings()
    embeddings = {
        id(module.weight) for module in model.base_model.modules() if isinstance(module, torch.nn.Embedding)
    }
    matrices = [p for p in model.base_model.parameters() if p.ndim >= 2 and id(p) not in embeddings]
    num_weights = sum(matrix.numel() for matrix in matrices)
    num_heads = config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    width = config.num_hidden_layers * num_heads * head_width
    peak = peak_flops(torch.cuda.get_device_name(model.device)) if model.device.type == "cuda" else None
    return Operations(
        per_token={
            task: PASSES * (2 * num_weights + 4 * width * _mean_context(task, groups)) for task in TASKS
        },
        per_loss_token=PASSES * 2 * head.weight.numel(),
        peak_per_second=None if peak is None else world_size * peak,
    )


def peak_flops(device_name: str) -> float | None:
    """Operations per second that a GPU of this name is sold with; None where it is not known."""
    fitting = (peak for name, peak in PEAK_FLOPS.items() if re.search(rf"\b{name}\b", device_name))
    return next(fitting, None)


def _mean_context(task: str, groups: Sequence[Group]) -> float:
    """Tokens that a token attends to, itself included, over all tokens that the task will give."""
    contexts, weights = [], []
    for group in groups:
        if group.task.name == task and group.weight > 0:
            lengths_N = group.lengths_N.astype(np.float64)
            contexts.append((lengths_N * (lengths_N + 1) / 2).sum() / lengths_N.sum())
            weights.append(group.weight)
    return float(np.average(contexts, weights=weights)) if weights else 0.0
