"""Products of the few rows of a decoding step and a weight, by what is fastest at them.

Suffixes: N row, D width, O output.
"""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import linear

from dmlm.trainer.products import multiply

_LARGE_WEIGHT: Final = 1 << 17
"""Numbers that do not stay in a core's cache. With a smaller weight torch's own product is over soonest."""
_FEW_ROWS: Final = 4
"""So many rows are multiplied faster with a large weight first; more were not, in a whole run."""

Layer = Callable[[Tensor], Tensor]
"""N × width to N × width."""
Adding = Callable[[Tensor, Tensor], Tensor]
"""The residual stream N × D and an input, to the stream with what is made of the input added."""


def make_product(weight_OD: Tensor, bias_O: Tensor | None) -> Layer:
    """Rows N × D times the transposed weight, plus the bias: N × O."""

    def take_small(x_ND: Tensor) -> Tensor:
        return linear(x_ND, weight_OD, bias_O)

    def take_large(x_ND: Tensor) -> Tensor:
        if len(x_ND) > _FEW_ROWS:
            return multiply(x_ND, weight_OD, bias_O)
        y_NO = _multiply_weight_first(x_ND, weight_OD)
        return y_NO if bias_O is None else y_NO.add_(bias_O)

    return take_large if _is_large(weight_OD) else take_small


def make_adding(weight_OD: Tensor, bias_O: Tensor | None) -> Adding:
    """The same, added to the residual stream."""
    weight_DO, product = weight_OD.T, make_product(weight_OD, bias_O)

    def add_small(x_NO: Tensor, h_ND: Tensor) -> Tensor:
        y_NO = torch.addmm(x_NO, h_ND, weight_DO)
        return y_NO if bias_O is None else y_NO.add_(bias_O)

    def add_large(x_NO: Tensor, h_ND: Tensor) -> Tensor:
        return product(h_ND).add_(x_NO)

    return add_large if _is_large(weight_OD) else add_small


def _is_large(weight_OD: Tensor) -> bool:
    """Whether it is one for a CPU; a GPU takes every weight as it is."""
    return not weight_OD.is_cuda and weight_OD.numel() >= _LARGE_WEIGHT


def _multiply_weight_first(x_ND: Tensor, weight_OD: Tensor) -> Tensor:
    if len(x_ND) == 1:
        # A product of matrix and vector reads memory at half the speed of one with two columns.
        return torch.mm(weight_OD, torch.cat((x_ND, x_ND)).T)[:, :1].T.contiguous()
    return torch.mm(weight_OD, x_ND.T).T.contiguous()
