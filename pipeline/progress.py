"""Progress of long work: a live line with rate and time left on a terminal, plain lines in a pipe."""

import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

LINE_EVERY_SECONDS = 10.0
"""How often a plain line is printed when the output is not a terminal."""


class Progress:
    """Counts finished work and reports it on standard error."""

    def __init__(
        self, label: str, total: int | None = None, unit: str = "samples", num_before: int = 0
    ) -> None:
        """`total` in `unit`; None when it is not known. `num_before` of them were done by an earlier run."""
        self.label, self.total, self.unit = label, total, unit
        self.num_done = self._num_before = num_before
        self._live = sys.stderr.isatty()
        self._start = self._last = time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Adds `count` units of finished work; `note` is shown behind the figures."""
        self.num_done += count
        now = time.monotonic()
        if now - self._last >= (0.2 if self._live else LINE_EVERY_SECONDS):
            self._last = now
            self._print(note, end="")

    def close(self, note: str = "") -> None:
        """Prints the final line."""
        self._print(note, end="\n" if self._live else "")

    def _print(self, note: str, end: str) -> None:
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = (self.num_done - self._num_before) / seconds
        done = f"{self.num_done}/{self.total}" if self.total is not None else str(self.num_done)
        parts = [f"{self.label}: {done} {self.unit}", f"{rate:.1f}/s", f"{seconds:.0f} s"]
        if self.total and self.num_done < self.total and rate > 0:
            parts.append(f"{(self.total - self.num_done) / rate:.0f} s left")
        line = ", ".join(parts + ([note] if note else []))
        if self._live:
            # A line that wraps could not be written over.
            shown = line if end else line[: shutil.get_terminal_size().columns - 1]
            sys.stderr.write(f"\r\033[K{shown}{end}")
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()


def track(items: Iterable[T], label: str, total: int | None = None, unit: str = "samples") -> Iterator[T]:
    """Yields `items` and reports progress as they are consumed."""
    progress = Progress(label, total, unit)
    for item in items:
        yield item
        progress.advance()
    progress.close()
