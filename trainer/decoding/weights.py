"""The weights of a Llama or OPT model, laid out for decoding.

Both are one architecture in the eyes of `FastRows`: norm, attention, norm, feed-forward, and positions that
are either added to the embeddings or rotate queries and keys.

Suffixes: N row, V vocabulary, A allowed id, D width, F feed-forward width, T position, H head of keys and
values, P pair of a head's dimensions, O output of a product.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from dmlm.trainer.decoding.constraints import Constraint
from dmlm.trainer.decoding.products import Adding, Layer, make_adding, make_product

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FIXED_ROTATIONS: Final = ("default", "linear", "llama3", "yarn")
"""Rotary positions that do not depend on the length of the sequence."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerWeights:
    """One block."""

    attention_norm: Layer
    qkv: Layer
    """For each head of keys and values: its queries, the key, the value; so the three lie side by side."""
    out: Adding
    feed_forward_norm: Layer
    feed_forward: Adding


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelWeights:
    """A model, and of its head what is allowed."""

    embedding_VD: Tensor
    positions_TD: Tensor | None
    """Added to the embeddings."""
    rotation_T11P: Tensor | None
    """Complex numbers that turn queries and keys."""
    layers: tuple[LayerWeights, ...]
    final_norm: Layer
    head: Layer
    """To logits of the ids that are allowed."""
    num_kv_heads: int
    head_size: int


def read_weights(model: "PreTrainedModel", constraint: Constraint) -> ModelWeights | None:
    """Weights of a float32 Llama or OPT model; None for any other."""
    reader = {"LlamaForCausalLM": _read_llama, "OPTForCausalLM": _read_opt}.get(type(model).__name__)
    if reader is None or model.dtype != torch.float32:
        return None
    with torch.inference_mode():
        return reader(model, constraint)


def _read_llama(model: Any, constraint: Constraint) -> ModelWeights | None:
    config, decoder = model.config, model.model
    if decoder.rotary_emb.rope_type not in _FIXED_ROTATIONS:
        return None
    num_kv_heads, head_size = config.num_key_value_heads, decoder.layers[0].self_attn.head_dim
    return ModelWeights(
        embedding_VD=decoder.embed_tokens.weight,
        positions_TD=None,
        rotation_T11P=_rotation(decoder, config.max_position_embeddings),
        layers=tuple(_llama_layer(layer, num_kv_heads, head_size) for layer in decoder.layers),
        final_norm=_rms_norm(decoder.norm),
        head=make_product(_allowed_rows(model.lm_head.weight, constraint), None),
        num_kv_heads=num_kv_heads,
        head_size=head_size,
    )


def _llama_layer(layer: Any, num_kv_heads: int, head_size: int) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    gate_up, down = _linear(mlp.gate_proj, mlp.up_proj), make_adding(mlp.down_proj.weight, mlp.down_proj.bias)

    def feed_forward(x_ND: Tensor, h_ND: Tensor) -> Tensor:
        gate_NF, up_NF = gate_up(h_ND).chunk(2, dim=1)
        return down(x_ND, mlp.act_fn(gate_NF).mul_(up_NF))

    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    # Llama turns dimension i with i + half; complex numbers turn neighbours. The order of a head's
    # dimensions is free, as long as queries and keys share it.
    pairs = torch.arange(head_size).view(2, -1).T.flatten()
    orders = (pairs, pairs, None)
    return LayerWeights(
        attention_norm=_rms_norm(layer.input_layernorm),
        qkv=_interleaved(projections, num_kv_heads, head_size, orders),
        out=make_adding(attention.o_proj.weight, attention.o_proj.bias),
        feed_forward_norm=_rms_norm(layer.post_attention_layernorm),
        feed_forward=feed_forward,
    )


def _rotation(decoder: Any, num_positions: int) -> Tensor:
    weight_VD = decoder.embed_tokens.weight
    positions_1T = torch.arange(num_positions, device=weight_VD.device)[None]
    cos_1TD, sin_1TD = decoder.rotary_emb(weight_VD, positions_1T)
    num_pairs = cos_1TD.shape[-1] // 2
    return torch.complex(cos_1TD[0, :, :num_pairs], sin_1TD[0, :, :num_pairs])[:, None, None]


def _read_opt(model: Any, constraint: Constraint) -> ModelWeights | None:
    config, decoder = model.config, model.model.decoder
    if decoder.project_in is not None or decoder.final_layer_norm is None:
        return None
    num_heads = config.num_attention_heads
    positions = decoder.embed_positions
    return ModelWeights(
        embedding_VD=decoder.embed_tokens.weight,
        positions_TD=positions.weight[positions.offset :],
        rotation_T11P=None,
        layers=tuple(_opt_layer(layer, num_heads) for layer in decoder.layers),
        final_norm=_layer_norm(decoder.final_layer_norm),
        head=make_product(_allowed_rows(model.lm_head.weight, constraint), None),
        num_kv_heads=num_heads,
        head_size=config.hidden_size // num_heads,
    )


def _opt_layer(layer: Any, num_heads: int) -> LayerWeights:
    attention = layer.self_attn
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    orders = (None, None, None)
    up, down = _linear(layer.fc1), make_adding(layer.fc2.weight, layer.fc2.bias)
    return LayerWeights(
        attention_norm=_layer_norm(layer.self_attn_layer_norm),
        qkv=_interleaved(projections, num_heads, attention.head_dim, orders),
        out=make_adding(attention.out_proj.weight, attention.out_proj.bias),
        feed_forward_norm=_layer_norm(layer.final_layer_norm),
        feed_forward=lambda x_ND, h_ND: down(x_ND, layer.activation_fn(up(h_ND))),
    )


def _interleaved(
    projections: tuple[Any, ...], num_kv_heads: int, head_size: int, orders: tuple[Tensor | None, ...]
) -> Layer:
    """The three projections as one, head by head, each head's rows in its order."""

    def interleave(weights: list[Tensor]) -> Tensor:
        parts = []
        for weight, order in zip(weights, orders, strict=True):
            heads = weight.view(num_kv_heads, -1, head_size, *weight.shape[1:])
            parts.append(heads if order is None else heads[:, :, order])
        return torch.cat(parts, dim=1).flatten(0, 2)

    weight_OD = interleave([projection.weight for projection in projections])
    has_bias = projections[0].bias is not None
    return make_product(weight_OD, interleave([p.bias for p in projections]) if has_bias else None)


def _allowed_rows(weight_VD: Tensor, constraint: Constraint) -> Tensor:
    """A view where the end is one of them; the whole head is never copied."""
    allowed, end_id = constraint.allowed, constraint.end_id
    rows_AD = weight_VD[allowed.start : allowed.stop]
    return rows_AD if end_id in allowed else torch.cat([rows_AD, weight_VD[end_id][None]])


def _linear(*modules: Any) -> Layer:
    """Linear modules as one, their outputs side by side."""
    weights, biases = [module.weight for module in modules], [module.bias for module in modules]
    if len(modules) == 1:
        return make_product(weights[0], biases[0])
    return make_product(torch.cat(weights), None if biases[0] is None else torch.cat(biases))


def _rms_norm(module: Any) -> Layer:
    """In half as many operations as `F.rms_norm`, which takes itself apart on a CPU."""
    width = len(module.weight)
    weight_D = module.weight * width**0.5
    epsilon = torch.tensor((width * module.variance_epsilon) ** 0.5, device=weight_D.device)

    def norm(x_ND: Tensor) -> Tensor:
        lengths_N1 = torch.linalg.vector_norm(x_ND, dim=1, keepdim=True)
        return (x_ND / torch.hypot(lengths_N1, epsilon)).mul_(weight_D)

    return norm


def _layer_norm(module: Any) -> Layer:
    return partial(
        F.layer_norm,
        normalized_shape=module.normalized_shape,
        weight=module.weight,
        bias=module.bias,
        eps=module.eps,
    )
