"""AdamW, its schedule, and its state as plain tensors."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmlm.pipeline.errors import CheckpointError
from dmlm.trainer.config import OptimizerConfig
from dmlm.trainer.distributed import shard_like, whole_tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_STATE_NAMES = ("step", "exp_avg", "exp_avg_sq")


def build_optimizer(model: "PreTrainedModel", config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW whose weight decay spares biases and norms."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    beta1, beta2 = config.betas
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(beta1, beta2), fused=True)


def learning_rate(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """Learning rate of step `step`, counted from 0: linear warm-up, then the schedule down to its end."""
    if step < config.num_warmup_steps:
        return config.learning_rate * (step + 1) / config.num_warmup_steps
    done = (step - config.num_warmup_steps) / max(num_steps - 1 - config.num_warmup_steps, 1)
    decayed = {"constant": 0.0, "linear": done, "cosine": (1 - math.cos(math.pi * done)) / 2}[config.schedule]
    return config.learning_rate * (1 - (1 - config.final_share) * decayed)


def clip_gradient(model: "PreTrainedModel", max_norm: float) -> Tensor:
    """Scales the gradient down to `max_norm` if it is longer; its norm before, over all ranks."""
    return whole_tensor(torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm))


def update(optimizer: torch.optim.AdamW, rate: float) -> None:
    """Takes a step at that learning rate and drops the gradient."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def optimizer_tensors(
    model: "PreTrainedModel", optimizer: torch.optim.AdamW, *, is_kept: bool = True
) -> dict[str, Tensor]:
    """State of the optimizer in main memory, by the name of its parameter; every rank has to ask for it.

    With `is_kept` False this rank only gives its shards to the others: the result is empty.
    """
    tensors = {}
    for name, parameter in model.named_parameters():
        for part in _STATE_NAMES:
            whole = whole_tensor(optimizer.state[parameter][part])
            if is_kept:
                tensors[f"{name}.{part}"] = whole.cpu()
    return tensors


def restore_optimizer(
    model: "PreTrainedModel", optimizer: torch.optim.AdamW, tensors: Mapping[str, Tensor]
) -> None:
    """Puts back what `optimizer_tensors` gave.

    Raises:
        CheckpointError: The tensors are those of another model.
    """
    for name, parameter in model.named_parameters():
        try:
            state = {part: tensors[f"{name}.{part}"] for part in _STATE_NAMES}
        except KeyError as error:
            raise CheckpointError(f"state of the optimizer: no {error.args[0]}") from None
        if state["exp_avg"].shape != parameter.shape:
            raise CheckpointError(f"state of the optimizer: {name} has another shape")
        optimizer.state[parameter] = {
            part: tensor.to(parameter.device) if part == "step" else shard_like(tensor, parameter)
            for part, tensor in state.items()
        }
