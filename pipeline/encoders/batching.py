"""Which audio goes through an encoder together: recordings -> chunks -> windows -> batches.

Memory stays bounded by the chunk, whatever the corpus; the order of the recordings is kept.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from dmlm.pipeline.samples import Waveform

T = TypeVar("T")


def read_ahead(waveforms: Iterable[Waveform], num_samples: int) -> Iterator[list[Waveform]]:
    """Yields lists of consecutive recordings, each closed once it holds `num_samples` or more."""
    chunk: list[Waveform] = []
    total = 0
    for waveform in waveforms:
        chunk.append(waveform)
        total += len(waveform)
        if total >= num_samples:
            yield chunk
            chunk, total = [], 0
    if chunk:
        yield chunk


def overlapping_windows(waveform: Waveform, num_samples: int, num_shared: int) -> list[Waveform]:
    """Windows of `num_samples`, each sharing `num_shared` with the one before; the last may be shorter.

    No window lies wholly inside its predecessor, so the last one is longer than what it shares.
    """
    starts = range(0, max(len(waveform) - num_shared, 1), num_samples - num_shared)
    return [waveform[start : start + num_samples] for start in starts]


def seams(num_windows: int, num_shared: int) -> Iterator[slice]:
    """Yields the part of each window's frames that counts when consecutive windows share `num_shared`.

    The seam is in the middle of what two windows share: every frame is taken once, from the window whose
    edge is further away.
    """
    half = num_shared // 2
    for number in range(num_windows):
        end = None if number == num_windows - 1 else half - num_shared
        yield slice(half if number else 0, end)


def plan_batches(lengths: Sequence[int], max_length: int) -> Iterator[list[int]]:
    """Yields indices in batches of similar length, shortest first.

    A batch padded to its longest item is at most `max_length` long in all, unless it is one item.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > max_length:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def map_windows(
    waveforms: Iterable[Waveform],
    split: Callable[[Waveform], Sequence[Waveform]],
    encode: Callable[[list[Waveform]], Sequence[T]],
    *,
    read_ahead_samples: int,
    batch_samples: int,
    count_samples: Callable[[Waveform], int] = len,
) -> Iterator[list[T]]:
    """Yields what `encode` makes of the windows of each recording, in the order given.

    Args:
        waveforms: Recordings.
        split: Recording to windows.
        encode: Gets batches of windows of similar length, from as many recordings as are read ahead.
        read_ahead_samples: Audio that is read before the first of it is encoded.
        batch_samples: Most audio in a batch, see `plan_batches`.
        count_samples: Length of a window when it is encoded, padding included.
    """
    for chunk in read_ahead(waveforms, read_ahead_samples):
        parts = [split(waveform) for waveform in chunk]
        windows = [window for part in parts for window in part]
        encoded: dict[int, T] = {}
        for batch in plan_batches([count_samples(window) for window in windows], batch_samples):
            encoded |= zip(batch, encode([windows[index] for index in batch]), strict=True)
        indices = iter(range(len(windows)))
        for part in parts:
            yield [encoded[index] for index in islice(indices, len(part))]
