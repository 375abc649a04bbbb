"""A mask for transformers' `generate`: only what the target of a task may consist of can come out.

Text tasks (ASR, S2TT, I2T, text) give text tokens and then the end token. Speech and images give their own
tokens, their closing tag, and after that the end token only, as in training.

Suffixes: B sequence, T position, V vocabulary.
"""

import torch
from torch import Tensor

from dmlm.pipeline.vocabulary import Vocabulary
from dmlm.trainer.decoding.constraints import constraint_of


class ModalityMask:
    """A logits processor: `model.generate(prompt_BT, logits_processor=[ModalityMask(vocabulary, "asr")])`."""

    def __init__(self, vocabulary: Vocabulary, task: str) -> None:
        """Takes the vocabulary of the model and the name of a task, a key of `TASKS`."""
        constraint = constraint_of(task, vocabulary)
        self._allowed_V = _mask(vocabulary, constraint.ids)
        self._end_V = _mask(vocabulary, [vocabulary.eos_id])
        self._closing_id = None if constraint.end_id == vocabulary.eos_id else constraint.end_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores B × V with minus infinity for what may not follow `input_ids` B × T."""
        allowed_BV = self._allowed_V.to(scores.device).expand_as(scores)
        if self._closing_id is not None:
            is_closed_B = input_ids[:, -1] == self._closing_id
            allowed_BV = torch.where(is_closed_B[:, None], self._end_V.to(scores.device), allowed_BV)
        return scores.masked_fill(~allowed_BV, -torch.inf)


def _mask(vocabulary: Vocabulary, ids: list[int]) -> Tensor:
    mask_V = torch.zeros(vocabulary.size, dtype=torch.bool)
    mask_V[ids] = True
    return mask_V
