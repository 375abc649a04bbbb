"""One of several processes that train together; what it saw goes to a file. conftest.py starts them.

Given by name: `environment` of torchrun, `config`, `result_path`, `num_workers` of a DataLoader that this
rank also reads with, `stop_at`: the step, counted from 0, in which this rank falls silent (None: never),
`timeout_seconds`: how long ranks wait for each other in a step, and `save_seconds`: how much longer the first
rank saves.
"""

import json
import os
import signal
import time
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from dmlm.pipeline.errors import DmlmError
from dmlm.trainer import distributed, loop, step
from dmlm.trainer.data.dataset import open_training_data
from dmlm.trainer.data.packing import PackedBatch
from dmlm.trainer.data.prefetch import Prefetcher
from dmlm.trainer.data.stream import TokenStream
from dmlm.trainer.distributed import join_ranks
from dmlm.trainer.loop import train

NUM_SEQUENCES = 40

NAMES = ("environment", "config", "result_path", "num_workers", "stop_at", "timeout_seconds", "save_seconds")
environment, config, result_path, num_workers, stop_at, timeout_seconds, save_seconds = (
    globals()[name] for name in NAMES
)
next_step, learning_rate = Prefetcher.next_step, step.learning_rate
save_checkpoint = loop.save_checkpoint
keys: list[list[list[str]]] = []
"""Of each step and micro-batch."""
times = [time.monotonic()]
"""Of the beginnings of steps."""


def recorded_step(stream: Prefetcher) -> list[PackedBatch]:
    batches = next_step(stream)
    keys.append([list(batch.keys) for batch in batches])
    times.append(time.monotonic())
    return batches


def watched_rate(number: int, *arguments: Any) -> float:
    if number == stop_at:
        os.kill(os.getpid(), signal.SIGSTOP)
    return learning_rate(number, *arguments)


def slow_save(*arguments: Any, **more: Any) -> Path:
    time.sleep(save_seconds)
    return save_checkpoint(*arguments, **more)


Prefetcher.next_step, step.learning_rate = recorded_step, watched_rate  # type: ignore[method-assign, assignment]
loop.save_checkpoint = slow_save
os.environ.update(environment)
distributed.TIMEOUT = timedelta(seconds=timeout_seconds)
torch.set_num_threads(1)
result: dict[str, Any] = {}
try:
    with join_ranks(environment, config.device) as ranks:
        train(config, ranks)
        data = open_training_data(config.shards)
        share = {"rank": ranks.rank, "world_size": ranks.world_size}
        stream = TokenStream(data, config.recipe, config.seed, **share)
        started = "fork" if num_workers else None
        loader = DataLoader(
            stream.as_webdataset(), batch_size=None, num_workers=num_workers, multiprocessing_context=started
        )
        result["sequences"] = [entry["__key__"] for entry in islice(loader, NUM_SEQUENCES)]
        ranks.wait_for_all()
except DmlmError as error:
    result |= {"error": f"{type(error).__name__}: {error}", "seconds": time.monotonic() - times[-1]}
result_path.write_text(json.dumps(result | {"keys": keys}))
