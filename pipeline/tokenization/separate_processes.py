"""Calls in processes beside this one: code that crashes there costs the call that it was at.

Decoders of audio and images are native code, and what they read is not ours.
"""

import signal
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from threading import Lock
from typing import Any, Final

from dmlm.pipeline.errors import ConfigError

MAX_SECONDS: Final = 600.0
"""Of one call: a decoder that takes longer hangs."""


class CrashError(RuntimeError):
    """A call ended the process that it was made in."""


class SeparateProcesses:
    """As many processes as there are calls at a time; they end when this one does."""

    def __init__(self) -> None:
        # Not forked from here: what crashed in this program's memory must not come along.
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload(["dmlm.pipeline.audio", "soundfile", "soxr", "PIL.ImageOps"])
        self._idle: list[tuple[Any, Connection]] = []
        # multiprocessing looks after all children whenever one starts or ends; not in two threads at once.
        self._children = Lock()

    def call(self, function: Any, argument: Any) -> Any:
        """What `function(argument)` gives, or raises, in another process; any thread may ask.

        Raises:
            CrashError: The process ended without an answer.
            TimeoutError: It gave none within MAX_SECONDS, and was ended.
            ConfigError: No process can be started here.
        """
        try:
            used = self._idle.pop()
        except IndexError:
            return self._ask(self._start(), function, argument)
        with suppress(CrashError):  # it may have been ended, or been damaged by a call before this one
            return self._ask(used, function, argument)
        return self._ask(self._start(), function, argument)

    def _ask(self, worker: tuple[Any, Connection], function: Any, argument: Any) -> Any:
        process, connection = worker
        try:
            connection.send((function, argument))
            if not connection.poll(MAX_SECONDS):
                process.kill()
                raise TimeoutError(f"no answer within {MAX_SECONDS:.0f} seconds")
            answer = connection.recv()
        except (EOFError, ConnectionError):
            with self._children:
                process.join()
            raise CrashError(f"ended its process by {_name_end(process.exitcode)}") from None
        self._idle.append(worker)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _start(self) -> tuple[Any, Connection]:
        try:
            here, there = self._context.Pipe()
            process = self._context.Process(target=_answer_calls, args=(there,), daemon=True)
            with self._children:
                process.start()
            there.close()
            here.recv()  # it is up
        except (OSError, EOFError, AssertionError, RuntimeError) as error:
            raise ConfigError(
                f"no process to decode files in can be started: {error or type(error).__name__}; a script of "
                'your own needs `if __name__ == "__main__":` around its calls'
            ) from error
        return process, here


def _answer_calls(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who asks, and who ends this one
    with suppress(EOFError, ConnectionError):  # nobody is there any more
        connection.send(None)
        while True:
            connection.send(_outcome(*connection.recv()))  # nothing of a call is kept


def _outcome(function: Any, argument: Any) -> Any:
    try:
        return function(argument)
    except Exception as error:
        return error.with_traceback(None)


def _name_end(code: int | None) -> str:
    """What ended a process of exit code `code`, in words."""
    names = {-number.value: number.name for number in signal.Signals}
    return names.get(code, f"exit code {code}") if code is not None else "exit code unknown"
