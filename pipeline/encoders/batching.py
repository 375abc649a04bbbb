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


def split_windows(waveform: Waveform, num_samples: int) -> list[Waveform]:
    """Consecutive windows of `num_samples`; the last one may be shorter."""
    return [waveform[start : start + num_samples] for start in range(0, len(waveform), num_samples)]


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
) -> Iterator[list[T]]:
    """Yields what `encode` makes of the windows of each recording, in the order given.

    `encode` gets batches of windows of similar length, from as many recordings as are read ahead.
    """
    for chunk in read_ahead(waveforms, read_ahead_samples):
        parts = [split(waveform) for waveform in chunk]
        windows = [window for part in parts for window in part]
        encoded: dict[int, T] = {}
        for batch in plan_batches([len(window) for window in windows], batch_samples):
            encoded |= zip(batch, encode([windows[index] for index in batch]), strict=True)
        indices = iter(range(len(windows)))
        for part in parts:
            yield [encoded[index] for index in islice(indices, len(part))]
