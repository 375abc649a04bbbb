"""The last layer and its cross-entropy in one, without tokens × vocabulary logits.

Tokens go through in chunks. The weight of every token's loss is known before the backward pass, so a chunk
gives its share of the gradient while its logits are there, and nothing is computed twice.

Suffixes: N token that carries loss, C token of the chunk, D width, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CPU_CHUNK_LOGITS: Final = 2**20
"""Logits at a time: 4 MB in float32, which stay in the cache of a processor (docs/loss.md)."""
CHUNK_LOGITS: Final = 2**24
"""The same on other devices: 64 MB in float32. At this size chunks cost no time."""
MIN_CHUNK_TOKENS: Final = 256
"""However large the vocabulary: products of fewer rows are slow."""


def linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, weights_N: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted sum of the tokens' cross-entropies in float64, and each of them, in nats and without gradient.

    Products run in the type of autocast if it is on, else in that of `hidden_ND`; the softmax runs in
    float32 or float64. The gradient is made in the forward pass, so the backward pass can run once only.
    """
    loss, losses_N = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_ND, weight_VD, bias_V, targets_N, weights_N, torch.is_grad_enabled()
    )
    return loss, losses_N


def chunk_tokens(device_type: str, num_ids: int) -> int:
    """Tokens that go through at a time, for a vocabulary of `num_ids`."""
    num_logits = CPU_CHUNK_LOGITS if device_type == "cpu" else CHUNK_LOGITS
    return max(MIN_CHUNK_TOKENS, num_logits // num_ids)


@dataclass(slots=True, eq=False)
class _Gradients:
    """Of the loss; None where it is not wanted."""

    hidden_ND: Tensor | None
    weight_VD: Tensor | None
    bias_V: Tensor | None

    def add(
        self, start: int, residual_CV: Tensor, hidden_CD: Tensor, matrix_VD: Tensor, weights_C: Tensor
    ) -> None:
        """Takes in a chunk; `residual_CV` is softmax minus one-hot."""
        stop = start + len(weights_C)
        # The weights scale the narrow matrices, not the wide one.
        if self.hidden_ND is not None:
            self.hidden_ND[start:stop] = (residual_CV @ matrix_VD) * weights_C[:, None]
        if self.weight_VD is not None:
            weighted_CD = hidden_CD * weights_C[:, None].to(hidden_CD.dtype)
            if self.weight_VD.dtype == residual_CV.dtype:
                self.weight_VD.addmm_(residual_CV.T, weighted_CD)
            else:
                self.weight_VD += residual_CV.T @ weighted_CD
        if self.bias_V is not None:
            self.bias_V += weights_C @ residual_CV.to(weights_C.dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        weights_N: Tensor,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        kind = hidden_ND.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_ND.dtype
        exact = torch.promote_types(dtype, torch.float32)
        inputs = (hidden_ND, weight_VD, bias_V)
        gradients = _Gradients(
            *(
                torch.zeros_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
                if tensor is not None and wanted and with_gradient
                else None
                for tensor, wanted in zip(inputs, ctx.needs_input_grad[:3], strict=True)
            )
        )
        losses_N = torch.empty(len(hidden_ND), dtype=exact, device=hidden_ND.device)
        with torch.autocast(kind, enabled=False):
            matrix_VD, offsets_V = weight_VD.to(dtype), None if bias_V is None else bias_V.to(dtype)
            size = chunk_tokens(kind, len(weight_VD))
            for start in range(0, len(hidden_ND), size):
                rows = slice(start, start + size)
                hidden_CD = hidden_ND[rows].to(dtype)
                logits_CV = torch.nn.functional.linear(hidden_CD, matrix_VD, offsets_V)
                losses_N[rows], residual_CV = _losses_and_residual(logits_CV.to(exact), targets_N[rows])
                gradients.add(start, residual_CV.to(dtype), hidden_CD, matrix_VD, weights_N[rows].to(exact))
        ctx.gradients, ctx.dtypes = gradients, [None if t is None else t.dtype for t in inputs]
        ctx.mark_non_differentiable(losses_N)
        return (losses_N.double() * weights_N).sum(), losses_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("linear_cross_entropy: its backward pass can run once only")
        parts = (gradients.hidden_ND, gradients.weight_VD, gradients.bias_V)
        scaled = (
            None if part is None else part.mul_(gradient).to(dtype)
            for part, dtype in zip(parts, ctx.dtypes, strict=True)
        )
        return (*scaled, None, None, None)


def _losses_and_residual(logits_CV: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropies, and their gradient with respect to the logits."""
    shares_CV = torch.softmax(logits_CV, dim=-1)
    places_C = torch.arange(len(targets_C), device=targets_C.device)
    # The largest share is at least 1 / V, so its logarithm is exact, and one exponential per logit is enough.
    losses_C = logits_CV.amax(-1) - shares_CV.amax(-1).log() - logits_CV[places_C, targets_C]
    shares_CV[places_C, targets_C] -= 1
    return losses_C, shares_CV
