"""Calls in processes beside this one: code that crashes there costs the call that it was at.

Decoders of audio and images are native code, and what they read is not ours.
"""

import signal
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any


class CrashError(RuntimeError):
    """A call ended the process that it was made in."""


class SeparateProcesses:
    """As many processes as there are calls at a time; they end when this one does."""

    def __init__(self) -> None:
        # Not forked from here: what crashed in this program's memory must not come along.
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload(["dmlm.pipeline.audio", "soundfile", "soxr", "PIL.ImageOps"])
        self._idle: list[tuple[Any, Connection]] = []

    def call(self, function: Any, argument: Any) -> Any:
        """What `function(argument)` gives, or raises, in another process; any thread may ask.

        Raises:
            CrashError: The process ended without an answer.
        """
        try:
            process, connection = self._idle.pop()
        except IndexError:
            process, connection = self._start()
        connection.send((function, argument))
        try:
            answer = connection.recv()
        except (EOFError, ConnectionError):
            process.join()
            raise CrashError(f"ended its process by {name_end(process.exitcode)}") from None
        self._idle.append((process, connection))
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _start(self) -> tuple[Any, Connection]:
        here, there = self._context.Pipe()
        process = self._context.Process(target=_answer_calls, args=(there,), daemon=True)
        process.start()
        there.close()
        return process, here


def _answer_calls(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who asks, and who ends this one
    with suppress(EOFError, ConnectionError):  # nobody is there any more
        while True:
            function, argument = connection.recv()
            try:
                answer = function(argument)
            except Exception as error:
                answer = error
            connection.send(answer)


def name_end(code: int | None) -> str:
    """What ended a process of exit code `code`, in words."""
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
