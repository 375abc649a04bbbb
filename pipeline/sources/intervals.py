"""Unions of time intervals: how long somebody else speaks too."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence

Interval = tuple[float, float]
"""Start and end in seconds."""


def union_of(intervals: Iterable[Interval]) -> list[Interval]:
    """The same stretches of time as disjoint intervals, sorted."""
    union: list[Interval] = []
    for start, end in sorted(intervals):
        if union and start <= union[-1][1]:
            union[-1] = (union[-1][0], max(union[-1][1], end))
        else:
            union.append((start, end))
    return union


def overlap_seconds(union: Sequence[Interval], start_seconds: float, end_seconds: float) -> float:
    """Seconds of [start, end) that the disjoint, sorted intervals cover; to the millisecond."""
    position = bisect_right(union, start_seconds, key=lambda interval: interval[1])
    total = 0.0
    while position < len(union) and union[position][0] < end_seconds:
        start, end = union[position]
        total += min(end, end_seconds) - max(start, start_seconds)
        position += 1
    return round(total, 3)
