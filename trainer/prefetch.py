"""Prefetching: the batches of the next steps are built in a thread while this step runs."""

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from dmlm.trainer.packing import PackedBatch
from dmlm.trainer.stream import TokenStream

NUM_STEPS_AHEAD: Final = 2


class Prefetcher:
    """The same steps as the stream's, and the state behind the last one that was taken, not built.

    The stream is the prefetcher's until it is closed. What the thread raises, `next_step` raises.
    """

    def __init__(self, stream: TokenStream, *, pin_memory: bool = False) -> None:
        """Starts to build.

        Args:
            stream: Where the steps come from.
            pin_memory: Puts the batches where a GPU can fetch them while it computes.
        """
        self._stream, self._pin_memory = stream, pin_memory
        self._state: Mapping[str, Any] = stream.state()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="dmlm-prefetch")
        self._steps: deque[Future[tuple[list[PackedBatch], Mapping[str, Any]]]] = deque()
        for _ in range(NUM_STEPS_AHEAD):
            self._steps.append(self._thread.submit(self._build))

    def next_step(self) -> list[PackedBatch]:
        """Micro-batches of this rank for the next optimizer step.

        Raises:
            ShardCorruptError: A sample's tokens are damaged, or its index does not fit them.
        """
        batches, self._state = self._steps.popleft().result()
        self._steps.append(self._thread.submit(self._build))
        return batches

    def state(self) -> Mapping[str, Any]:
        """Plain json from which a stream's `restore` goes on exactly behind the last step taken."""
        return self._state

    def close(self) -> None:
        """Ends the thread; steps that were built and not taken are lost, and no state knows of them."""
        self._thread.shutdown(cancel_futures=True)

    def _build(self) -> tuple[list[PackedBatch], Mapping[str, Any]]:
        batches = self._stream.next_step()
        if self._pin_memory:
            batches = [batch.pin_memory() for batch in batches]
        return batches, self._stream.state()
