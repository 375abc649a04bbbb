"""A small corpus, a small training run, and processes that die in them."""

import json
import runpy
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dmlm.pipeline.codebooks.building import BuildCodebookConfig, SourceShare, build_codebook
from dmlm.pipeline.errors import ShardCorruptError
from dmlm.pipeline.shards import load_dataset_card
from dmlm.pipeline.tokenization.planning import TokenizeConfig
from dmlm.pipeline.tokenization.running import tokenize
from dmlm.trainer.config import Recipe, TrainConfig, recipe_from_json

SCRIPT = Path(__file__).with_name("dying_run.py")
NEVER = -1
NUM_IMAGES = 12


@pytest.fixture(scope="session")
def recipe_of() -> Callable[..., Recipe]:
    """Function that gives a tiny recipe: `recipe_of(num_steps, save_every_steps)`."""

    def make(num_steps: int, save_every_steps: int) -> Recipe:
        return recipe_from_json(
            {
                "name": "kill",
                "num_steps": num_steps,
                "mix": [
                    {"task": "asr", "weight": 3},
                    {"task": "t2s", "weight": 1},
                    {"task": "image", "weight": 1},
                ],
                "model": {"num_layers": 1, "width": 32, "num_heads": 2, "dropout": 0.1},
                "sequence": {"max_length": 64, "unit_noise": 0.1},
                "batch": {"max_tokens": 128, "pool_size": 16},
                "save_every_steps": save_every_steps,
                "log_every_steps": 1,
            }
        )

    return make


@pytest.fixture(scope="session")
def run_dying(processes: ForkServerContext) -> Callable[..., int | None]:
    """Function that trains in a process that dies, see dying_run.py, and returns its exit code."""

    def run(config: TrainConfig, **place: Any) -> int | None:
        names = {"step": 0, "num_operations": NEVER, "in_save": False, "count_path": None, **place}
        process = processes.Process(target=runpy.run_path, args=(str(SCRIPT), names | {"config": config}))
        process.start()
        process.join()
        return process.exitcode

    return run


@pytest.fixture(scope="session")
def assert_same_run() -> Callable[[Path, Path], None]:
    """Function that compares all losses and the last weights of two runs, bit for bit."""

    def losses(run_dir: Path) -> dict[int, float]:
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
        return {line["step"]: line["loss"] for line in map(json.loads, lines)}

    def compare(run_dir: Path, expected_dir: Path) -> None:
        assert losses(run_dir) == losses(expected_dir)
        last = max(losses(run_dir))
        assert losses(run_dir).keys() == set(range(1, last + 1))
        name = f"checkpoint-{last:06d}/model.safetensors"
        weights, expected = load_file(run_dir / name), load_file(expected_dir / name)
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[key], expected[key]) for key in weights)

    return compare


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with one or two captions each, one of them broken, and a codebook fitted on them."""
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


@pytest.fixture(scope="session")
def settings(root: Path) -> Callable[[Path], TokenizeConfig]:
    """Function that gives the settings of a small run into a folder."""

    def make(out_dir: Path) -> TokenizeConfig:
        return TokenizeConfig(
            source="coco", root=root, codebook_dir=root / "codebook", out_dir=out_dir, samples_per_shard=2
        )

    return make


@pytest.fixture(scope="session")
def undisturbed(settings: Callable[[Path], TokenizeConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run gives that nothing disturbs."""
    out_dir = tmp_path_factory.mktemp("undisturbed") / "out"
    tokenize(settings(out_dir))
    return out_dir


@pytest.fixture(scope="session")
def assert_no_data_set() -> Callable[[Path], None]:
    """Function that checks that a reader takes a folder for unfinished."""

    def check(directory: Path) -> None:
        if directory.is_dir():
            with pytest.raises(ShardCorruptError, match="not a finished data set"):
                load_dataset_card(directory)

    return check
