"""Bad samples: recorded, budgeted, never dropped silently.

`skipped` is what the corpus itself leaves out; only broken input is `quarantined` and counts
against the budget.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, Self

from dmlm.pipeline.errors import BadSampleBudgetError, ShardCorruptError
from dmlm.pipeline.samples import Sample

MIN_ALLOWED: Final = 5
ALLOWED_SHARE: Final = 0.001
MAX_IN_A_ROW: Final = 100
MAX_WARNINGS: Final = 20

Outcome = Literal["skipped", "quarantined"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """An item of the corpus that did not become a sample, and why."""

    key: str
    outcome: Outcome
    stage: str
    """Where it ended: `source`, `audio`, `image` or `text`."""
    reason: str
    error: str | None = None
    """Class of the error; None when skipped."""
    recording_id: str | None = None
    sha256: str | None = None
    """Of its recording or image, where there is one."""

    def to_json(self) -> dict[str, Any]:
        """Fields that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Reads one entry.

        Raises:
            ShardCorruptError: Fields are missing, unknown or not strings.
        """
        try:
            entry = cls(**content)
        except TypeError as error:
            raise ShardCorruptError(f"ledger entry cannot be read: {error}") from error
        if entry.outcome not in ("skipped", "quarantined") or not all(
            isinstance(value, str) for value in content.values()
        ):
            raise ShardCorruptError("ledger entry cannot be read: a field is not a string it may be")
        return entry


class BadSampleBudget:
    """Counts quarantined items and ends the run when there are too many: max(5, 0.1 %) or 100 in a row."""

    def __init__(self, num_items: int) -> None:
        """`num_items`: items of the whole plan."""
        self.num_allowed = max(MIN_ALLOWED, int(num_items * ALLOWED_SHARE))
        self._num_bad = self._num_in_a_row = 0
        self._skipped: Counter[tuple[str, str]] = Counter()

    def spend(self, results: Iterable[Sample | LedgerEntry]) -> None:
        """Goes through what became of the next items, in their order, and warns of the bad ones.

        Raises:
            BadSampleBudgetError: The budget is spent.
        """
        for result in results:
            if isinstance(result, Sample):
                self._num_in_a_row = 0
            elif result.outcome == "skipped":
                self._skipped[result.recording_id or result.key, result.reason] += 1
            else:
                self._count_bad(result)

    def keep(self, ledger: Iterable[LedgerEntry]) -> None:
        """Counts the entries of a shard that an earlier run has finished.

        Raises:
            BadSampleBudgetError: The budget is spent.
        """
        for entry in ledger:
            self._num_in_a_row = 0
            self.spend([entry])

    def _count_bad(self, entry: LedgerEntry) -> None:
        self._num_bad += 1
        self._num_in_a_row += 1
        if self._num_bad <= MAX_WARNINGS:
            _logger.warning("quarantined %s: %s", entry.key, entry.reason)
        if self._num_bad > self.num_allowed or self._num_in_a_row >= MAX_IN_A_ROW:
            raise BadSampleBudgetError(
                f"{self._num_bad} bad samples ({self._num_in_a_row} in a row; {self.num_allowed} allowed), "
                f"the last {entry.key}: {entry.reason}; repair or remove them and run again"
            )

    def summarise(self) -> None:
        """Warns of what was skipped, once per recording, and of bad samples not named yet."""
        for (name, reason), count in list(self._skipped.items())[:MAX_WARNINGS]:
            _logger.warning("skipped %d of %s: %s", count, name, reason)
        if (num_more := len(self._skipped) - MAX_WARNINGS) > 0:
            _logger.warning("skipped items of %d more recordings; see ledger.jsonl", num_more)
        if self._num_bad > MAX_WARNINGS:
            _logger.warning("%d quarantined in all; see ledger.jsonl", self._num_bad)
