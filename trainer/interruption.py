"""SIGINT and SIGTERM as a question that a loop asks when it suits it."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether SIGINT or SIGTERM came; a second one acts at once."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for name, handler in handlers.items():
            signal.signal(name, handler)

    in_main_thread = threading.current_thread() is threading.main_thread()
    names = (signal.SIGINT, signal.SIGTERM) if in_main_thread else ()
    handlers = {name: signal.signal(name, receive) for name in names}
    try:
        yield lambda: bool(received)
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)
