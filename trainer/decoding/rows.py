"""Rows: sequences that a model continues side by side, one token of each at a time.

Suffixes: G row, A allowed id.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from dmlm.pipeline.samples import TokenArray
from dmlm.trainer.decoding.constraints import Constraint
from dmlm.trainer.decoding.fast_rows import FastRows
from dmlm.trainer.decoding.transformers_rows import TransformersRows
from dmlm.trainer.decoding.weights import read_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Rows(Protocol):
    """A model, its cache, and the rows in it."""

    @property
    def can_refill(self) -> bool:
        """Whether prompts may be read while others are being continued."""

    def read(self, prompts: Sequence[TokenArray], num_copies: int) -> None:
        """Appends `num_copies` rows of every prompt; its last token is left to the first step."""

    def step(self, tokens_G: Sequence[int]) -> Tensor:
        """Appends a token to every row; returns the logits G × A of what follows it."""

    def select(self, rows_G: Sequence[int]) -> None:
        """Keeps these rows, in this order; a row may be taken more than once."""


def open_rows(model: "PreTrainedModel", constraint: Constraint, num_rows: int, num_positions: int) -> Rows:
    """No rows yet, and room for `num_rows` of up to `num_positions` tokens."""
    weights = read_weights(model, constraint)
    if weights is None:
        return TransformersRows(model, constraint)
    return FastRows(weights, num_rows, num_positions)
