"""Shares in processes of this machine; with several GPUs one worker each."""

import os
import signal
from dataclasses import replace
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from threading import Thread
from typing import Any

from dmlm.pipeline.errors import DmlmError, RankError
from dmlm.pipeline.tokenization.planning import TokenizeConfig
from dmlm.pipeline.tokenization.running import tokenize_share


def run_locally(config: TokenizeConfig, num_workers: int) -> None:
    """Finishes all shards with so many workers.

    Raises:
        RankError: A worker died; what it finished is kept.
        DmlmError, OSError: What `tokenize_share` raised in one of them; the others are ended.
    """
    # Not forked from here: the threads of torch and of a GPU would not survive that.
    context = get_context("forkserver")
    context.set_forkserver_preload(["dmlm.pipeline.tokenization.running"])
    workers: dict[Any, Any] = {}
    """Processes by the pipe that tells what became of them."""
    try:
        for index in range(num_workers):
            receiver, sender = context.Pipe(duplex=False)
            arguments = (sender, _on_own_gpu(config, index), index, num_workers)
            process = context.Process(target=_run_share, args=arguments, name=f"worker {index}")
            process.start()
            workers[receiver] = process
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

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(max(1, torch.get_num_threads() // num_shares))
    try:
        tokenize_share(config, index, num_shares)
        sender.send(None)
    except (DmlmError, OSError) as error:
        sender.send(error)


def _end_with_parent() -> None:
    if (parent := parent_process()) is not None:
        wait([parent.sentinel])
        os._exit(1)  # a parent that was killed could not end this one


def _check_outcome(receiver: Any, process: Any) -> None:
    try:
        error = receiver.recv()
    except EOFError:
        process.join()
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
