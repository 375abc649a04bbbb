"""The length-normalised tri-modal loss: lambda_m / n_m * (sum of m's cross-entropies), over modalities m.

n_m counts the tokens of the whole global batch, so it is known before the first backward pass. It gives every
token a weight, and the loss of a micro-batch is a weighted sum that adds up over micro-batches (and ranks).
A modality that is absent has no token and so gives exactly 0.

Suffixes: N token that carries loss, S sequence, M modality, V vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dmlm.trainer.config import LossConfig
from dmlm.trainer.packing import PackedBatch
from dmlm.trainer.tasks import MODALITIES

NUM_MODALITIES = len(MODALITIES)


@dataclass(frozen=True, slots=True, eq=False)
class LossCounts:
    """What the global batch holds; counts of its parts add up."""

    num_tokens_M: npt.NDArray[np.int64]
    """Tokens that carry loss, of each modality."""
    num_sequences: int

    def __add__(self, other: "LossCounts") -> "LossCounts":
        return LossCounts(self.num_tokens_M + other.num_tokens_M, self.num_sequences + other.num_sequences)


@dataclass(frozen=True, slots=True, eq=False)
class LossTerms:
    """Sum of cross-entropies and number of tokens of each modality; terms of parts add up."""

    sums_M: npt.NDArray[np.float64]
    num_tokens_M: npt.NDArray[np.int64]

    def __add__(self, other: "LossTerms") -> "LossTerms":
        return LossTerms(self.sums_M + other.sums_M, self.num_tokens_M + other.num_tokens_M)

    def means(self) -> npt.NDArray[np.float64]:
        """Mean cross-entropy of each modality in nats; 0 where it is absent."""
        return self.sums_M / np.maximum(self.num_tokens_M, 1)


def count_loss_tokens(batches: Iterable[PackedBatch]) -> LossCounts:
    """Counts of the micro-batches together."""
    return reduce(add, (_counts(batch) for batch in batches))


def _counts(batch: PackedBatch) -> LossCounts:
    num_tokens_M = torch.bincount(batch.modality_N, minlength=NUM_MODALITIES).cpu().numpy()
    return LossCounts(num_tokens_M, len(batch.lengths))


def token_weights(batch: PackedBatch, counts: LossCounts, config: LossConfig) -> Tensor:
    """float64 weight N of each token's cross-entropy in the loss of the global batch with these `counts`."""
    lambdas_M = torch.tensor([getattr(config, modality) for modality in MODALITIES], dtype=torch.float64)
    if config.normalise == "none":
        return torch.full(batch.modality_N.shape, 1 / int(counts.num_tokens_M.sum()), dtype=torch.float64)
    if config.normalise == "batch":
        scale_M = lambdas_M / torch.from_numpy(counts.num_tokens_M).clamp(min=1)
        return scale_M[batch.modality_N.cpu()]
    # "sequence": the loss of each sequence with its own n_m, averaged over the sequences.
    place_N = (batch.sequence_N * NUM_MODALITIES + batch.modality_N).cpu()
    num_tokens_SM = torch.bincount(place_N, minlength=len(batch.lengths) * NUM_MODALITIES)
    scale_SM = lambdas_M.repeat(len(batch.lengths)) / num_tokens_SM.clamp(min=1) / counts.num_sequences
    return scale_SM[place_N]


def token_losses(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Cross-entropy of each token in nats, in at least float32."""
    if logits_NV.dtype in (torch.float16, torch.bfloat16):
        logits_NV = logits_NV.float()
    return torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="none")


def weighted_loss(losses_N: Tensor, weights_N: Tensor) -> Tensor:
    """Loss of a micro-batch, summed in float64."""
    return (losses_N.double() * weights_N.to(losses_N.device)).sum()


def loss_terms(losses_N: Tensor, batch: PackedBatch) -> LossTerms:
    """Terms of a micro-batch, for the log."""
    modality_N = batch.modality_N.cpu()
    sums_M = torch.bincount(modality_N, losses_N.detach().double().cpu(), minlength=NUM_MODALITIES)
    return LossTerms(sums_M.numpy(), _counts(batch).num_tokens_M)
