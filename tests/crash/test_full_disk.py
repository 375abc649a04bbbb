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
from itertools import accumulate
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import NamedTuple

import pytest

from dmlm.pipeline.errors import ExitCode
from dmlm.pipeline.shards import verify_dataset
from dmlm.pipeline.tokenization import TokenizeConfig, tokenize
from dmlm.trainer.checkpoint import latest_checkpoint
from dmlm.trainer.config import Recipe, TrainConfig
from dmlm.trainer.loop import train

RUN = """
import io, resource, sys
# Their own files are not what the limit is for.
import dmlm.pipeline.tokenization, dmlm.trainer.loop, pandas, transformers.models.opt.modeling_opt
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
    assert "storage: " in message or "cannot be written" in message
    assert "Traceback" not in message


def test_tokenize_on_a_full_disk_publishes_nothing_and_goes_on_later(
    amount: Callable[[int, int], int],
    run_limited: RunLimited,
    root: Path,
    content: Callable[[Path], dict[str, bytes]],
    assert_no_data_set: Callable[[Path], None],
    tmp_path: Path,
) -> None:
    command = ["tokenize", "--source", "coco", "--root", root, "--codebook", root / "codebook", "--limit", 12]
    whole = TokenizeConfig(
        source="coco", root=root, codebook_dir=root / "codebook", out_dir=tmp_path / "whole", limit=12
    )
    tokenize(whole)
    for num_bytes in limits_below(whole.out_dir, amount(3, 40)):
        out_dir = tmp_path / f"limit-{num_bytes}"
        assert_says_so(*run_limited(num_bytes, [*command, "--out", out_dir]))
        assert_no_data_set(out_dir)
        assert_whole_files(out_dir, whole.out_dir)
        code, message = run_limited(1 << 30, [*command, "--out", out_dir])
        assert code == ExitCode.OK, message
        assert content(out_dir) == content(whole.out_dir)
    verify_dataset(out_dir)


def test_training_on_a_full_disk_keeps_its_checkpoint_and_goes_on_later(
    amount: Callable[[int, int], int],
    run_limited: RunLimited,
    recipe_of: Callable[[int, int], Recipe],
    run_dying: Callable[..., int | None],
    assert_same_run: Callable[[Path, Path], None],
    token_shards: Path,
    tmp_path: Path,
) -> None:
    recipe = recipe_of(4, 2)
    whole = TrainConfig(shards=(token_shards,), recipe=recipe, out_dir=tmp_path / "whole", device="cpu")
    train(whole)
    run_dir = tmp_path / "full"
    config = TrainConfig(shards=(token_shards,), recipe=recipe, out_dir=run_dir, device="cpu", resume=True)
    assert run_dying(config, step=3, num_operations=0) == -9
    kept = latest_checkpoint(run_dir)
    (tmp_path / "kill.yaml").write_text(json.dumps(recipe.to_json()))
    command = ["train", "--shards", token_shards, "--recipe", tmp_path / "kill.yaml", "--out", run_dir]
    command += ["--device", "cpu", "--resume"]
    for num_bytes in limits_below(whole.out_dir, amount(3, 40)):
        assert_says_so(*run_limited(num_bytes, command))
        assert latest_checkpoint(run_dir) == kept
        assert not list(run_dir.rglob("*.tmp"))
    code, message = run_limited(1 << 30, command)
    assert code == ExitCode.OK, message
    assert_same_run(run_dir, whole.out_dir)


def test_tokenize_on_a_full_file_system_whichever_file_it_stops_at(
    amount: Callable[[int, int], int],
    run_on_full_disk: RunOnFullDisk,
    root: Path,
    content: Callable[[Path], dict[str, bytes]],
    assert_no_data_set: Callable[[Path], None],
    tmp_path: Path,
) -> None:
    whole = TokenizeConfig(
        source="coco", root=root, codebook_dir=root / "codebook", out_dir=tmp_path / "whole"
    )
    tokenize(whole)
    written = sorted(content(whole.out_dir), key=lambda name: (whole.out_dir / name).stat().st_mtime_ns)
    names = ["run.json", *written]
    needed = dict(zip(names, accumulate(num_kib_of(whole.out_dir / name) for name in names), strict=True))
    at_least = {"coco-000000.tar", "coco-000000.parquet", "ledger.jsonl", "dataset.json"}
    every = range(STEP_KIB, needed["dataset.json"], STEP_KIB)
    num_kib = amount(sorted(needed[name] - STEP_KIB for name in at_least), list(every))
    command = ["tokenize", "--source", "coco", "--root", root, "--codebook", root / "codebook"]
    stopped_at = set()
    for outcome in run_on_full_disk(command, num_kib):
        assert_says_so(*outcome.full)
        assert_no_data_set(outcome.full_dir)
        assert_whole_files(outcome.full_dir, whole.out_dir)
        stopped_at.add(next(name for name in written if not (outcome.full_dir / name).exists()))
        assert outcome.later[0] == ExitCode.OK, outcome.later[1]
        assert content(outcome.later_dir) == content(whole.out_dir)
    verify_dataset(outcome.later_dir)
    assert stopped_at >= at_least


def test_training_on_a_full_file_system_keeps_its_checkpoint_and_goes_on_later(
    amount: Callable[[int, int], int],
    run_on_full_disk: RunOnFullDisk,
    recipe_of: Callable[[int, int], Recipe],
    run_dying: Callable[..., int | None],
    assert_same_run: Callable[[Path, Path], None],
    token_shards: Path,
    tmp_path: Path,
) -> None:
    recipe = recipe_of(4, 2)
    whole = TrainConfig(shards=(token_shards,), recipe=recipe, out_dir=tmp_path / "whole", device="cpu")
    train(whole)
    config = TrainConfig(shards=(token_shards,), recipe=recipe, out_dir=tmp_path / "begun", device="cpu")
    assert run_dying(config, step=3, num_operations=0) == -9
    kept = latest_checkpoint(config.out_dir)
    last = latest_checkpoint(whole.out_dir)
    assert kept is not None
    assert last is not None
    assert kept.name < last.name
    (tmp_path / "kill.yaml").write_text(json.dumps(recipe.to_json()))
    command = ["train", "--shards", token_shards, "--recipe", tmp_path / "kill.yaml", "--device", "cpu"]
    num_pages = sum(num_kib_of(path) for path in last.rglob("*") if path.is_file()) // STEP_KIB
    num_points = amount(3, 40)
    num_kib = [(1 + i * (num_pages - 2) // (num_points - 1)) * STEP_KIB for i in range(num_points)]
    for outcome in run_on_full_disk([*command, "--resume"], num_kib, begun=config.out_dir):
        assert_says_so(*outcome.full)
        found = latest_checkpoint(outcome.full_dir)
        assert found == outcome.full_dir / kept.name
        assert not list(outcome.full_dir.rglob("*.tmp"))
        assert outcome.later[0] == ExitCode.OK, outcome.later[1]
        assert_same_run(outcome.later_dir, whole.out_dir)
