"""S5: a file that crashes its native decoder costs its own samples; the run goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dmlm.pipeline.shards import load_dataset_card, verify_dataset
from dmlm.pipeline.tokenization import separate_processes
from dmlm.pipeline.tokenization.separate_processes import CrashError, SeparateProcesses

# Python runs this when it starts, in every process.
CRASHING_DECODER = """
import ctypes
from pathlib import Path
from PIL import Image

decode = Image.open

def crash_on_marked(path, *arguments, **more):
    if Path(path).read_bytes()[-5:] == b"crash":
        ctypes.string_at(0)
    return decode(path, *arguments, **more)

Image.open = crash_on_marked
"""


@pytest.fixture
def corpus(root: Path, tmp_path: Path) -> Path:
    """The small corpus, with one picture that is whole and crashes the decoder."""
    folder = tmp_path / "corpus"
    shutil.copytree(root, folder)
    with (folder / "coco" / "train2017" / "5.png").open("ab") as file:
        file.write(b"crash")
    return folder


@pytest.fixture
def tokenize_crashing(corpus: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Function that runs `tokenize` with more options where that picture is a null pointer read."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CRASHING_DECODER)

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        program = str(Path(sys.executable).with_name("dmlm-cli"))
        command = [program, "tokenize", "--source", "coco", "--root", str(corpus)]
        command += ["--codebook", str(corpus / "codebook"), "--out", str(tmp_path / "out"), *options]
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return run


SHARE = ("--task-index", "0", "--num-tasks", "1")


@pytest.mark.parametrize("runs", [[()], [("--workers", "2")], [SHARE, ()]], ids=["alone", "workers", "array"])
def test_the_picture_that_crashes_its_decoder_is_quarantined_and_the_run_goes_on(
    tokenize_crashing: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    runs: list[tuple[str, ...]],
) -> None:
    for options in runs:
        result = tokenize_crashing(*options)
        assert result.returncode == 0, result.stderr
    entries = [json.loads(line) for line in (tmp_path / "out" / "ledger.jsonl").read_text().splitlines()]
    crashed = [entry for entry in entries if "SIGSEGV" in entry["reason"]]
    assert [(entry["key"], entry["stage"], entry["error"]) for entry in crashed] == [
        ("5-50", "image", "ImageError"),
        ("5-51", "image", "ImageError"),
    ]
    totals = load_dataset_card(tmp_path / "out").totals
    assert totals.num_in == totals.num_out + totals.num_quarantined
    assert totals.num_quarantined == len(entries) > len(crashed)  # the one that is merely broken, too
    verify_dataset(tmp_path / "out")


def test_a_process_that_was_killed_between_two_calls_costs_neither() -> None:
    processes = SeparateProcesses()
    assert processes.call(abs, -1) == 1
    os.kill(processes._idle[0][0].pid, signal.SIGKILL)
    assert processes.call(abs, -2) == 2


def test_a_process_that_gives_no_answer_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(separate_processes, "MAX_SECONDS", 1.0)
    processes = SeparateProcesses()
    with pytest.raises(TimeoutError, match="no answer within 1 seconds"):
        processes.call(time.sleep, 60)
    assert processes.call(abs, -2) == 2


def test_a_process_that_ended_is_replaced_by_another() -> None:
    processes = SeparateProcesses()
    assert processes.call(abs, -1) == 1
    with pytest.raises(CrashError, match="exit code 3"):
        processes.call(os._exit, 3)
    assert processes.call(abs, -2) == 2
    with pytest.raises(ValueError, match="invalid literal"):
        processes.call(int, "x")
