"""The engine: keeps rows busy. A prompt that is done leaves at once, and the next one takes its place."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from dmlm.pipeline.samples import TokenArray
from dmlm.trainer.decoding.beam import BeamSearch
from dmlm.trainer.decoding.config import DecodingConfig
from dmlm.trainer.decoding.constraints import Constraint
from dmlm.trainer.decoding.rows import Rows, open_rows
from dmlm.trainer.decoding.search import GreedySearch, Hypothesis, Sampling, Search

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

REFILL_SHARE: Final = 1 / 8
"""Of the rows that are empty before more prompts are read: reading one by one costs more."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decoded:
    """What a model put behind a prompt."""

    index: int
    """Of the prompt."""
    tokens: TokenArray
    """Without the token that ended them."""
    is_finished: bool
    """Its end came; otherwise it ran into a limit."""
    first_token_seconds: float
    """From the moment that its prompt began to be read to its first token."""


def decode(
    model: "PreTrainedModel",
    prompts: Sequence[TokenArray],
    constraint: Constraint,
    config: DecodingConfig,
    *,
    max_new_tokens: Sequence[int],
    first_number: int = 0,
) -> Iterator[Decoded]:
    """Continues every prompt with tokens that the constraint allows.

    Args:
        model: A causal language model in evaluation mode.
        prompts: Global ids, at least one per prompt; lengths may differ.
        constraint: What may come out, and what ends it.
        config: How tokens are chosen, and how many rows go side by side.
        max_new_tokens: Longest output of each prompt. An output also ends where the model's positions end;
            a prompt that leaves none of them gets an empty output.
        first_number: Of the first prompt, where more were decoded before; sampling draws by the number.

    Yields:
        The output of every prompt, as soon as it is done: similar lengths together, not in order.
    """
    num_positions = model.config.max_position_embeddings
    limits = [
        min(limit, num_positions - len(prompt)) for prompt, limit in zip(prompts, max_new_tokens, strict=True)
    ]
    waiting = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    yield from (_empty(index) for index in waiting if limits[index] <= 0)
    waiting = [index for index in waiting if limits[index] > 0]
    if not waiting:
        return
    search = _open_search(constraint, config, first_number)
    num_prompts = min(len(waiting), max(config.batch_size // search.num_rows, 1))
    num_slots = max(len(prompts[index]) for index in waiting) + max(limits[index] for index in waiting)
    if not _window_reaches(model.config, num_slots):
        num_prompts = 1
    longest = max(len(prompts[index]) + limits[index] for index in waiting)
    rows = open_rows(model, constraint, num_prompts * search.num_rows, longest)
    engine = _Engine(rows, search, constraint.ids)
    enough = max(1, int(num_prompts * REFILL_SHARE)) if rows.can_refill else num_prompts
    while waiting or engine.hypotheses:
        num_free = num_prompts - len(engine.hypotheses)
        if waiting and num_free >= enough:
            # The shortest come first: they have grown when longer ones join them, so rows stay of one length.
            chosen, waiting = waiting[:num_free], waiting[num_free:]
            engine.read([prompts[index] for index in chosen], [search.begin(i, limits[i]) for i in chosen])
        yield from engine.advance()


class _Engine:
    """Rows, and the hypotheses that they belong to."""

    def __init__(self, rows: Rows, search: Search, ids: list[int]) -> None:
        self.hypotheses: list[Hypothesis] = []
        self._rows, self._search, self._ids = rows, search, np.array(ids, np.int32)
        self._next: list[int] = []
        """Token to be put behind each row."""
        self._seconds: dict[int, float] = {}
        """When the prompt of a hypothesis began to be read; then how long its first token took."""

    def read(self, prompts: Sequence[TokenArray], hypotheses: Sequence[Hypothesis]) -> None:
        start = time.perf_counter()
        self._rows.read(prompts, self._search.num_rows)
        self._next += [int(prompt[-1]) for prompt in prompts for _ in range(self._search.num_rows)]
        self.hypotheses += hypotheses
        self._seconds |= {hypothesis.index: -start for hypothesis in hypotheses}

    def advance(self) -> Iterator[Decoded]:
        step = self._search.advance(self.hypotheses, self._rows.step(self._next))
        now = time.perf_counter()
        self._seconds |= {index: now + s for index, s in self._seconds.items() if s < 0}
        done = [hypothesis for hypothesis in self.hypotheses if hypothesis.is_done]
        places = _close_ranks([hypothesis.is_done for hypothesis in self.hypotheses])
        width = self._search.num_rows
        kept = [place * width + beam for place in places for beam in range(width)]
        self.hypotheses = [self.hypotheses[place] for place in places]
        self._next = [int(self._ids[step.tokens_G[row]]) for row in kept]
        self._rows.select([step.sources_G[row] for row in kept])
        for hypothesis in done:
            yield Decoded(
                index=hypothesis.index,
                tokens=self._ids[hypothesis.tokens],
                is_finished=hypothesis.is_finished,
                first_token_seconds=self._seconds.pop(hypothesis.index),
            )


def _window_reaches(config: "PretrainedConfig", num_slots: int) -> bool:
    """Whether every token sees all before it; where not, padding of a row would push its own prompt out."""
    window: int | None = getattr(config, "sliding_window", None)
    return window is None or num_slots <= window


def _close_ranks(is_done: list[bool]) -> list[int]:
    """Places of those that go on; the last ones fill the gaps, so that few rows move."""
    places = list(range(len(is_done)))
    for place in reversed(range(len(is_done))):
        if is_done[place]:
            last = places.pop()
            if place < len(places):
                places[place] = last
    return places


def _open_search(constraint: Constraint, config: DecodingConfig, first_number: int) -> Search:
    end = constraint.end_column
    if config.num_beams > 1:
        return BeamSearch(end, num_beams=config.num_beams, length_penalty=config.length_penalty)
    if config.temperature > 0:
        return Sampling(
            end,
            temperature=config.temperature,
            top_p=config.top_p,
            seed=config.seed,
            first_number=first_number,
        )
    return GreedySearch(end)


def _empty(index: int) -> Decoded:
    return Decoded(
        index=index, tokens=np.empty(0, np.int32), is_finished=False, first_token_seconds=float("nan")
    )
