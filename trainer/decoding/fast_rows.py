"""Rows of a Llama or OPT model: a cache that stays in place, few and large operations, nothing padded.

Keys and values lie in one block of memory for all rows, which doubles when the longest row has filled it.
A row that leaves gives its place to another. Prompts are read packed, one behind the other; the last layer
only fills the cache with them.

Suffixes: L layer, K keys or values, R place for a row, G row, H head of keys and values, Q query of a head,
T position, C head's dimension, D width, N packed token, A allowed id, P pair of dimensions; GH is both,
flattened.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dmlm.pipeline.samples import TokenArray
from dmlm.trainer.decoding.weights import LayerWeights, ModelWeights

_FIRST_POSITIONS: Final = 128
_VIEW_POSITIONS: Final = 16


class _View(NamedTuple):
    """The part of the cache that the rows use."""

    num_rows: int
    stop: int
    layers: Sequence[tuple[Tensor, Tensor]] = ()
    """Keys GH × C × T and values GH × T × C."""
    bias_GH1T: Tensor = torch.empty(0)
    """Minus infinity where a row has no token."""


class FastRows:
    """See `Rows`; its ids are those of the model's own forward pass."""

    can_refill = True

    def __init__(self, weights: ModelWeights, num_rows: int, num_positions: int) -> None:
        """Makes room for `num_rows` of up to `num_positions` tokens."""
        self._weights = weights
        self._device = weights.embedding_VD.device
        self._max_positions = num_positions
        self._num_rows = num_rows
        shape_RHT = (num_rows, weights.num_kv_heads, 0)
        shape_LKRHTC = (len(weights.layers), 2, *shape_RHT, weights.head_size)
        self._cache_LKRHTC = torch.zeros(shape_LKRHTC, device=self._device)
        self._bias_RHT = torch.zeros(shape_RHT, device=self._device)
        self._lengths: list[int] = []
        self._view = _View(0, 0)

    @torch.inference_mode()
    def read(self, prompts: Sequence[TokenArray], num_copies: int) -> None:
        """Appends `num_copies` rows of every prompt; its last token is left to the first step."""
        lengths = [len(prompt) - 1 for prompt in prompts]
        self._reserve(max(lengths) + 1)
        first, num_new = len(self._lengths), len(prompts) * num_copies
        rows = range(first, first + num_new, num_copies)
        if any(lengths):
            tokens_N = torch.from_numpy(np.concatenate([prompt[:-1] for prompt in prompts])).to(self._device)
            self._fill(tokens_N, rows, lengths)
        self._lengths += [length for length in lengths for _ in range(num_copies)]
        for row in range(first, first + num_new):
            self._bias_RHT[row] = -torch.inf
            self._bias_RHT[row, :, : self._lengths[row]] = 0
        if num_copies > 1:
            self._copy([row for row in rows for _ in range(num_copies)], list(range(first, first + num_new)))

    @torch.inference_mode()
    def step(self, tokens_G: Sequence[int]) -> Tensor:
        """Appends a token to every row; returns the logits G × A of what follows it."""
        self._reserve(max(self._lengths) + 1)
        positions_G = torch.tensor(self._lengths, device=self._device)
        places_GH = (self._starts_RH[: len(tokens_G)] + positions_G[:, None]).view(-1)
        self._bias_RHT.view(-1).index_fill_(0, places_GH, 0)
        self._lengths = [length + 1 for length in self._lengths]
        view = self._look(len(tokens_G))
        x_GD = self._embed(torch.tensor(tokens_G, device=self._device), positions_G)
        turns_G11P = self._turns(positions_G)
        for index, layer in enumerate(self._weights.layers):
            heads_GHQC = self._project(layer, x_GD, turns_G11P)
            self._store(index, heads_GHQC, places_GH)
            context_GD = _attend(heads_GHQC, *view.layers[index], view.bias_GH1T).view(len(x_GD), -1)
            x_GD = layer.out(x_GD, context_GD)
            x_GD = layer.feed_forward(x_GD, layer.feed_forward_norm(x_GD))
        return self._weights.head(self._weights.final_norm(x_GD))

    @torch.inference_mode()
    def select(self, rows_G: Sequence[int]) -> None:
        """Keeps these rows, in this order; a row may be taken more than once."""
        moves = [(source, place) for place, source in enumerate(rows_G) if source != place]
        self._lengths = [self._lengths[row] for row in rows_G]
        if moves:
            self._copy(*map(list, zip(*moves, strict=True)))

    def _reserve(self, num_positions: int) -> None:
        """Makes the cache at least so long."""
        num_present = self._bias_RHT.shape[2]
        if num_positions <= num_present:
            return
        wanted = max(num_positions, 2 * num_present, _FIRST_POSITIONS)
        num_more = min(wanted, self._max_positions) - num_present
        self._cache_LKRHTC = F.pad(self._cache_LKRHTC, (0, 0, 0, num_more))
        self._bias_RHT = F.pad(self._bias_RHT, (0, num_more), value=-torch.inf)
        num_heads, num_positions = self._bias_RHT.shape[1:]
        starts_RH = torch.arange(self._num_rows * num_heads, device=self._device) * num_positions
        self._starts_RH = starts_RH.view(-1, num_heads)
        self._flat = self._cache_LKRHTC.flatten(2, 4).unbind()
        self._view = _View(0, 0)

    def _look(self, num_rows: int) -> "_View":
        """What the rows see; a little more than the longest has, so that it serves for many steps."""
        stop = min(-(-max(self._lengths) // _VIEW_POSITIONS) * _VIEW_POSITIONS, self._bias_RHT.shape[2])
        if (self._view.num_rows, self._view.stop) != (num_rows, stop):
            layers = [
                (keys_GHTC.transpose(1, 2), values_GHTC)
                for keys_GHTC, values_GHTC in self._cache_LKRHTC[:, :, :num_rows, :, :stop].flatten(2, 3)
            ]
            bias_GH1T = self._bias_RHT[:num_rows, :, :stop].flatten(0, 1)[:, None]
            self._view = _View(num_rows, stop, layers, bias_GH1T)
        return self._view

    def _copy(self, sources: list[int], places: list[int]) -> None:
        """Copies rows; all are read before the first is written."""
        stop = max(self._lengths)
        self._cache_LKRHTC[:, :, places, :, :stop] = self._cache_LKRHTC[:, :, sources, :, :stop]
        self._bias_RHT[places] = self._bias_RHT[sources]

    def _fill(self, tokens_N: Tensor, rows: Sequence[int], lengths: list[int]) -> None:
        """Puts packed prompts into the cache."""
        positions_N = torch.cat([torch.arange(length) for length in lengths]).to(self._device)
        rows_N = torch.repeat_interleave(torch.tensor(rows), torch.tensor(lengths)).to(self._device)
        places_NH = (self._starts_RH[rows_N] + positions_N[:, None]).view(-1)
        x_ND = self._embed(tokens_N, positions_N)
        turns_N11P = self._turns(positions_N)
        *layers, last = self._weights.layers
        for index, layer in enumerate(layers):
            heads_NHQC = self._project(layer, x_ND, turns_N11P)
            self._store(index, heads_NHQC, places_NH)
            x_ND = layer.out(x_ND, _attend_causally(heads_NHQC, lengths, len(tokens_N)))
            x_ND = layer.feed_forward(x_ND, layer.feed_forward_norm(x_ND))
        self._store(len(layers), self._project(last, x_ND, turns_N11P), places_NH)

    def _embed(self, tokens_N: Tensor, positions_N: Tensor) -> Tensor:
        x_ND = F.embedding(tokens_N, self._weights.embedding_VD)
        table_TD = self._weights.positions_TD
        return x_ND if table_TD is None else x_ND + F.embedding(positions_N, table_TD)

    def _turns(self, positions_N: Tensor) -> Tensor | None:
        rotation_T11P = self._weights.rotation_T11P
        return None if rotation_T11P is None else rotation_T11P[positions_N]

    def _project(self, layer: LayerWeights, x_ND: Tensor, turns_N11P: Tensor | None) -> Tensor:
        """Queries, key and value of every token and head, turned; NH × (Q + 2) × C."""
        num_heads, head_size = self._weights.num_kv_heads, self._weights.head_size
        qkv_NO = layer.qkv(layer.attention_norm(x_ND))
        if turns_N11P is not None:
            pairs_NHQP2 = qkv_NO.view(len(x_ND), num_heads, -1, head_size // 2, 2)
            torch.view_as_complex(pairs_NHQP2[:, :, :-1]).mul_(turns_N11P)
        return qkv_NO.view(len(x_ND) * num_heads, -1, head_size)

    def _store(self, index: int, heads_NHQC: Tensor, places_NH: Tensor) -> None:
        """Writes keys and values of a layer into the cache."""
        self._flat[index].index_copy_(1, places_NH, heads_NHQC[:, -2:].transpose(0, 1))


def _attend(heads_GHQC: Tensor, keys_GHCT: Tensor, values_GHTC: Tensor, bias_GH1T: Tensor) -> Tensor:
    """Every row's queries see its own past."""
    scale = heads_GHQC.shape[-1] ** -0.5
    # Faster on a CPU than scaled_dot_product_attention, which is made for many queries.
    weights_GHQT = torch.baddbmm(bias_GH1T, heads_GHQC[:, :-2], keys_GHCT, alpha=scale).softmax(-1)
    return torch.bmm(weights_GHQT, values_GHTC)


def _attend_causally(heads_NHQC: Tensor, lengths: list[int], num_tokens: int) -> Tensor:
    """Every token sees the past of its own prompt."""
    heads_HQNC = heads_NHQC.view(num_tokens, -1, *heads_NHQC.shape[1:]).permute(1, 2, 0, 3)
    outputs = []
    for part in torch.split(heads_HQNC, lengths, dim=2):
        queries, keys, values = part[:, :-2].flatten(0, 1), part[:, -2], part[:, -1]
        outputs.append(
            F.scaled_dot_product_attention(
                queries[None], keys[None], values[None], is_causal=True, enable_gqa=part.shape[1] > 3
            )[0]
        )
    return torch.cat(outputs, dim=1).transpose(0, 1).flatten(1)
