"""What every scorer gives: numbers by name, how sure they are, and how they were made.

Suffixes: N sample, R resample, S statistic.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmlm.pipeline.randomness import generator_for

NUM_RESAMPLES: Final = 1000
CONFIDENCE: Final = 0.95
_DRAWS_AT_ONCE: Final = 1 << 20


class Interval(NamedTuple):
    """What a score lies in with 95 % confidence, were the samples drawn anew."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Scores of a corpus."""

    num_samples: int
    values: Mapping[str, float | None]
    """Error rates as fractions, BLEU, chrF, CIDEr and their kin up to 100 or beyond; None: not defined."""
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    """What the scores were made from."""
    signatures: Mapping[str, str] = field(default_factory=dict)
    """How; two scores of one signature may be compared."""

    @property
    def wer(self) -> float | None:
        """Word error rate, normalised."""
        return self.values.get("wer")

    @property
    def wer_raw(self) -> float | None:
        """Word error rate after the text rule alone."""
        return self.values.get("wer_raw")

    @property
    def cer(self) -> float | None:
        """Character error rate after the text rule alone."""
        return self.values.get("cer")

    def to_json(self) -> dict[str, Any]:
        """One flat object; intervals are pairs."""
        intervals = {f"{name}_interval": list(interval) for name, interval in self.intervals.items()}
        signatures = {f"{name}_signature": signature for name, signature in self.signatures.items()}
        return {"num_samples": self.num_samples, **self.values, **intervals, **self.counts, **signatures}


def bootstrap_ratio(errors_N: Sequence[float], weights_N: Sequence[float]) -> Interval | None:
    """Interval of sum(errors) / sum(weights) over samples drawn with replacement; None: no weight at all."""
    statistics_NS = np.stack([np.asarray(errors_N, np.float64), np.asarray(weights_N, np.float64)], axis=1)
    if not statistics_NS[:, 1].sum():
        return None
    errors_R, weights_R = resample_sums(statistics_NS).T
    return interval_of(errors_R[weights_R > 0] / weights_R[weights_R > 0])


def resample_sums(statistics_NS: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums (R, S) of the statistics of samples drawn with replacement; the draws are always the same.

    1,000 resamples for a percentile bootstrap (Bisani and Ney 2004).
    """
    rng = generator_for(0, "bootstrap")
    num_samples = len(statistics_NS)
    num_at_once = max(1, min(NUM_RESAMPLES, _DRAWS_AT_ONCE // num_samples))
    sums = []
    for start in range(0, NUM_RESAMPLES, num_at_once):
        num_resamples = min(num_at_once, NUM_RESAMPLES - start)
        drawn_RN = rng.integers(0, num_samples, (num_resamples, num_samples))
        sums.append(np.stack([column_N[drawn_RN].sum(axis=1) for column_N in statistics_NS.T], axis=1))
    return np.concatenate(sums)


def interval_of(scores_R: NDArray[np.float64]) -> Interval:
    """What the middle 95 % of the scores of resamples lie in."""
    low, high = np.quantile(scores_R, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))


def bootstrap_mean(values_N: Sequence[float]) -> Interval | None:
    """Interval of the mean over samples drawn with replacement; None: there are none."""
    return bootstrap_ratio(values_N, [1.0] * len(values_N))
