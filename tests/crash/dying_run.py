"""A training run that dies at a chosen place; test_kill_train.py and test_kill_checkpoint.py start it.

Given by name: `config`; `step` from which on the run may die, counted from 0; `num_operations` on files that
it still does from there, or from the beginning of the next save if `in_save`; `count_path`, where the number
of operations is written if the run lives. With `num_operations` 0 it dies in the middle of the step.
"""

import os
import signal
import sys
from typing import Any

from dmlm.trainer import loop
from dmlm.trainer import step as step_module

OPERATIONS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "dmlm.fsync")

config, step, num_operations, in_save, count_path = (
    globals()[name] for name in ("config", "step", "num_operations", "in_save", "count_path")
)
learning_rate, save_checkpoint, fsync = step_module.learning_rate, loop.save_checkpoint, os.fsync
num_done = -1


def arm() -> None:
    global num_done
    num_done = max(num_done, 0)
    if num_operations == 0:
        die()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def count(event: str, arguments: tuple[Any, ...]) -> None:
    global num_done
    if num_done >= 0 and event in OPERATIONS:
        num_done += 1
        if num_done == num_operations:
            die()


def watched_rate(number: int, *arguments: Any) -> float:
    if number >= step and not in_save:
        arm()
    return learning_rate(number, *arguments)


def watched_save(*arguments: Any, **named: Any) -> Any:
    if in_save:
        arm()
    return save_checkpoint(*arguments, **named)


def watched_fsync(descriptor: int) -> None:
    sys.audit("dmlm.fsync")
    fsync(descriptor)


step_module.learning_rate = watched_rate  # type: ignore[assignment]
loop.save_checkpoint, os.fsync = watched_save, watched_fsync
sys.addaudithook(count)
loop.train(config)
if count_path:
    count_path.write_text(str(num_done))
