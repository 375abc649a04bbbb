"""R11: no room for a file, whichever: the exit code says so, nothing is half published, and it goes on later.

Files may grow to a limit only (RLIMIT_FSIZE), which is swept from nothing to the size of the largest file.
Where a mount namespace can be had, a tmpfs is filled up too, so that every file is the one that fails.
"""

import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import accumulate
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import NamedTuple

import pytest

from dmlm.pipeline.errors import ExitCode
from dmlm.pipeline.shards import verify_dataset
from dmlm.pipeline.tokenization.planning import TokenizeConfig
from dmlm.pipeline.tokenization.running import tokenize
from dmlm.trainer.checkpoint import latest_checkpoint
from dmlm.trainer.config import Recipe, TrainConfig
from dmlm.trainer.loop import train

RUN = """
import io, resource, sys
# Their own files are not what the limit is for.
import dmlm.pipeline.tokenization.running, dmlm.trainer.loop, pandas, transformers.models.opt.modeling_opt
from dmlm.cli import run

sys.stderr = io.StringIO()
resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))
code = run(arguments)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
stderr_path.write_text(sys.stderr.getvalue())
sys.exit(code)
"""
RunLimited = Callable[[int, Iterable[object]], tuple[int | None, str]]

ALONE = ("unshare", "-m")
TRY = ("mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs")
STEP_KIB = 4
"""A page: what a tmpfs gives at a time."""


@pytest.fixture
def run_limited(processes: ForkServerContext, tmp_path: Path) -> RunLimited:
    """Function that runs a command whose files may have so many bytes; gives exit code and standard error."""
    (tmp_path / "run.py").write_text(RUN)
    stderr_path = tmp_path / "stderr"

    def run(num_bytes: int, arguments: Iterable[object]) -> tuple[int | None, str]:
        names = {"num_bytes": num_bytes, "arguments": list(map(str, arguments)), "stderr_path": stderr_path}
        process = processes.Process(target=runpy.run_path, args=(str(tmp_path / "run.py"), names))
        process.start()
        process.join()
        return process.exitcode, stderr_path.read_text()

    return run


class Outcome(NamedTuple):
    """Of a run without room, and of the next one with it."""

    full_dir: Path
    full: tuple[int, str]
    """Exit code and standard error."""
    later_dir: Path
    later: tuple[int, str]


RunOnFullDisk = Callable[..., Iterator[Outcome]]


@pytest.fixture
def run_on_full_disk(tmp_path: Path) -> RunOnFullDisk:
    """Function that runs a command with each of `num_kib` of room: `run(command, num_kib, begun=None)`."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not shutil.which(ALONE[0]) or subprocess.run([*ALONE, *TRY, disk], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted in a mount namespace (Linux, root)")

    def run(command: list[object], num_kib: list[int], begun: Path | None = None) -> Iterator[Outcome]:
        request = {
            "disk": str(disk),
            "results": str(tmp_path),
            "arguments": [*map(str, command), "--out", str(disk / "out")],
            "begun": begun and str(begun),
            "num_kib": num_kib,
        }
        script = [*ALONE, sys.executable, str(Path(__file__).with_name("full_disk_run.py"))]
        done = subprocess.run([*script, json.dumps(request)], stdout=subprocess.PIPE, text=True, check=True)
        runs = json.loads(done.stdout.splitlines()[-1])
        for size, full, later in zip(num_kib, runs[::2], runs[1::2], strict=True):
            yield Outcome(tmp_path / f"{size}-full", full, tmp_path / f"{size}-later", later)
        assert not list(disk.iterdir()), "the tmpfs is still there"

    return run


def num_kib_of(path: Path) -> int:
    return -(-path.stat().st_size // (STEP_KIB << 10)) * STEP_KIB


def assert_whole_files(directory: Path, whole_dir: Path) -> None:
    """What there is, is whole."""
    assert not list(directory.rglob("*.tmp"))
    for path in directory.rglob("*"):
        if path.is_file() and path.name != "run.json":
            assert path.read_bytes() == (whole_dir / path.relative_to(directory)).read_bytes()


def limits_below(folder: Path, num_limits: int) -> list[int]:
    """From 0 to one byte less than the largest file has."""
    largest = max(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return [number * (largest - 1) // (num_limits - 1) for number in range(num_limits)]


def assert_says_so(code: int | None, message: str) -> None:
    assert code == ExitCode.STORAGE, message
    assert "storage: " in message or "not saved" in message
    assert "Traceback" not in message


@pytest.fixture(scope="module")
def whole_dir(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `tokenize` gives where there is room."""
    out_dir = tmp_path_factory.mktemp("tokenized") / "whole"
    tokenize(TokenizeConfig(source="coco", root=root, codebook_dir=root / "codebook", out_dir=out_dir))
    return out_dir


def tokenize_command(root: Path) -> list[object]:
    return ["tokenize", "--source", "coco", "--root", root, "--codebook", root / "codebook"]


class Begun(NamedTuple):
    """A run that was killed behind its first checkpoint, beside the same one whole."""

    run_dir: Path
    kept: str
    """Name of its checkpoint."""
    whole_dir: Path
    command: list[object]
    """Goes on; `--out` is missing."""


@pytest.fixture(scope="module")
def begun(
    recipe_of: Callable[[int, int], Recipe],
    run_dying: Callable[..., int | None],
    token_shards: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Begun:
    folder, recipe = tmp_path_factory.mktemp("begun"), recipe_of(4, 2)
    (folder / "kill.yaml").write_text(json.dumps(recipe.to_json()))
    whole = TrainConfig(shards=(token_shards,), recipe=recipe, out_dir=folder / "whole", device="cpu")
    train(whole)
    run_dir = folder / "run"
    assert run_dying(replace(whole, out_dir=run_dir), step=3, num_operations=0) == -9
    assert latest_checkpoint(run_dir) == run_dir / "checkpoint-000002"
    command: list[object] = ["train", "--shards", token_shards, "--recipe", folder / "kill.yaml"]
    return Begun(run_dir, "checkpoint-000002", whole.out_dir, [*command, "--device", "cpu", "--resume"])


def test_tokenize_on_a_full_disk_publishes_nothing_and_goes_on_later(
    amount: Callable[[int, int], int],
    run_limited: RunLimited,
    root: Path,
    whole_dir: Path,
    content: Callable[[Path], dict[str, bytes]],
    assert_no_data_set: Callable[[Path], None],
    tmp_path: Path,
) -> None:
    for num_bytes in limits_below(whole_dir, amount(3, 40)):
        out_dir = tmp_path / f"limit-{num_bytes}"
        command = [*tokenize_command(root), "--out", out_dir]
        assert_says_so(*run_limited(num_bytes, command))
        assert_no_data_set(out_dir)
        assert_whole_files(out_dir, whole_dir)
        code, message = run_limited(1 << 30, command)
        assert code == ExitCode.OK, message
        assert content(out_dir) == content(whole_dir)
    verify_dataset(out_dir)


def test_training_on_a_full_disk_keeps_its_checkpoint_and_goes_on_later(
    amount: Callable[[int, int], int],
    run_limited: RunLimited,
    begun: Begun,
    assert_same_run: Callable[[Path, Path], None],
    tmp_path: Path,
) -> None:
    run_dir = shutil.copytree(begun.run_dir, tmp_path / "full")
    command = [*begun.command, "--out", run_dir]
    for num_bytes in limits_below(begun.whole_dir, amount(3, 40)):
        assert_says_so(*run_limited(num_bytes, command))
        assert latest_checkpoint(run_dir) == run_dir / begun.kept
        assert not list(run_dir.rglob("*.tmp"))
    code, message = run_limited(1 << 30, command)
    assert code == ExitCode.OK, message
    assert_same_run(run_dir, begun.whole_dir)


def test_tokenize_on_a_full_file_system_whichever_file_it_stops_at(
    amount: Callable[[int, int], int],
    run_on_full_disk: RunOnFullDisk,
    root: Path,
    whole_dir: Path,
    content: Callable[[Path], dict[str, bytes]],
    assert_no_data_set: Callable[[Path], None],
) -> None:
    written = sorted(content(whole_dir), key=lambda name: (whole_dir / name).stat().st_mtime_ns)
    names = ["run.json", *written]
    needed = dict(zip(names, accumulate(num_kib_of(whole_dir / name) for name in names), strict=True))
    at_least = {"coco-000000.tar", "coco-000000.parquet", "ledger.jsonl", "dataset.json"}
    every = range(STEP_KIB, needed["dataset.json"], STEP_KIB)
    num_kib = amount(sorted(needed[name] - STEP_KIB for name in at_least), list(every))
    stopped_at = set()
    for outcome in run_on_full_disk(tokenize_command(root), num_kib):
        assert_says_so(*outcome.full)
        assert_no_data_set(outcome.full_dir)
        assert_whole_files(outcome.full_dir, whole_dir)
        stopped_at.add(next(name for name in written if not (outcome.full_dir / name).exists()))
        assert outcome.later[0] == ExitCode.OK, outcome.later[1]
        assert content(outcome.later_dir) == content(whole_dir)
    verify_dataset(outcome.later_dir)
    assert stopped_at >= at_least


def test_training_on_a_full_file_system_keeps_its_checkpoint_and_goes_on_later(
    amount: Callable[[int, int], int],
    run_on_full_disk: RunOnFullDisk,
    begun: Begun,
    assert_same_run: Callable[[Path, Path], None],
) -> None:
    last = (begun.whole_dir / "checkpoint-000004").rglob("*")
    num_pages = sum(num_kib_of(path) for path in last if path.is_file()) // STEP_KIB
    num_points = amount(3, 40)
    num_kib = [(1 + i * (num_pages - 2) // (num_points - 1)) * STEP_KIB for i in range(num_points)]
    for outcome in run_on_full_disk(begun.command, num_kib, begun=begun.run_dir):
        assert_says_so(*outcome.full)
        assert latest_checkpoint(outcome.full_dir) == outcome.full_dir / begun.kept
        assert not list(outcome.full_dir.rglob("*.tmp"))
        assert outcome.later[0] == ExitCode.OK, outcome.later[1]
        assert_same_run(outcome.later_dir, begun.whole_dir)
