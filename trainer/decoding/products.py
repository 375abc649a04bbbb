"""Products of the few rows of a decoding step and a weight, from the side that BLAS is faster at.

Suffixes: N row, D width, O output.
"""

from typing import Final

import torch
from torch import Tensor

_FEW_ROWS: Final = 64
"""So many rows that several threads multiply faster with the weight first."""
_FEWEST_ROWS: Final = 4
"""The same for one thread and a large weight."""
_LARGE_WEIGHT: Final = 1 << 17
"""Numbers that do not stay in a core's cache."""


def multiply(x_ND: Tensor, weight_OD: Tensor) -> Tensor:
    """Rows times the transposed weight: N × O.

    On a CPU the weight comes first where that is faster: BLAS shares out the rows of its first matrix among
    threads, and a weight has enough of them. A single row is doubled for a large weight, since a product of
    matrix and vector reads memory at half the speed.
    """
    if x_ND.is_cuda:
        return torch.mm(x_ND, weight_OD.T)
    num_rows, is_large = len(x_ND), weight_OD.numel() >= _LARGE_WEIGHT
    if num_rows == 1 and is_large:
        return multiply(torch.cat((x_ND, x_ND)), weight_OD)[:1]
    most = _FEW_ROWS if torch.get_num_threads() > 1 else _FEWEST_ROWS * is_large
    if num_rows > most:
        return torch.mm(x_ND, weight_OD.T)
    return torch.mm(weight_OD, x_ND.T).T.contiguous()
