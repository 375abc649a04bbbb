"""Prefetching: the batches of the next steps are built in a thread while this step runs.

A disk that stops answering is seen: the thread waits for it without keeping the others, and `next_step` waits
for the thread no longer than STALL_SECONDS.
"""

from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, Queue
from threading import Event, Thread
from typing import Any, Final

from dmlm.pipeline.errors import LoaderError
from dmlm.trainer.data.packing import PackedBatch
from dmlm.trainer.data.stream import TokenStream

NUM_STEPS_AHEAD: Final = 2
STALL_SECONDS: Final = 60
_CLOSE_SECONDS: Final = 10.0


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
        self._is_closed, self._is_stalled = Event(), False
        # The thread holds one more, which it has built.
        self._steps: Queue[Future[tuple[list[PackedBatch], Mapping[str, Any]]]] = Queue(NUM_STEPS_AHEAD - 1)
        # A daemon: a process must be able to end while its disk does not answer.
        self._thread = Thread(target=self._build_steps, name="dmlm-prefetch", daemon=True)
        self._thread.start()

    def next_step(self) -> list[PackedBatch]:
        """Micro-batches of this rank for the next optimizer step.

        Raises:
            ShardCorruptError: A sample's tokens are damaged, or its index does not fit them.
            LoaderError: No step was built in STALL_SECONDS.
        """
        # Second by second, so that the time that the whole process was stopped for does not count.
        for _ in range(STALL_SECONDS):
            with suppress(Empty):
                batches, self._state = self._steps.get(timeout=1).result()
                return batches
        self._is_stalled = True
        raise LoaderError(
            f"{self._stream.reading}.tar: no step was built in {STALL_SECONDS} s, this shard is being read; "
            "look at its disk, then go on with --resume"
        )

    def state(self) -> Mapping[str, Any]:
        """Plain json from which a stream's `restore` goes on exactly behind the last step taken."""
        return self._state

    def close(self) -> None:
        """Ends the thread; steps that were built and not taken are lost, and no state knows of them."""
        self._is_closed.set()
        with suppress(Empty):
            self._steps.get_nowait()
        self._thread.join(0 if self._is_stalled else _CLOSE_SECONDS)

    def _build_steps(self) -> None:
        while not self._is_closed.is_set():
            step: Future[tuple[list[PackedBatch], Mapping[str, Any]]] = Future()
            try:
                step.set_result(self._build())
            except BaseException as error:  # whatever it is, the loop raises it
                step.set_exception(error)
                self._is_closed.set()
            self._steps.put(step)

    def _build(self) -> tuple[list[PackedBatch], Mapping[str, Any]]:
        batches = self._stream.next_step()
        if self._pin_memory:
            batches = [batch.pin_memory() for batch in batches]
        return batches, self._stream.state()
