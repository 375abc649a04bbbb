"""Rows of any causal language model of transformers, with its own forward pass and cache.

Suffixes: B prompt, G row, T position, A allowed id, V vocabulary.
"""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dmlm.pipeline.samples import TokenArray
from dmlm.trainer.decoding.constraints import Constraint

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TransformersRows:
    """See `Rows`; all rows are read at once."""

    can_refill = False

    def __init__(self, model: "PreTrainedModel", constraint: Constraint) -> None:
        """Takes a model in evaluation mode."""
        self._model = model
        # transformers 5.24 gave the argument another name, and 5.40 is to forget the former one.
        parameters = inspect.signature(model.forward).parameters
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"
        self._ids_A = torch.tensor(constraint.ids, device=model.device)

    @torch.inference_mode()
    def read(self, prompts: Sequence[TokenArray], num_copies: int) -> None:
        """Begins anew with `num_copies` rows of every prompt; its last token is left to the first step.

        Padding stands behind a prompt, where the mask hides it from all that follows; in front, it would
        have nothing to attend to.
        """
        from transformers import DynamicCache

        model = self._model
        self._cache = DynamicCache(config=model.config)
        lengths_B = torch.tensor([len(prompt) - 1 for prompt in prompts])
        num_read = int(lengths_B.max())
        tokens_BT = torch.zeros(len(prompts), num_read, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            tokens_BT[row, : len(prompt) - 1] = torch.from_numpy(prompt[:-1])
        self._mask_GT = (torch.arange(num_read) < lengths_B[:, None]).long().to(model.device)
        self._positions_G = lengths_B.to(model.device)
        if num_read:
            model.base_model(
                input_ids=tokens_BT.to(model.device),
                attention_mask=self._mask_GT,
                position_ids=torch.arange(num_read, device=model.device).expand_as(tokens_BT),
                **self._given_cache(),
            )
        if num_copies > 1:
            self.select([row for row in range(len(prompts)) for _ in range(num_copies)])

    @torch.inference_mode()
    def step(self, tokens_G: Sequence[int]) -> Tensor:
        """Appends a token to every row; returns the logits G × A of what follows it."""
        self._mask_GT = torch.nn.functional.pad(self._mask_GT, (0, 1), value=1)
        logits_GV: Tensor = self._model(
            input_ids=torch.tensor(tokens_G, device=self._model.device)[:, None],
            attention_mask=self._mask_GT,
            position_ids=self._positions_G[:, None],
            **self._given_cache(),
        ).logits[:, -1]
        self._positions_G = self._positions_G + 1
        return logits_GV[:, self._ids_A]

    @torch.inference_mode()
    def select(self, rows_G: Sequence[int]) -> None:
        """Keeps these rows, in this order; a row may be taken more than once."""
        if list(rows_G) == list(range(len(self._positions_G))):
            return
        rows = torch.tensor(rows_G, dtype=torch.long, device=self._model.device)
        self._mask_GT, self._positions_G = self._mask_GT[rows], self._positions_G[rows]
        if len(rows):
            self._cache.batch_select_indices(rows)

    def _given_cache(self) -> dict[str, Any]:
        return {self._cache_name: self._cache, "use_cache": True}
