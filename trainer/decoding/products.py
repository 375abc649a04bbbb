"""Products of the few rows of a decoding step and a weight, from the side that BLAS is faster at.

Suffixes: N row, D width, O output.
"""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

_LARGE_WEIGHT: Final = 1 << 17
"""Numbers that do not stay in a core's cache. A smaller weight is not worth turning its product around."""
_FEW_ROWS: Final = 4
"""So many rows are multiplied faster with a large weight first; more were not, in a whole run."""

Layer = Callable[[Tensor], Tensor]
"""N × width to N × width."""
Adding = Callable[[Tensor, Tensor], Tensor]
"""The residual stream N × D and an input, to the stream with what is made of the input added."""


def make_product(weight_OD: Tensor, bias_O: Tensor | None) -> Layer:
    """Rows N × D times the transposed weight, plus the bias: N × O."""
    weight_DO, is_large = weight_OD.T, _is_large(weight_OD)

    def multiply(x_ND: Tensor) -> Tensor:
        if is_large and len(x_ND) <= _FEW_ROWS:
            y_NO = _multiply_weight_first(x_ND, weight_OD)
            return y_NO if bias_O is None else y_NO.add_(bias_O)
        return torch.mm(x_ND, weight_DO) if bias_O is None else torch.addmm(bias_O, x_ND, weight_DO)

    return multiply


def make_adding(weight_OD: Tensor, bias_O: Tensor | None) -> Adding:
    """The same, added to the residual stream."""
    weight_DO, is_large = weight_OD.T, _is_large(weight_OD)

    def add(x_NO: Tensor, h_ND: Tensor) -> Tensor:
        if is_large and len(h_ND) <= _FEW_ROWS:
            y_NO = _multiply_weight_first(h_ND, weight_OD).add_(x_NO)
        else:
            y_NO = torch.addmm(x_NO, h_ND, weight_DO)
        return y_NO if bias_O is None else y_NO.add_(bias_O)

    return add


def _is_large(weight_OD: Tensor) -> bool:
    """Whether it is one for a CPU; a GPU takes every weight as it is."""
    return not weight_OD.is_cuda and weight_OD.numel() >= _LARGE_WEIGHT


def _multiply_weight_first(x_ND: Tensor, weight_OD: Tensor) -> Tensor:
    if len(x_ND) == 1:
        # A product of matrix and vector reads memory at half the speed of one with two columns.
        return torch.mm(weight_OD, torch.cat((x_ND, x_ND)).T)[:, :1].T.contiguous()
    return torch.mm(weight_OD, x_ND.T).T.contiguous()
