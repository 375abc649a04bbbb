"""Signs that a run will not give what it should: one warning each, while there is time to stop it.

Records -> warnings. They follow from the records alone, so a resumed run warns as an undisturbed one does.
"""

from collections import deque
from collections.abc import Iterable
from typing import Final

from dmlm.trainer.config import Recipe
from dmlm.trainer.watching.metrics import Record

MIN_LOSS_SHARE: Final = 0.01
MIN_FALL: Final = 0.01
"""Of the first steps' loss."""
NUM_WINDOWS_OF_PATIENCE: Final = 4
WINDOW_SHARE, MIN_WINDOW, MAX_WINDOW = 0.05, 20, 500
"""Steps whose losses are averaged: a share of the run within bounds."""


class Symptoms:
    """Looks at every record of a run, in order."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._window = min(max(round(WINDOW_SHARE * recipe.num_steps), MIN_WINDOW), MAX_WINDOW)
        self._first: list[Record] = []
        self._newest: deque[Record] = deque()
        self._told: set[tuple[str, str]] = set()

    def look(self, record: Record) -> tuple[str, ...]:
        """Warnings that this record gives cause for; each comes once in a run."""
        self._newest.append(record)
        if not self._first or record.step <= self._window:
            self._first.append(record)
        while self._newest[0].step <= record.step - self._window:
            self._newest.popleft()
        warnings = []
        for modality in filter(self._is_trained, record.loss_by_modality):
            signs = {"share": self._describe_share(modality), "fall": self._describe_fall(modality)}
            for sign, warning in signs.items():
                if warning is not None and (sign, modality) not in self._told:
                    self._told.add((sign, modality))
                    warnings.append(warning)
        return tuple(warnings)

    def _is_trained(self, modality: str) -> bool:
        loss = self._recipe.loss
        return loss.normalise == "none" or getattr(loss, modality) > 0

    def _describe_share(self, modality: str) -> str | None:
        shares = [record.loss_share_by_modality.get(modality, 0.0) for record in self._newest]
        share = sum(shares) / len(shares)
        if self._newest[-1].step < self._window or share >= MIN_LOSS_SHARE:
            return None
        weight = "" if self._recipe.loss.normalise == "none" else f"loss.{modality} or "
        return (
            f"{modality} is {share:.2%} of the loss, so hardly anything is learnt from it: "
            f"raise {weight}the weights of its tasks"
        )

    def _describe_fall(self, modality: str) -> str | None:
        first, newest = _mean_loss(self._first, modality), _mean_loss(self._newest, modality)
        is_early = self._newest[-1].step < NUM_WINDOWS_OF_PATIENCE * self._window
        if is_early or self._newest[0] is self._first[-1] or first is None or newest is None:
            return None
        if newest <= (1 - MIN_FALL) * first:
            return None
        return (
            f"the {modality} loss does not fall: {first:.3f} nats per token up to step "
            f"{self._first[-1].step}, {newest:.3f} now; look at the learning rate and at the data"
        )


def _mean_loss(records: Iterable[Record], modality: str) -> float | None:
    """Per token; None where no record has the modality."""
    pairs = [
        (r.loss_by_modality[modality], r.loss_tokens_by_modality[modality])
        for r in records
        if modality in r.loss_by_modality
    ]
    num_tokens = sum(n for _, n in pairs)
    return sum(loss * n for loss, n in pairs) / num_tokens if num_tokens else None
