"""The discrete VAE of DALL-E (arXiv 2102.12092): pixels -> logits of 8,192 codes, and codes -> pixels.

Names of modules and parameters are those of the reference package `dall_e`, so its `state_dict()` fits.
Channels come last, so that a 1 × 1 convolution is a plain matrix product.

Suffixes: B image, H row, W column, C channel, K output channel, V code.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlm.pipeline.encoders.winograd import convolve_positive_part, transform_kernel

DOWNSAMPLING = 8
NUM_GROUPS, BLOCKS_PER_GROUP = 4, 2
POST_GAIN = 1 / (NUM_GROUPS * BLOCKS_PER_GROUP) ** 2


class _Convolution(nn.Module):
    """Convolution of [B, H, W, C] to [B, H, W, K] with zeros around the image."""

    def __init__(self, num_inputs: int, num_outputs: int, size: int) -> None:
        super().__init__()
        std = 1 / math.sqrt(num_inputs * size**2)
        self.w = nn.Parameter(torch.empty(num_outputs, num_inputs, size, size).normal_(std=std))
        self.b = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, x_BHWC: Tensor) -> Tensor:
        size = self.w.shape[2]
        if size == 1:
            return F.linear(x_BHWC, self.w.flatten(1), self.b)
        y_BKHW = F.conv2d(x_BHWC.permute(0, 3, 1, 2), self.w, self.b, padding=size // 2)
        return y_BKHW.permute(0, 2, 3, 1)


class _PositiveConvolution(_Convolution):
    """Convolution of max(x, 0); 3 × 3 on a CPU goes by Winograd's algorithm."""

    def forward(self, x_BHWC: Tensor) -> Tensor:
        if self.w.shape[2] == 1 or x_BHWC.device.type != "cpu":
            return super().forward(F.relu(x_BHWC))
        return convolve_positive_part(x_BHWC, self._winograd_kernel).add_(self.b)

    @cached_property
    def _winograd_kernel(self) -> Tensor:
        return transform_kernel(self.w)


class _Block(nn.Module):
    """Bottleneck of four convolutions beside an identity or a projection."""

    def __init__(self, num_inputs: int, num_outputs: int, sizes: tuple[int, int, int, int]) -> None:
        super().__init__()
        hidden = num_outputs // 4
        widths = (num_inputs, hidden, hidden, hidden, num_outputs)
        self.id_path = (
            nn.Identity() if num_inputs == num_outputs else _Convolution(num_inputs, num_outputs, 1)
        )
        self.res_path = nn.Sequential()
        for i, size in enumerate(sizes, 1):
            self.res_path.add_module(f"conv_{i}", _PositiveConvolution(widths[i - 1], widths[i], size))

    def forward(self, x_BHWC: Tensor) -> Tensor:
        residual_BHWC = self.res_path(x_BHWC)
        # In place, even into the input, which nobody needs any more: fresh memory of this size is slow.
        y_BHWC: Tensor = self.id_path(x_BHWC).add_(residual_BHWC, alpha=POST_GAIN)
        return y_BHWC


class _Pool(nn.Module):
    """Halves height and width, keeping the largest of 2 × 2."""

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return F.max_pool2d(x_BHWC.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


class _Upsample(nn.Module):
    """Doubles height and width by repetition."""

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return x_BHWC.repeat_interleave(2, 1).repeat_interleave(2, 2)


class Encoder(nn.Module):
    """Mapped pixels [B, H, W, 3] to logits [B, H / 8, W / 8, V]."""

    def __init__(self, width: int = 256, num_codes: int = 8192) -> None:
        super().__init__()
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.blocks = nn.Sequential(OrderedDict(input=_Convolution(3, width, 7)))
        _add_groups(self.blocks, widths, (3, 3, 3, 1), "pool", _Pool)
        self.blocks.add_module("output", _output(widths[-1], num_codes))

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Logits of the codes."""
        logits_BHWV: Tensor = self.blocks(x_BHWC)
        return logits_BHWV


class Decoder(nn.Module):
    """Codes [B, H, W] to parameters [B, 8 · H, 8 · W, 6] of a logit-Laplace distribution, its mean first."""

    def __init__(self, width: int = 256, num_codes: int = 8192, num_inputs: int = 128) -> None:
        super().__init__()
        widths = [num_inputs, 8 * width, 4 * width, 2 * width, width]
        self.blocks = nn.Sequential(OrderedDict(input=_Convolution(num_codes, num_inputs, 1)))
        _add_groups(self.blocks, widths, (1, 3, 3, 3), "upsample", _Upsample)
        self.blocks.add_module("output", _output(width, 6))

    def forward(self, codes_BHW: Tensor) -> Tensor:
        """Parameters of the pixels' distribution, before the sigmoid."""
        # A 1 × 1 convolution of one-hot vectors is a row of its kernel.
        kernel, bias = (self.blocks.get_parameter(name) for name in ("input.w", "input.b"))
        x_BHWC = F.embedding(codes_BHW, kernel.flatten(1).T) + bias
        parameters_BHWC: Tensor = self.blocks[1:](x_BHWC)
        return parameters_BHWC


def build_encoder(state: Mapping[str, Tensor]) -> Encoder:
    """Encoder without values, of the size that the weights speak of; KeyError when there are none."""
    with torch.device("meta"):
        return Encoder(state["blocks.input.w"].shape[0], state["blocks.output.conv.w"].shape[0])


def build_decoder(state: Mapping[str, Tensor]) -> Decoder:
    """Decoder without values, of the size that the weights speak of; KeyError when there are none."""
    num_inputs, num_codes = state["blocks.input.w"].shape[:2]
    with torch.device("meta"):
        return Decoder(state["blocks.output.conv.w"].shape[1], num_codes, num_inputs)


def _add_groups(
    blocks: nn.Sequential,
    widths: list[int],
    sizes: tuple[int, int, int, int],
    name: str,
    scale: type[nn.Module],
) -> None:
    """Four groups of two blocks; `scale` stands between groups."""
    for i in range(1, NUM_GROUPS + 1):
        group = nn.Sequential()
        group.add_module("block_1", _Block(widths[i - 1], widths[i], sizes))
        group.add_module("block_2", _Block(widths[i], widths[i], sizes))
        if i < NUM_GROUPS:
            group.add_module(name, scale())
        blocks.add_module(f"group_{i}", group)


def _output(num_inputs: int, num_outputs: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=_PositiveConvolution(num_inputs, num_outputs, 1)))
