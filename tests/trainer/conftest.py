"""A small spoken corpus, its tokens, and a model that has learnt its training half by heart."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dmlm.pipeline.codebooks.building import BuildCodebookConfig, build_codebook
from dmlm.pipeline.tokenization.planning import TokenizeConfig
from dmlm.pipeline.tokenization.running import tokenize
from dmlm.trainer.config import (
    BatchConfig,
    MixEntry,
    ModelConfig,
    OptimizerConfig,
    Recipe,
    SequenceConfig,
    TrainConfig,
)
from dmlm.trainer.loop import train

TRAIN_TEXTS = ("RED", "SEVEN GREEN BIRDS", "OLD SHIPS SAIL HOME", "BLUE DOORS STAY SHUT")
TEST_TEXTS = ("OLD SHIPS SAIL HOME", "GREEN SHIPS", "RED DOORS STAY OPEN")


@dataclass(frozen=True, kw_only=True)
class SpokenRun:
    """Where everything lies."""

    root: Path
    codebook: Path
    shards: Path
    run: Path
    recipe: Recipe
    """What it was trained with: enough to learn a few recordings by heart."""

    def audio_path(self, split: str, number: int) -> Path:
        return _chapter(self.root, split) / f"{_chapter_name(split)}-{number:04d}.flac"


@pytest.fixture(scope="session")
def spoken_run(tmp_path_factory: pytest.TempPathFactory) -> SpokenRun:
    """Real voice, real units, true training; about 15 seconds, once."""
    root = tmp_path_factory.mktemp("spoken")
    _speak(root, "train-tiny", TRAIN_TEXTS)
    _speak(root, "test-tiny", TEST_TEXTS)
    recipe = Recipe(
        name="tiny",
        num_steps=120,
        mix=(MixEntry(task="asr", weight=1.0),),
        model=ModelConfig(num_layers=2, width=64, num_heads=2, dropout=0.0),
        sequence=SequenceConfig(max_length=512, collapse_runs=True, target_only=True),
        batch=BatchConfig(max_tokens=512),
        optimizer=OptimizerConfig(learning_rate=3e-3, num_warmup_steps=20),
    )
    folders = SpokenRun(
        root=root, codebook=root / "codebook", shards=root / "shards", run=root / "run", recipe=recipe
    )
    build_codebook(
        BuildCodebookConfig(
            root=root, out_dir=folders.codebook, num_clusters=24, text_tokenizer="bpe:256", device="cpu"
        )
    )
    tokenize(
        TokenizeConfig(
            source="librispeech",
            root=root,
            codebook_dir=folders.codebook,
            out_dir=folders.shards,
            samples_per_shard=3,
            device="cpu",
        )
    )
    train(TrainConfig(shards=(folders.shards,), recipe=recipe, out_dir=folders.run, device="cpu"))
    return folders


def _speak(root: Path, split: str, texts: tuple[str, ...]) -> None:
    from hibari import Hibari

    voice = Hibari()
    directory, name = _chapter(root, split), _chapter_name(split)
    directory.mkdir(parents=True)
    for number, text in enumerate(texts):
        waveform = np.asarray(voice(text.lower(), seed=number), np.float32).ravel()
        soundfile.write(directory / f"{name}-{number:04d}.flac", waveform, 24_000)
    lines = [f"{name}-{number:04d} {text}\n" for number, text in enumerate(texts)]
    (directory / f"{name}.trans.txt").write_text("".join(lines))


def _chapter_name(split: str) -> str:
    return "1-10" if split.startswith("train") else "1-11"


def _chapter(root: Path, split: str) -> Path:
    return root / "LibriSpeech" / split / _chapter_name(split).replace("-", "/")
