"""One optimizer step: packed rows of this rank -> gradients summed over rows and ranks -> update.

The processor reads one small tensor per step, behind the backward passes and before the update. It holds all
figures of the step over all ranks, so every rank comes to the same decision: go on, stop and save, or fail.

Suffixes: N token that carries loss, K task (a place in TASKS), M modality.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dmlm.pipeline.errors import NotFiniteError
from dmlm.pipeline.randomness import generator_for
from dmlm.trainer.config import Recipe
from dmlm.trainer.data.packing import PackedBatch
from dmlm.trainer.data.tasks import TASKS
from dmlm.trainer.distributed import Ranks, gradients_kept_back, spread
from dmlm.trainer.loss import (
    NUM_MODALITIES,
    NUM_TASKS,
    LossCounts,
    count_loss_tokens,
    sum_by_task,
    token_weights,
)
from dmlm.trainer.models.attention import choose_kernel
from dmlm.trainer.models.layers import checkpoint_layers, compile_layers
from dmlm.trainer.models.packed_forward import PackedModel, choose_products
from dmlm.trainer.optim import build_optimizer, clip_gradient, learning_rate, update

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NUM_NAMED: Final = 5
SHAPE_OF_SUMS: Final = (NUM_TASKS, NUM_MODALITIES, 3)
NUM_SUMS: Final = math.prod(SHAPE_OF_SUMS)
_NOTHING_COMPILED: Final = (
    "torch_compile has no effect: gradient_checkpointing leaves nothing to compile where attention is called "
    "once per sequence; leave one of them out, or take attention: dense"
)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepResult:
    """Figures of one optimizer step, over all ranks."""

    loss: float
    num_tokens_KM: npt.NDArray[np.int64]
    """Tokens that carry loss."""
    sums_KM: npt.NDArray[np.float64]
    """Their cross-entropies, in nats."""
    parts_KM: npt.NDArray[np.float64]
    """What they add to the loss."""
    tokens_by_task: Mapping[str, int]
    """All tokens."""
    num_sequences: int
    num_rows: int
    learning_rate: float
    gradient_norm: float
    """Before clipping."""
    is_stopping: bool
    """Whether some rank was asked to stop."""


class TrainStep:
    """Takes the optimizer steps of a run; `torchrun` may have spread it over ranks."""

    def __init__(self, model: "PreTrainedModel", recipe: Recipe, seed: int, ranks: Ranks) -> None:
        self._recipe, self._seed, self._ranks, self._model = recipe, seed, ranks, model
        self._device = next(model.parameters()).device
        self.products = choose_products(recipe, self._device)
        """Type of matrix products."""
        self.kernel = choose_kernel(recipe, model, self._device, self.products)
        """How attention runs."""
        if recipe.gradient_checkpointing:
            checkpoint_layers(model)
        self._packed = spread(PackedModel(model, self.kernel, self.products), ranks, recipe.parallel)
        if recipe.torch_compile:
            if recipe.gradient_checkpointing and self.kernel == "sequences" and ranks.is_first:
                _logger.warning(_NOTHING_COMPILED)
            compile_layers(model)
        self.optimizer = build_optimizer(model, recipe.optimizer)

    def __call__(
        self, number: int, batches: Sequence[PackedBatch], is_asked_to_stop: Callable[[], bool]
    ) -> StepResult:
        """Takes step `number`, counted from 0, on this rank's micro-batches.

        Raises:
            NotFiniteError: The loss or the gradient is NaN or infinite on some rank; nothing was updated.
        """
        content = self._ranks.sum(_content_of(batches).to(self._device, non_blocking=True))
        batches = [batch.to(self._device) for batch in batches]
        counts = LossCounts(content[:NUM_MODALITIES], content[NUM_MODALITIES])
        sums, losses = self._run(number, batches, counts)
        norm = clip_gradient(self._model, self._recipe.optimizer.max_gradient_norm)
        rate = learning_rate(number, self._recipe.num_steps, self._recipe.optimizer)
        sums[-1] = is_asked_to_stop()
        result = self._read(norm, self._ranks.sum(sums), content, rate)
        self._check_finite(number, result, batches, losses)
        update(self.optimizer, rate)
        return result

    def _run(
        self, number: int, batches: Sequence[PackedBatch], counts: LossCounts
    ) -> tuple[Tensor, list[Tensor]]:
        """Forward and backward passes.

        Returns:
            Counts, cross-entropies and parts of the loss by task and modality, the loss and a free place,
            in one tensor; the losses of every token.
        """
        sums, losses = torch.zeros(NUM_SUMS + 2, dtype=torch.float64, device=self._device), []
        for index, batch in enumerate(batches):
            # Dropout follows from step and micro-batch alone: no generator has to be saved, and micro-batches
            # may move to another rank.
            place = index * self._ranks.world_size + self._ranks.rank
            torch.manual_seed(int(generator_for(self._seed, "step", number, place).integers(2**63)))
            weights_N = token_weights(batch, counts, self._recipe.loss)
            with gradients_kept_back(self._packed, index < len(batches) - 1):
                loss, losses_N = self._packed(batch, weights_N)
                loss.backward()
            values_NX = torch.stack([torch.ones_like(losses_N), losses_N, losses_N * weights_N], dim=1)
            sums[:NUM_SUMS] += sum_by_task(values_NX, batch).flatten()
            sums[NUM_SUMS] += loss.detach()
            losses.append(losses_N)
        return sums, losses

    def _read(self, norm: Tensor, sums: Tensor, content: Tensor, rate: float) -> StepResult:
        # The one place where the processor waits for the device.
        figures = torch.cat([norm.double()[None], sums, content]).tolist()
        gradient_norm, *by_task = figures[: 1 + NUM_SUMS]
        loss, num_stopping, *_, num_sequences = figures[1 + NUM_SUMS : -NUM_TASKS]
        num_tokens_KM, sums_KM, parts_KM = np.moveaxis(np.reshape(by_task, SHAPE_OF_SUMS), -1, 0)
        return StepResult(
            loss=loss,
            num_tokens_KM=num_tokens_KM.astype(np.int64),
            sums_KM=sums_KM,
            parts_KM=parts_KM,
            tokens_by_task={task: int(n) for task, n in zip(TASKS, figures[-NUM_TASKS:], strict=True)},
            num_sequences=int(num_sequences),
            num_rows=self._recipe.batch.num_micro_batches,
            learning_rate=rate,
            gradient_norm=gradient_norm,
            is_stopping=num_stopping > 0,
        )

    def _check_finite(
        self, number: int, result: StepResult, batches: Sequence[PackedBatch], losses: Sequence[Tensor]
    ) -> None:
        if not math.isfinite(result.loss):
            what, keys = "loss", _keys_of_bad_losses(batches, losses)
        elif not math.isfinite(result.gradient_norm):
            what, keys = "gradient", [key for batch in batches for key in batch.keys]
        else:
            return
        more = f" and {len(keys) - NUM_NAMED} more" if len(keys) > NUM_NAMED else ""
        named = ", ".join(keys[:NUM_NAMED]) or "on another rank"
        raise NotFiniteError(
            f"step {number + 1}: the {what} is not finite: {named}{more}; "
            "lower the learning rate, or look at these samples"
        )


def _content_of(batches: Sequence[PackedBatch]) -> Tensor:
    """Tokens with loss by modality, sequences, and tokens by task, as one vector."""
    counts = count_loss_tokens(batches)
    tokens_by_task: Counter[str] = Counter()
    for batch in batches:
        for task, length in zip(batch.tasks, batch.lengths, strict=True):
            tokens_by_task[task] += length
    by_task = torch.tensor([tokens_by_task[task] for task in TASKS])
    return torch.cat([counts.num_tokens_M, counts.num_sequences[None], by_task])


def _keys_of_bad_losses(batches: Sequence[PackedBatch], losses: Sequence[Tensor]) -> list[str]:
    keys = []
    for batch, losses_N in zip(batches, losses, strict=True):
        numbers = batch.sequence_N[~torch.isfinite(losses_N)].tolist()
        keys += [batch.keys[number] for number in sorted(set(numbers))]
    return keys
