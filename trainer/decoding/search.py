"""Which token comes next, with one row for each prompt: the most probable, or a random one.

Suffixes: G row, A allowed id.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dmlm.pipeline.randomness import generator_for


@dataclass(slots=True, kw_only=True)
class Hypothesis:
    """The output of one prompt, so far; tokens are columns of the logits."""

    index: int
    """Of the prompt."""
    limit: int
    """Most tokens that it may have."""
    tokens: list[int] = field(default_factory=list)
    is_done: bool = False
    is_finished: bool = False
    """It is done because its end came, not because of the limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is put behind which rows."""

    tokens_G: list[int]
    """Columns of the logits."""
    sources_G: list[int]
    """The row that each row goes on from."""


class Search(Protocol):
    """A way to choose; it keeps what it needs of each prompt in its hypothesis."""

    num_rows: int
    """Rows of each prompt."""

    def begin(self, index: int, limit: int) -> Hypothesis:
        """Hypothesis of a prompt, before the first token."""

    def advance(self, hypotheses: Sequence[Hypothesis], logits_GA: Tensor) -> Step:
        """Appends a token to each, and marks those that are done."""


class GreedySearch:
    """The most probable token, always."""

    num_rows = 1

    def __init__(self, end_column: int) -> None:
        self._end_column = end_column

    def begin(self, index: int, limit: int) -> Hypothesis:
        """Hypothesis of a prompt, before the first token."""
        return Hypothesis(index=index, limit=limit)

    def advance(self, hypotheses: Sequence[Hypothesis], logits_GA: Tensor) -> Step:
        """Appends a token to each, and marks those that are done."""
        return append(hypotheses, logits_GA.argmax(dim=-1).tolist(), self._end_column)


class Sampling:
    """A random token, by its probability; the draws of a prompt are the same in any batch."""

    num_rows = 1

    def __init__(
        self, end_column: int, *, temperature: float, top_p: float, seed: int, first_number: int = 0
    ) -> None:
        self._end_column, self._seed, self._first_number = end_column, seed, first_number
        self._temperature, self._top_p = temperature, top_p
        self._generators: dict[int, np.random.Generator] = {}

    def begin(self, index: int, limit: int) -> Hypothesis:
        """Hypothesis of a prompt, before the first token."""
        self._generators[index] = generator_for(self._seed, "decoding", self._first_number + index)
        return Hypothesis(index=index, limit=limit)

    @torch.inference_mode()
    def advance(self, hypotheses: Sequence[Hypothesis], logits_GA: Tensor) -> Step:
        """Appends a token to each, and marks those that are done."""
        draws = [self._generators[hypothesis.index].random() for hypothesis in hypotheses]
        draws_G1 = torch.tensor(draws, device=logits_GA.device)[:, None]
        probabilities_GA = (logits_GA.double() / self._temperature).softmax(dim=-1)
        sorted_GA, columns_GA = probabilities_GA.sort(dim=-1, descending=True, stable=True)
        sums_GA = sorted_GA.cumsum(dim=-1)
        # A token is in the nucleus while those before it have less than `top_p`; the first always is.
        masses_GA = torch.where(sums_GA - sorted_GA < self._top_p, sums_GA, 0)
        total_G1 = masses_GA.max(dim=-1, keepdim=True).values
        picks_G1 = ((masses_GA <= draws_G1 * total_G1) & (masses_GA > 0)).sum(dim=-1, keepdim=True)
        return append(hypotheses, columns_GA.gather(1, picks_G1).squeeze(1).tolist(), self._end_column)


def append(hypotheses: Sequence[Hypothesis], tokens_G: list[int], end_column: int) -> Step:
    """Appends one token to each hypothesis, and marks those that are done."""
    for hypothesis, token in zip(hypotheses, tokens_G, strict=True):
        if token == end_column:
            hypothesis.is_done = hypothesis.is_finished = True
        else:
            hypothesis.tokens.append(token)
            hypothesis.is_done = len(hypothesis.tokens) == hypothesis.limit
    return Step(tokens_G=tokens_G, sources_G=list(range(len(tokens_G))))
