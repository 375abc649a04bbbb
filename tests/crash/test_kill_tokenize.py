"""`tokenize` killed at any moment, or out of disk: run again, it ends with the bytes of an undisturbed run.

Fail points are the calls that make files durable (`os.fsync`, `os.replace`), counted from outside the code.
DMLM_NUM_KILLS sets how many kills there are; `make test` has few.
"""

import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmlm.pipeline.codebook_building import BuildCodebookConfig, SourceShare, build_codebook
from dmlm.pipeline.errors import ExitCode, ShardCorruptError
from dmlm.pipeline.shards import load_dataset_card, verify_dataset
from dmlm.pipeline.tokenization import TokenizeConfig, tokenize

NUM_KILLS = int(os.environ.get("DMLM_NUM_KILLS", "3"))
NUM_IMAGES = 12

RUN = """
import os, signal
from dmlm.pipeline.tokenization import tokenize

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
LIMITED = """
import resource, sys
from dmlm.cli import run
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(run(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with one or two captions each, and a codebook fitted on them."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "coco" / "train2017").mkdir(parents=True)
    (folder / "coco" / "annotations").mkdir()
    rng = np.random.default_rng(3)
    images, captions = [], []
    for number in range(NUM_IMAGES):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((256, 256)).save(folder / "coco" / "train2017" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png"})
        for caption in range(number % 2 + 1):
            captions.append({"id": 10 * number + caption, "image_id": number, "caption": f"image {number}"})
    (folder / "coco" / "train2017" / "3.png").write_bytes(b"broken")
    content = json.dumps({"images": images, "annotations": captions})
    (folder / "coco" / "annotations" / "captions_train2017.json").write_text(content)
    build_codebook(
        BuildCodebookConfig(
            root=folder,
            out_dir=folder / "codebook",
            sources=(SourceShare(name="coco"),),
            num_image_clusters=16,
            image_resolution=128,
            text_tokenizer="bpe:256",
        )
    )
    return folder


@pytest.fixture(scope="module")
def undisturbed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = tmp_path_factory.mktemp("undisturbed") / "out"
    tokenize(settings(root, out_dir))
    return out_dir


def settings(root: Path, out_dir: Path) -> TokenizeConfig:
    return TokenizeConfig(
        source="coco", root=root, codebook_dir=root / "codebook", out_dir=out_dir, samples_per_shard=2
    )


@pytest.fixture(scope="module")
def server() -> ForkServerContext:
    """Starts processes from one that has the slow imports behind it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dmlm.pipeline.tokenization", "torch", "transformers", "pandas"])
    return context


@pytest.fixture
def start(server: ForkServerContext, root: Path, tmp_path: Path) -> Callable[[Path, int], BaseProcess]:
    script = tmp_path / "run.py"
    script.write_text(RUN)

    def start_process(out_dir: Path, kill_at: int) -> BaseProcess:
        """`tokenize` that kills itself at a fail point; 0: never."""
        names = {"config": settings(root, out_dir), "kill_at": kill_at}
        process = server.Process(target=runpy.run_path, args=(str(script), names))
        process.start()
        return process

    return start_process


def checksummed(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in ("run.json", "report.json")
    }


def assert_no_data_set(out_dir: Path) -> None:
    if out_dir.is_dir():
        with pytest.raises(ShardCorruptError, match="not a finished data set"):
            load_dataset_card(out_dir)


def test_killed_at_fail_points_it_ends_with_the_same_bytes(
    start: Callable[[Path, int], BaseProcess], root: Path, undisturbed: Path, tmp_path: Path
) -> None:
    # Each file is synced, renamed and its folder synced: run.json, the rest, and the card until its rename.
    num_points = 3 * len(checksummed(undisturbed)) + 2
    rng = np.random.default_rng(NUM_KILLS)
    points = 1 + rng.choice(num_points, min(NUM_KILLS, num_points), replace=False)
    for kill_at in points.tolist():
        out_dir = tmp_path / str(kill_at)
        process = start(out_dir, kill_at)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        assert_no_data_set(out_dir)
        tokenize(settings(root, out_dir))
        assert checksummed(out_dir) == checksummed(undisturbed), f"killed at call {kill_at}"


def test_killed_three_times_at_random_it_ends_with_the_same_bytes(
    start: Callable[[Path, int], BaseProcess], root: Path, undisturbed: Path, tmp_path: Path
) -> None:
    begin = time.monotonic()
    start(tmp_path / "whole", 0).join(60)
    whole_seconds = time.monotonic() - begin
    assert checksummed(tmp_path / "whole") == checksummed(undisturbed)
    rng = np.random.default_rng(NUM_KILLS)
    for number in range(NUM_KILLS):
        out_dir = tmp_path / str(number // 3)
        process = start(out_dir, 0)
        process.join(rng.uniform(0, whole_seconds))
        process.kill()
        process.join(60)
    for out_dir in {tmp_path / str(number // 3) for number in range(NUM_KILLS)}:
        tokenize(settings(root, out_dir))
        assert checksummed(out_dir) == checksummed(undisturbed)
        assert not list(out_dir.rglob("*.tmp"))


def test_full_disk_ends_with_its_exit_code_and_nothing_partial(
    root: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out_dir = tmp_path / "out"
    smallest_tar = min(path.stat().st_size for path in undisturbed.glob("*.tar"))
    arguments = [
        "tokenize",
        "--source",
        "coco",
        "--root",
        root,
        "--codebook",
        root / "codebook",
        "--out",
        out_dir,
    ]
    command = [sys.executable, "-c", LIMITED, str(smallest_tar - 1), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == ExitCode.STORAGE
    assert "storage: " in result.stderr
    assert "Traceback" not in result.stderr
    assert_no_data_set(out_dir)
    assert not [path for path in out_dir.rglob("*") if path.suffix in (".tar", ".parquet", ".tmp")]
    tokenize(replace(settings(root, out_dir), samples_per_shard=TokenizeConfig.samples_per_shard))
    verify_dataset(out_dir)
