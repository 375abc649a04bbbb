"""Beam search, as `generate` of transformers does it with `renormalize_logits=True`.

The best `num_beams` unfinished outputs go on; one that ends among the best `num_beams` candidates is kept,
its log-probability divided by its length (end included) to the power of the length penalty. A prompt is done
when it has kept `num_beams` and its best unfinished one, ended now, is no better than the worst of them.

Suffixes: G row, A allowed id, B prompt, K candidate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dmlm.trainer.decoding.search import Hypothesis, Step

_NEVER = -1e9
"""Score of a beam that is the copy of another."""


@dataclass(slots=True, kw_only=True)
class Beams(Hypothesis):
    """The outputs of one prompt that are still being followed."""

    scores: list[float]
    """Log-probability of each beam."""
    outputs: list[list[int]]
    """Tokens of each beam."""
    kept: list[tuple[float, list[int], bool]] = field(default_factory=list)
    """Score, tokens, and whether the end came; best first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A beam and the token that may follow it."""

    score: float
    beam: int
    token: int


class BeamSearch:
    """The most probable output, as far as `num_beams` at a time can tell."""

    def __init__(self, end_column: int, *, num_beams: int, length_penalty: float) -> None:
        self.num_rows = num_beams
        self._end_column, self._length_penalty = end_column, length_penalty

    def begin(self, index: int, limit: int) -> Beams:
        """Hypothesis of a prompt, before the first token."""
        scores = [0.0, *[_NEVER] * (self.num_rows - 1)]
        return Beams(index=index, limit=limit, scores=scores, outputs=[[] for _ in scores])

    @torch.inference_mode()
    def advance(self, hypotheses: Sequence[Hypothesis], logits_GA: Tensor) -> Step:
        """Appends a token to each beam, and marks the prompts that are done."""
        all_beams = [beams for beams in hypotheses if isinstance(beams, Beams)]
        scores_G = torch.tensor([score for beams in all_beams for score in beams.scores])
        totals_GA = logits_GA.log_softmax(dim=-1) + scores_G.to(logits_GA.device)[:, None]
        num_columns = logits_GA.shape[1]
        best = totals_GA.view(len(all_beams), -1).topk(2 * self.num_rows)
        step = Step(tokens_G=[], sources_G=[])
        for place, (beams, scores_K, columns_K) in enumerate(
            zip(all_beams, best.values.tolist(), best.indices.tolist(), strict=True)
        ):
            candidates = [
                Candidate(score=score, beam=column // num_columns, token=column % num_columns)
                for score, column in zip(scores_K, columns_K, strict=True)
            ]
            going_on = self._advance_prompt(beams, candidates)
            step.tokens_G.extend(candidate.token for candidate in going_on)
            step.sources_G.extend(place * self.num_rows + candidate.beam for candidate in going_on)
        return step

    def _advance_prompt(self, beams: Beams, candidates: list[Candidate]) -> list[Candidate]:
        length = len(beams.outputs[0]) + 1
        is_full = length == beams.limit
        for candidate in candidates[: self.num_rows]:
            has_ended = candidate.token == self._end_column
            if has_ended or is_full:
                tokens = beams.outputs[candidate.beam] + ([] if has_ended else [candidate.token])
                beams.kept.append((candidate.score / length**self._length_penalty, tokens, has_ended))
        beams.kept = sorted(beams.kept, key=lambda kept: -kept[0])[: self.num_rows]
        going_on = [c for c in candidates if c.token != self._end_column][: self.num_rows]
        beams.outputs = [[*beams.outputs[c.beam], c.token] for c in going_on]
        beams.scores = [c.score for c in going_on]
        if is_full or self._is_settled(beams, length):
            beams.is_done = True
            _, beams.tokens, beams.is_finished = beams.kept[0]
        return going_on

    def _is_settled(self, beams: Beams, length: int) -> bool:
        best = beams.scores[0] / length**self._length_penalty
        return len(beams.kept) == self.num_rows and best <= beams.kept[-1][0]
