"""Attention inside each sequence of a packed row: four kernels that give the same.

A row is prepared once, then every layer attends with the same layout. The model knows its kernel by the name
of its transformers attention function.

    sequences  one call per sequence: computes nothing to be masked; any device, any dtype, dropout
    dense      one call with a mask row × row: few launches, work that grows with the square of the row
    flex       blocks of one mask that are empty are skipped; CUDA, for it has no backward pass on a CPU
    varlen     flash attention on sequences end to end; CUDA, bfloat16

`flex` and `varlen` have no dropout of their own.

Suffixes: H head, T token of the packed row, S sequence, D width of a head; B is 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from dmlm.pipeline.errors import ConfigError
from dmlm.trainer.config import Recipe
from dmlm.trainer.data.packing import PackedBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KernelName = Literal["sequences", "dense", "flex", "varlen"]
DENSE_MAX_TOKENS: Final = 1024
"""Longest row for which a dense mask is chosen."""
_PREFIX: Final = "dmlm_"


# Not frozen: torch.compile looks into frozen dataclasses and would compile anew for every set of lengths.
@dataclass(slots=True, kw_only=True, eq=False)
class RowLayout:
    """Where the sequences of a packed row lie, as one kernel wants to know it."""

    lengths: tuple[int, ...] = ()
    """sequences: of each."""
    mask: Any = None
    """dense: bool T × T, whether a token (first) sees another; flex: the same as a BlockMask."""
    bounds_S: Any = None
    """varlen: int32 tensor, where each sequence begins, and the end of the last."""
    max_length: int = 0
    """varlen: not below the longest sequence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One way to attend."""

    lay_out: Callable[[PackedBatch], RowLayout]
    attend: Callable[[Tensor, Tensor, Tensor, RowLayout, float | None, float], Tensor]
    """Query, key, value (B × H × T × D), layout, scale and dropout -> B × T × H × D."""


def use_kernel(model: "PreTrainedModel", name: KernelName) -> None:
    """Makes the model attend with a kernel from now on; it then runs on packed rows only."""
    from transformers import AttentionInterface

    # No mask function is registered under this name, so transformers builds no mask.
    AttentionInterface.register(_PREFIX + name, _as_attention_function(KERNELS[name]))
    model.set_attn_implementation(_PREFIX + name)


def lay_out(model: "PreTrainedModel", batch: PackedBatch) -> RowLayout:
    """The row as the model's kernel wants it."""
    name: str = model.config._attn_implementation
    return KERNELS[name.removeprefix(_PREFIX)].lay_out(batch)


def choose_kernel(
    recipe: Recipe, model: "PreTrainedModel", device: torch.device, products: torch.dtype
) -> KernelName:
    """Name of the kernel for this device and type of products: the recipe's, or the fastest that fits.

    Raises:
        ConfigError: The recipe asks for one that cannot train this model here.
    """
    dropout = _attention_dropout(model)
    fits_flex = device.type == "cuda" and not dropout
    fits_varlen = fits_flex and products == torch.bfloat16 and _has_varlen()
    wanted = recipe.attention
    if wanted == "auto":
        if device.type != "cuda":
            return "sequences"
        if fits_varlen:
            return "varlen"
        if recipe.batch.max_tokens <= DENSE_MAX_TOKENS:
            return "dense"
        return "flex" if fits_flex else "sequences"
    if (wanted == "varlen" and not fits_varlen) or (wanted == "flex" and not fits_flex):
        needs = "CUDA, bfloat16, torch 2.13" if wanted == "varlen" else "CUDA"
        raise ConfigError(
            f"attention: {wanted} needs {needs} and a model without dropout in its attention; "
            f"here: {device.type}, {str(products).removeprefix('torch.')}, dropout {dropout}; take `auto`"
        )
    return wanted


def _attention_dropout(model: "PreTrainedModel") -> float:
    # GPT-2 has a name of its own for it.
    return float(getattr(model.config, "attention_dropout", getattr(model.config, "attn_pdrop", 0.0)))


@cache
def _has_varlen() -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"window_size", "enable_gqa"} <= signature(varlen_attn).parameters.keys()


def _as_attention_function(kernel: Kernel) -> Callable[..., tuple[Tensor, None]]:
    def attend(
        module: torch.nn.Module,
        query_BHTD: Tensor,
        key_BHTD: Tensor,
        value_BHTD: Tensor,
        attention_mask: None,
        *,
        row: RowLayout,
        scaling: float | None = None,
        dropout: float = 0.0,
        **_: Any,
    ) -> tuple[Tensor, None]:
        # Under autocast, rotary positions make float32 of queries and keys.
        query_BHTD, key_BHTD = query_BHTD.to(value_BHTD.dtype), key_BHTD.to(value_BHTD.dtype)
        return kernel.attend(query_BHTD, key_BHTD, value_BHTD, row, scaling, dropout), None

    return attend


def _is_grouped(query_BHTD: Tensor, key_BHTD: Tensor) -> bool:
    return query_BHTD.shape[1] != key_BHTD.shape[1]


def _lay_out_sequences(batch: PackedBatch) -> RowLayout:
    return RowLayout(lengths=batch.lengths)


# A graph for every set of lengths would never be used again.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _attend_sequences(
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    row: RowLayout,
    scale: float | None,
    dropout: float,
) -> Tensor:
    grouped = _is_grouped(query_BHTD, key_BHTD)
    parts = (torch.split(tensor, list(row.lengths), dim=2) for tensor in (query_BHTD, key_BHTD, value_BHTD))
    outputs = [
        scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, dropout_p=dropout, enable_gqa=grouped
        )
        for q, k, v in zip(*parts, strict=True)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _lay_out_dense(batch: PackedBatch) -> RowLayout:
    sequence_T = _number_sequences(batch)
    same_TT = sequence_T[:, None] == sequence_T
    return RowLayout(mask=same_TT.tril_())


def _attend_dense(
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    row: RowLayout,
    scale: float | None,
    dropout: float,
) -> Tensor:
    grouped = _is_grouped(query_BHTD, key_BHTD)
    output_BHTD = scaled_dot_product_attention(
        query_BHTD, key_BHTD, value_BHTD, row.mask, scale=scale, dropout_p=dropout, enable_gqa=grouped
    )
    return output_BHTD.transpose(1, 2)


def _lay_out_flex(batch: PackedBatch) -> RowLayout:
    from torch.nn.attention.flex_attention import create_block_mask

    sequence_T = _number_sequences(batch)

    def sees(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (sequence_T[query] == sequence_T[key]) & (query >= key)

    num_tokens = len(sequence_T)
    return RowLayout(mask=create_block_mask(sees, None, None, num_tokens, num_tokens, sequence_T.device))


def _attend_flex(
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    row: RowLayout,
    scale: float | None,
    dropout: float,
) -> Tensor:
    grouped = _is_grouped(query_BHTD, key_BHTD)
    attend = _flex_attention(query_BHTD.device.type)
    output_BHTD: Tensor = attend(
        query_BHTD, key_BHTD, value_BHTD, block_mask=row.mask, scale=scale, enable_gqa=grouped
    )
    return output_BHTD.transpose(1, 2)


@cache
def _flex_attention(device_type: str) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    attend: Callable[..., Any] = flex_attention
    # Only compiled does it skip blocks; a CPU has no use for that but to compare results.
    return torch.compile(attend, dynamic=True) if device_type == "cuda" else attend


def _lay_out_varlen(batch: PackedBatch) -> RowLayout:
    ends_S = batch.lengths_S.cumsum(0, dtype=torch.int32)
    # A power of two: torch.compile would compile anew for every other number.
    max_length = 1 << (max(batch.lengths) - 1).bit_length()
    return RowLayout(bounds_S=pad(ends_S, (1, 0)), max_length=max_length)


def _attend_varlen(
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    row: RowLayout,
    scale: float | None,
    dropout: float,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    query_THD, key_THD, value_THD = (t[0].transpose(0, 1) for t in (query_BHTD, key_BHTD, value_BHTD))
    output_THD: Any = varlen_attn(
        query_THD,
        key_THD,
        value_THD,
        row.bounds_S,
        row.bounds_S,
        row.max_length,
        row.max_length,
        scale=scale,
        window_size=(-1, 0),  # causal
        enable_gqa=_is_grouped(query_BHTD, key_BHTD),
    )
    output_BTHD: Tensor = output_THD[None]
    return output_BTHD


def _number_sequences(batch: PackedBatch) -> Tensor:
    return (batch.positions_T == 0).cumsum(0)


KERNELS: Final[dict[str, Kernel]] = {
    "sequences": Kernel(lay_out=_lay_out_sequences, attend=_attend_sequences),
    "dense": Kernel(lay_out=_lay_out_dense, attend=_attend_dense),
    "flex": Kernel(lay_out=_lay_out_flex, attend=_attend_flex),
    "varlen": Kernel(lay_out=_lay_out_varlen, attend=_attend_varlen),
}
