"""Greedy decoding in batches, with a key-value cache and a hard constraint on the modality that may come out.

Suffixes: B prompts of a batch, G those that still grow, T position, V vocabulary, A allowed ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from dmlm.pipeline.samples import TokenArray
from dmlm.pipeline.vocabulary import TokenRange

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel


def decode_greedy(
    model: PreTrainedModel,
    prompts: Sequence[TokenArray],
    *,
    allowed: TokenRange,
    eos_id: int,
    max_new_tokens: Sequence[int],
    batch_size: int = 32,
) -> Iterator[tuple[int, TokenArray]]:
    """Continues every prompt with its most probable tokens, those of `allowed` and the end token only.

    Args:
        model: A causal language model in evaluation mode.
        prompts: Global ids, at least one per prompt; lengths may differ.
        allowed: Range of ids that may be emitted.
        eos_id: Token that ends an output; it may lie outside of `allowed`.
        max_new_tokens: Longest output of each prompt. An output also ends where the model's positions end;
            a prompt that leaves none of them gets an empty output.
        batch_size: Prompts decoded side by side.

    Yields:
        Index of a prompt and its output without the end token; similar lengths together, not in order.
    """
    ids = [*range(allowed.start, allowed.stop), *([] if eos_id in allowed else [eos_id])]
    allowed_ids_A = torch.tensor(ids, device=model.device)
    num_positions = model.config.max_position_embeddings
    limits = [
        min(limit, num_positions - len(prompt)) for prompt, limit in zip(prompts, max_new_tokens, strict=True)
    ]
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    yield from ((index, np.empty(0, np.int32)) for index in by_length if limits[index] <= 0)
    growing = [index for index in by_length if limits[index] > 0]
    for start in range(0, len(growing), batch_size):
        indices = growing[start : start + batch_size]
        batch, batch_limits = [prompts[i] for i in indices], [limits[i] for i in indices]
        outputs_BT = _decode_batch(model, batch, batch_limits, allowed_ids_A, eos_id)
        for index, output_T in zip(indices, outputs_BT, strict=True):
            yield index, output_T[: np.append(output_T, eos_id).tolist().index(eos_id)]


@torch.inference_mode()
def _decode_batch(
    model: PreTrainedModel,
    prompts: list[TokenArray],
    limits: list[int],
    allowed_ids_A: torch.Tensor,
    eos_id: int,
) -> npt.NDArray[np.int32]:
    """Outputs, filled up with the end token."""
    from transformers import DynamicCache

    lengths_B = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    limits_B = torch.tensor(limits, device=model.device)
    outputs_BT = torch.full((len(prompts), max(limits)), eos_id, device=model.device)
    cache = DynamicCache(config=model.config)
    growing_G = torch.arange(len(prompts), device=model.device)
    tokens_G, mask_GT = _read_prompts(model, prompts, cache)
    for step in range(outputs_BT.shape[1]):
        mask_GT = torch.nn.functional.pad(mask_GT, (0, 1), value=1)
        logits_GV = model(
            input_ids=tokens_G[:, None],
            attention_mask=mask_GT,
            position_ids=(lengths_B[growing_G] - 1 + step)[:, None],
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
        tokens_G = allowed_ids_A[logits_GV[:, allowed_ids_A].argmax(dim=-1)]
        outputs_BT[growing_G, step] = tokens_G
        grows_G = (tokens_G != eos_id) & (step + 1 < limits_B[growing_G])
        if not grows_G.all():  # a finished row leaves, so that it costs nothing
            rows = grows_G.nonzero().squeeze(1)
            growing_G, tokens_G, mask_GT = growing_G[rows], tokens_G[rows], mask_GT[rows]
            cache.batch_select_indices(rows)
        if not len(growing_G):
            break
    outputs: npt.NDArray[np.int32] = outputs_BT.int().cpu().numpy()
    return outputs


def _read_prompts(
    model: PreTrainedModel, prompts: list[TokenArray], cache: Cache
) -> tuple[torch.Tensor, torch.Tensor]:
    """Puts all but the last token of every prompt into the cache, so that all later steps are alike.

    Padding stands behind a prompt, where the mask hides it from all that follows; in front, it would have
    nothing to attend to.

    Returns:
        The last tokens, and the mask over the cache (1: a token, 0: padding).
    """
    num_read = max(map(len, prompts)) - 1
    tokens_BT = torch.zeros(len(prompts), num_read, dtype=torch.long)
    mask_BT = torch.zeros_like(tokens_BT)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, : len(prompt) - 1] = torch.from_numpy(prompt[:-1])
        mask_BT[row, : len(prompt) - 1] = 1
    mask_BT = mask_BT.to(model.device)
    if num_read:
        model.base_model(
            input_ids=tokens_BT.to(model.device),
            attention_mask=mask_BT,
            position_ids=torch.arange(num_read, device=model.device).expand_as(mask_BT),
            past_key_values=cache,
            use_cache=True,
        )
    return torch.tensor([int(prompt[-1]) for prompt in prompts], device=model.device), mask_BT
