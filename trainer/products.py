"""Products of rows and the weight of a layer, which take most of a training step.

For float32 on a processor torch takes MKL. oneDNN, which torch has too and takes for other types, multiplies
the tall and narrow matrices of training up to three times faster, as docs/benchmarks.md shows. It compiles
and keeps code for each number of rows, half a megabyte of it, so rows are padded to a few numbers of them.

Suffixes: N row (there may be several dimensions of them), D width, O output, P row, padded.
"""

from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, pad

HAS_ONEDNN: Final = (
    torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and torch.backends.cpu.get_cpu_capability().startswith("AVX")
)
"""Whether torch was built with it, for a processor that it was tried on."""
STEP_OF_ROWS: Final = 256
"""Rows are padded to a multiple of it. Fewer are left to MKL."""


class Linear(torch.nn.Linear):
    """A linear layer that multiplies with `multiply`, in its backward pass too."""

    def forward(self, x_ND: Tensor) -> Tensor:
        """N × O."""
        if not _is_for_onednn(x_ND, self.weight):
            return super().forward(x_ND)
        output_NO: Tensor = _Multiply.apply(x_ND, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return output_NO


def use_products(model: torch.nn.Module) -> None:
    """Makes the linear layers of a model multiply with `multiply` from now on; names and weights stay."""
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            module.__class__ = Linear


def multiply(x_ND: Tensor, weight_OD: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """N × O like torch's `linear`, without gradient: rows times the transposed weight, plus the bias."""
    if not _is_for_onednn(x_ND, weight_OD):
        return linear(x_ND, weight_OD, bias_O)
    x_PD = x_ND.flatten(0, -2)
    num_rows = len(x_PD)
    if num_free := -num_rows % STEP_OF_ROWS:
        x_PD = pad(x_PD, (0, 0, 0, num_free))
    return _multiply_with_onednn(x_PD, weight_OD, bias_O)[:num_rows].view(*x_ND.shape[:-1], len(weight_OD))


def _multiply_with_onednn(x_PD: Tensor, weight_OD: Tensor, bias_O: Tensor | None) -> Tensor:
    # It would read a bias with strides as if it had none.
    bias_O = None if bias_O is None else bias_O.contiguous()
    output_PO: Tensor = torch.ops.mkldnn._linear_pointwise(x_PD, weight_OD, bias_O, "none", [], "")
    return output_PO


def _is_for_onednn(x_ND: Tensor, weight_OD: Tensor) -> bool:
    return (
        x_ND.device.type == weight_OD.device.type == "cpu"
        and x_ND.dtype == weight_OD.dtype == torch.float32
        and x_ND.shape[:-1].numel() >= STEP_OF_ROWS
        and not torch.is_autocast_enabled("cpu")
        and HAS_ONEDNN
        # Compiled layers know no oneDNN with a weight that is trained.
        and not torch.compiler.is_compiling()
    )


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_OD: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_ND, weight_OD)
        return multiply(x_ND, weight_OD, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NO: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weight_OD = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows_NO = gradient_NO.flatten(0, -2)
        return (
            multiply(gradient_NO, weight_OD.T) if wants_x else None,
            # oneDNN sums over many rows more slowly than MKL.
            rows_NO.T @ x_ND.flatten(0, -2) if wants_weight else None,
            rows_NO.sum(dim=0) if wants_bias else None,
        )
