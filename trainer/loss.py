"""The length-normalised tri-modal loss: lambda_m / n_m * (sum of m's cross-entropies), over modalities m.

n_m counts the tokens of the whole global batch, so it is known before the first backward pass. It gives every
token a weight, and the loss of a micro-batch is a weighted sum that adds up over micro-batches and ranks.
A modality that is absent has no token and so gives exactly 0. docs/loss.md says how exact this is.

Suffixes: N token that carries loss, S sequence, K task (a place in TASKS), M modality, P pair of both.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

from dmlm.trainer.config import LossConfig
from dmlm.trainer.data.packing import PackedBatch
from dmlm.trainer.data.tasks import MODALITIES, TASKS

NUM_MODALITIES = len(MODALITIES)
TASK_NAMES = tuple(TASKS)
NUM_TASKS = len(TASK_NAMES)


@dataclass(frozen=True, slots=True, eq=False)
class LossCounts:
    """What the global batch holds; counts of its parts add up."""

    num_tokens_M: Tensor
    """Tokens that carry loss, of each modality."""
    num_sequences: Tensor

    def __add__(self, other: "LossCounts") -> "LossCounts":
        return LossCounts(self.num_tokens_M + other.num_tokens_M, self.num_sequences + other.num_sequences)


def count_loss_tokens(batches: Iterable[PackedBatch]) -> LossCounts:
    """Counts of the micro-batches together."""
    return reduce(add, (_counts(batch) for batch in batches))


def _counts(batch: PackedBatch) -> LossCounts:
    return LossCounts(batch.count_targets(NUM_MODALITIES), torch.tensor(len(batch.lengths)))


def token_weights(batch: PackedBatch, counts: LossCounts, config: LossConfig) -> Tensor:
    """float64 weight N of each token's cross-entropy in the loss of the global batch with these `counts`."""
    modality_N = batch.modality_N
    lambdas = [getattr(config, modality) for modality in MODALITIES]
    lambdas_M = torch.tensor(lambdas, dtype=torch.float64).to(modality_N.device, non_blocking=True)
    if config.normalise == "none":
        return (1 / counts.num_tokens_M.sum().double()).expand(len(modality_N))
    if config.normalise == "batch":
        return (lambdas_M / counts.num_tokens_M.clamp(min=1))[modality_N]
    # "sequence": the loss of each sequence with its own n_m, averaged over the sequences.
    place_N = batch.sequence_N * NUM_MODALITIES + modality_N
    num_tokens_SM = _count_each(place_N, len(batch.lengths) * NUM_MODALITIES)
    return lambdas_M[modality_N] / num_tokens_SM[place_N] / counts.num_sequences


def sum_by_task(values_NX: Tensor, batch: PackedBatch) -> Tensor:
    """float64 sums K × M × X of several values of the tokens of each task and modality."""
    task_S = torch.tensor([TASK_NAMES.index(task) for task in batch.tasks])
    task_N = task_S.to(values_NX.device, non_blocking=True)[batch.sequence_N]
    sums_PX = values_NX.new_zeros(NUM_TASKS * NUM_MODALITIES, values_NX.shape[1], dtype=torch.float64)
    sums_PX.index_add_(0, task_N * NUM_MODALITIES + batch.modality_N, values_NX.double())
    return sums_PX.view(NUM_TASKS, NUM_MODALITIES, -1)


def _count_each(numbers_N: Tensor, num_kinds: int) -> Tensor:
    # Not bincount: on a GPU it waits for the result.
    ones_N = torch.ones_like(numbers_N)
    return torch.zeros(num_kinds, dtype=torch.int64, device=numbers_N.device).index_add_(0, numbers_N, ones_N)
