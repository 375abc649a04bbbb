"""Work spread over threads; the voices' native code runs outside the interpreter lock."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from dmlm.pipeline.progress import track

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_order(
    function: Callable[[Item], Result], items: Sequence[Item], num_workers: int | None, label: str
) -> Iterator[Result]:
    """Yields `function(item)` in the order of `items`; None: one worker per processor."""
    pool = ThreadPoolExecutor(num_workers or os.cpu_count() or 1)
    try:
        yield from track(pool.map(function, items), label, total=len(items))
    finally:
        # After an error or Ctrl-C only what has begun is finished.
        pool.shutdown(cancel_futures=True)
