"""R11: no room for a file, whichever: the exit code says so, nothing is half published, and it goes on later.

Files may grow to a limit only (RLIMIT_FSIZE), which is swept from nothing to the size of the largest file.
"""

import json
import runpy
from collections.abc import Callable, Iterable
from multiprocessing.context import ForkServerContext
from pathlib import Path

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
        assert not list(out_dir.rglob("*.tmp"))
        for path in out_dir.rglob("*"):  # what there is, is whole
            if path.is_file() and path.name != "run.json":
                assert path.read_bytes() == (whole.out_dir / path.relative_to(out_dir)).read_bytes()
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
