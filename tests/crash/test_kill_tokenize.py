"""R1, R4: `tokenize` killed at any moment: no reader takes what is left for a data set, and the next run ends
with the bytes of an undisturbed one. SIGTERM leaves no scratch folder either and ends with exit code 130.

Fail points are the calls that make files durable (`os.fsync`, `os.replace`), counted from outside the code.
"""

import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest

from dmlm.pipeline.errors import ConfigError, ExitCode, ShardCorruptError
from dmlm.pipeline.shards import load_dataset_card, verify_dataset
from dmlm.pipeline.tokenization.planning import TokenizeConfig
from dmlm.pipeline.tokenization.running import tokenize

RUN = """
import os, signal
from dmlm.pipeline.tokenization.running import tokenize

num_calls = 0

def counted(function):
    def call(*arguments):
        global num_calls
        num_calls += 1
        if num_calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return call

os.fsync, os.replace = counted(os.fsync), counted(os.replace)
tokenize(config)
"""
Settings = Callable[[Path], TokenizeConfig]
Content = Callable[[Path], dict[str, bytes]]
Start = Callable[[Path, int], BaseProcess]


@pytest.fixture
def start(processes: ForkServerContext, settings: Settings, tmp_path: Path) -> Start:
    script = tmp_path / "run.py"
    script.write_text(RUN)

    def start_process(out_dir: Path, kill_at: int) -> BaseProcess:
        """`tokenize` that kills itself at a fail point; 0: never."""
        names = {"config": settings(out_dir), "kill_at": kill_at}
        process = processes.Process(target=runpy.run_path, args=(str(script), names))
        process.start()
        return process

    return start_process


def finished_shards(out_dir: Path) -> dict[str, int]:
    """Tars that an index vouches for, and when they were written."""
    tars = (path.with_suffix(".tar") for path in out_dir.glob("*.parquet"))
    return {tar.name: tar.stat().st_mtime_ns for tar in tars}


def assert_refused_or_whole(directory: Path) -> None:
    """A reader takes a folder for unfinished, or everything in it is as its card says."""
    try:
        load_dataset_card(directory)
    except (ConfigError, ShardCorruptError):
        return
    verify_dataset(directory)


def test_killed_at_fail_points_it_ends_with_the_same_bytes(
    amount: Callable[[int, int], int],
    start: Start,
    settings: Settings,
    content: Content,
    assert_no_data_set: Callable[[Path], None],
    undisturbed: Path,
    tmp_path: Path,
) -> None:
    # Each file is synced, renamed and its folder synced: run.json, the rest, and the card until its rename.
    num_points, num_kills = 3 * len(content(undisturbed)) + 2, amount(3, 100)
    rng = np.random.default_rng(num_kills)
    every_point = [rng.permutation(num_points) + 1 for _ in range(num_kills // num_points + 1)]
    for number, kill_at in enumerate(np.concatenate(every_point)[:num_kills].tolist()):
        out_dir = tmp_path / f"{number}-{kill_at}"
        process = start(out_dir, kill_at)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert_no_data_set(out_dir)
        finished = finished_shards(out_dir)
        tokenize(settings(out_dir))
        assert content(out_dir) == content(undisturbed), f"killed at call {kill_at}"
        assert finished.items() <= finished_shards(out_dir).items(), "what was finished was done again"


def test_killed_at_random_it_ends_with_the_same_bytes(
    amount: Callable[[int, int], int],
    start: Start,
    settings: Settings,
    content: Content,
    undisturbed: Path,
    tmp_path: Path,
) -> None:
    begin = time.monotonic()
    start(tmp_path / "whole", 0).join()
    whole_seconds = time.monotonic() - begin
    assert content(tmp_path / "whole") == content(undisturbed)
    num_kills = amount(3, 100)
    rng = np.random.default_rng(num_kills)
    for number in range(num_kills):  # three in a row in each folder
        process = start(tmp_path / str(number // 3), 0)
        process.join(rng.uniform(0, whole_seconds))
        process.kill()
        process.join(60)
        assert_refused_or_whole(tmp_path / str(number // 3))
    for out_dir in {tmp_path / str(number // 3) for number in range(num_kills)}:
        tokenize(settings(out_dir))
        assert content(out_dir) == content(undisturbed)
        assert not list(out_dir.rglob("*.tmp"))


UNTIL_TOLD_TO_END = """
import signal, sys
from dmlm.cli import main
from dmlm.pipeline.codebooks import building

def wait(*arguments):
    print("a scratch folder is there", flush=True)
    signal.pause()

building.write_card = wait
main(sys.argv[1:])
"""


def test_told_to_end_it_removes_its_scratch_and_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("old ships sail home\n")
    command = [sys.executable, "-c", UNTIL_TOLD_TO_END, "tokenize", "--source", "text", "--root", "texts.txt"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "a scratch folder is there\n"
        assert [path.name for path in tmp_path.glob(".codebook.*.tmp")]
        process.terminate()
        _, message = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED, message
    assert "interrupted; run the same command again to go on" in message
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]
