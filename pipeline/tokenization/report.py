"""What `tokenize` says when it has ended."""

from dataclasses import dataclass
from typing import Final, Self

from dmlm.pipeline.shards import DatasetTotals, TokenCounts

REPORT_NAME: Final = "report.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeReport:
    """What became of the corpus: in = out + skipped + quarantined."""

    num_in: int
    num_out: int
    num_skipped: int
    num_quarantined: int
    audio_seconds: float
    num_tokens: TokenCounts
    seconds: float
    """Of this run; shards kept from an earlier one cost nothing."""
    new_audio_seconds: float
    """Of the shards that this run wrote."""

    @classmethod
    def of(cls, totals: DatasetTotals, seconds: float, new_audio_seconds: float) -> Self:
        """Report of a data set with these totals."""
        return cls(
            num_in=totals.num_in,
            num_out=totals.num_out,
            num_skipped=totals.num_skipped,
            num_quarantined=totals.num_quarantined,
            audio_seconds=totals.audio_seconds,
            num_tokens=totals.num_tokens,
            seconds=seconds,
            new_audio_seconds=new_audio_seconds,
        )

    def table(self) -> str:
        """A few lines for people."""
        parts = [self.num_tokens.describe(), f"{self.seconds:.1f} s"]
        if self.audio_seconds:
            rate = self.new_audio_seconds / self.seconds
            at_rate = f" at {rate:.0f} times real time" if rate else ""
            parts.append(f"{self.audio_seconds:.0f} s of audio{at_rate}")
        return (
            f"in {self.num_in} = out {self.num_out} + skipped {self.num_skipped} + "
            f"quarantined {self.num_quarantined}\n{', '.join(parts)}"
        )
