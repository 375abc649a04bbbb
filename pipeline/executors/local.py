"""Shares in processes of this machine; with several GPUs one worker each."""

import logging
import signal
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, Final

from dmlm.pipeline.errors import DmlmError, RankError
from dmlm.pipeline.separate_processes import name_end
from dmlm.pipeline.tokenization import TokenizeConfig, tokenize_share

_CRASHES: Final = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)
"""What native code ends by that a broken file misled; who kills a process on purpose uses others."""

_logger = logging.getLogger(__name__)


class _CrashError(RankError):
    """A worker ended by one of _CRASHES."""


def run_locally(config: TokenizeConfig, num_workers: int) -> None:
    """Finishes all shards with so many workers; if one crashes, all begin again, and warily.

    Raises:
        RankError: A worker died otherwise, or crashed again; what it finished is kept.
        DmlmError, OSError: What `tokenize_share` raised in one of them; the others are ended.
    """
    try:
        _run_workers(config, num_workers)
    except _CrashError as crash:
        _logger.warning("%s; going on with files decoded in processes of their own", crash)
        _run_workers(replace(config, is_wary=True), num_workers)


def _run_workers(config: TokenizeConfig, num_workers: int) -> None:
    # Not forked from here: the threads of torch and of a GPU would not survive that.
    context = get_context("forkserver")
    context.set_forkserver_preload(["dmlm.pipeline.tokenization"])
    workers: dict[Any, Any] = {}
    """Processes by the pipe that tells what became of them."""
    try:
        for index in range(num_workers):
            receiver, sender = context.Pipe(duplex=False)
            arguments = (sender, _on_own_gpu(config, index), index, num_workers)
            workers[receiver] = context.Process(target=_run_share, args=arguments, name=f"worker {index}")
            workers[receiver].start()
            sender.close()
        running = dict(workers)
        while running:
            for ended in wait(list(running)):
                _check_outcome(ended, running.pop(ended))
    finally:
        for process in workers.values():
            process.terminate()
            process.join()


def _run_share(sender: Connection, config: TokenizeConfig, index: int, num_shares: int) -> None:
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // num_shares))
    try:
        tokenize_share(config, index, num_shares)
        sender.send(None)
    except (DmlmError, OSError) as error:
        sender.send(error)


def _check_outcome(receiver: Any, process: Any) -> None:
    try:
        error = receiver.recv()
    except EOFError:
        process.join()
        if -process.exitcode in _CRASHES:
            raise _CrashError(f"{process.name} crashed ({name_end(process.exitcode)})") from None
        raise RankError(
            f"{process.name} died (exit code {process.exitcode}); look at its output, then run the same "
            "command again: finished shards are kept"
        ) from None
    if error is not None:
        raise error


def _on_own_gpu(config: TokenizeConfig, index: int) -> TokenizeConfig:
    import torch

    if config.device not in ("auto", "cuda") or not torch.cuda.is_available():
        return config
    return replace(config, device=f"cuda:{index % torch.cuda.device_count()}")
