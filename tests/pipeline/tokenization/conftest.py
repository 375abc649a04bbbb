"""Tiny corpora in their true layouts, a codebook fitted on them, and a data set made with it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from dmlm.pipeline.codebooks.building import BuildCodebookConfig, build_codebook
from dmlm.pipeline.tokenization.planning import TokenizeConfig
from dmlm.pipeline.tokenization.running import tokenize

UTTERANCE_SECONDS = [0.3, 1.234, 31.0, 0.02, 2.0, 0.77, 1.5, 0.5]
NUM_IMAGES, NUM_CAPTIONS = 4, 3


def write_librispeech(folder: Path) -> None:
    chapter = folder / "LibriSpeech" / "train-tiny" / "7" / "9"
    chapter.mkdir(parents=True)
    rng = np.random.default_rng(7)
    for number, seconds in enumerate(UTTERANCE_SECONDS):
        time = np.arange(round(16_000 * seconds)) / 16_000
        tones = sum(np.sin(2 * np.pi * rng.uniform(100, 3000) * time) for _ in range(4))
        wave = 0.05 * tones + 0.01 * rng.standard_normal(len(time))
        soundfile.write(chapter / f"7-9-{number:04d}.flac", wave, 16_000, subtype="PCM_16")
    lines = [f"7-9-{number:04d} UTTERANCE NUMBER {number}" for number in range(len(UTTERANCE_SECONDS) - 1)]
    (chapter / "7-9.trans.txt").write_text("\n".join(lines) + "\n")


def write_coco(folder: Path) -> None:
    (folder / "coco" / "train2017").mkdir(parents=True)
    (folder / "coco" / "annotations").mkdir()
    rng = np.random.default_rng(8)
    images, captions = [], []
    for image_id in range(1, NUM_IMAGES + 1):
        pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        name = f"{image_id:012d}.jpg"
        Image.fromarray(pixels).resize((64, 48)).save(folder / "coco" / "train2017" / name)
        images.append({"id": image_id, "file_name": name})
        for number in range(NUM_CAPTIONS):
            caption_id = image_id * 10 + number
            captions.append({"id": caption_id, "image_id": image_id, "caption": f"Blocks, view {number}."})
    content = json.dumps({"images": images, "annotations": captions})
    (folder / "coco" / "annotations" / "captions_train2017.json").write_text(content)


@pytest.fixture(scope="session")
def tiny_corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with both corpora and a codebook."""
    folder = tmp_path_factory.mktemp("corpora")
    write_librispeech(folder)
    write_coco(folder)
    build_codebook(
        BuildCodebookConfig(
            root=folder,
            out_dir=folder / "codebook",
            num_clusters=16,
            num_image_clusters=16,
            image_resolution=32,
            text_tokenizer="bpe:256",
        )
    )
    return folder


@pytest.fixture(scope="session")
def tiny_dataset(tiny_corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished data set; not to be changed."""
    out_dir = tmp_path_factory.mktemp("speech") / "out"
    tokenize(
        TokenizeConfig(
            source="librispeech",
            root=tiny_corpora,
            codebook_dir=tiny_corpora / "codebook",
            out_dir=out_dir,
            samples_per_shard=3,
        )
    )
    return out_dir


@pytest.fixture
def root(tiny_corpora: Path, tmp_path: Path) -> Path:
    """Corpora that a test may break."""
    return shutil.copytree(tiny_corpora, tmp_path / "root")


@pytest.fixture(scope="session")
def settings() -> Callable[..., TokenizeConfig]:
    """Function that gives the settings of a small run: `settings(root, out_dir, source, **changes)`."""

    def make(root: Path, out_dir: Path, source: str = "librispeech", **changes: object) -> TokenizeConfig:
        config = TokenizeConfig(
            source=source, root=root, codebook_dir=root / "codebook", out_dir=out_dir, samples_per_shard=3
        )
        return replace(config, **changes)

    return make
