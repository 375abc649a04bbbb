"""What the benchmarks share: sides that are timed in turn, bare sgemm beside them, and the row they make.

A script `benchmarks/X.py` prints each of its rows as a line of json and a line for people;
`python benchmarks/run_all.py` runs all scripts and keeps the rows.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

SGEMM_SIZE = 2048
SGEMM_OPERATIONS = 2 * SGEMM_SIZE**3


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of RESULTS.md: dmlm beside its peers."""

    name: str
    """Such as `A-ami`: the row of the table of targets, and which part of it."""
    title: str
    dmlm: float
    peers: Mapping[str, float]
    unit: str
    target: float | None
    """Least ratio that is wanted; None: the row is only reported."""
    smaller_is_better: bool = False
    """True for seconds and bytes, False for rates."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What else was measured, such as the share of equal results."""

    @property
    def ratio(self) -> float:
        """How many times better than the best of its peers."""
        if self.smaller_is_better:
            return min(self.peers.values()) / self.dmlm
        return self.dmlm / max(self.peers.values())

    def print(self) -> None:
        """Prints the row, for `run_all.py` and for people."""
        content = asdict(self) | {"ratio": self.ratio}
        print(json.dumps({content.pop("name"): content}))
        peers = ", ".join(f"{name} {value:.4g}" for name, value in self.peers.items())
        target = "" if self.target is None else f" (target {self.target:g})"
        details = describe(self.details)
        values = f"dmlm {self.dmlm:.4g}, {peers} {self.unit}: {self.ratio:.2f} x{target}"
        print(f"{self.name}. {self.title}: {values}{'; ' if details else ''}{details}", flush=True)


def time_sides(sides: Mapping[str, Callable[[], object]], num_rounds: int) -> dict[str, float]:
    """Median seconds of each side; the sides take turns in every round, and a first round warms up.

    Without any round the seconds are those of the warm-up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(num_rounds + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:] or values) for name, values in seconds.items()}


def make_sgemm() -> Callable[[], object]:
    """A side of one bare float32 matrix product, of `SGEMM_OPERATIONS`."""
    left, right = torch.randn(2, SGEMM_SIZE, SGEMM_SIZE)
    return lambda: left @ right


def peak_bytes() -> int:
    """Most memory that this process has had, in bytes; on Linux.

    Not `ru_maxrss`: a process begins with that of the one that started it.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def describe(details: Mapping[str, Any]) -> str:
    """Details of a row for people."""
    return "; ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in details.items())


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_short(part)}" for name, part in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
