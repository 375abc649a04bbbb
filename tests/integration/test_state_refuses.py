"""R7: a run goes on only with what it began with; every refusal names both values."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmlm.pipeline.errors import CheckpointError, ConfigError, FingerprintMismatchError
from dmlm.pipeline.samples import Sample
from dmlm.pipeline.storage import sha256_file, write_json
from dmlm.pipeline.vocabulary import Vocabulary
from dmlm.trainer.checkpoint import DONE_NAME, STREAM_PATH, latest_checkpoint
from dmlm.trainer.config import Recipe, TrainConfig
from dmlm.trainer.distributed import Ranks
from dmlm.trainer.loop import train
from dmlm.trainer.settings import SETTINGS_NAME

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def begun(tiny_recipe: Recipe, token_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run of two steps of which one is done."""
    config = TrainConfig(
        shards=(token_shards,),
        recipe=tiny_recipe,
        out_dir=tmp_path_factory.mktemp("begun") / "run",
        device="cpu",
    )
    train(config)
    return replace(config, resume=True)


@pytest.fixture
def config(begun: TrainConfig, tmp_path: Path) -> TrainConfig:
    """The same run, in a folder that a test may change."""
    shutil.copytree(begun.out_dir, tmp_path / "run")
    return replace(begun, out_dir=tmp_path / "run")


def edit_checkpoint(run_dir: Path, name: str, change: Edit) -> None:
    """Changes a json file of the newest checkpoint and lets DONE vouch for it."""
    checkpoint = latest_checkpoint(run_dir)
    assert checkpoint is not None
    content = json.loads((checkpoint / name).read_text())
    change(content)
    write_json(checkpoint / name, content)
    sums = json.loads((checkpoint / DONE_NAME).read_text())
    write_json(checkpoint / DONE_NAME, {file: sha256_file(checkpoint / file) for file in sums})


def test_the_same_run_is_accepted(config: TrainConfig) -> None:
    """What all these cases have in common is not what is refused."""
    edit_checkpoint(config.out_dir, SETTINGS_NAME, lambda content: None)
    assert train(config).total is None


@pytest.mark.parametrize("mark", ["speech", "another"])
def test_changed_shards_and_another_tokenizer_are_refused(
    config: TrainConfig, write_shards: Callable[..., Path], tmp_path: Path, mark: str
) -> None:
    sample = Sample(key="a", source="toy", split="train", speech_tokens=np.arange(9, dtype=np.int32))
    other = write_shards(tmp_path / "other", [sample], speech_mark=mark)
    with pytest.raises(FingerprintMismatchError) as refusal:
        train(replace(config, shards=(other,)))
    assert "datasets.0.sha256 is " in str(refusal.value)
    assert " there and " in str(refusal.value)
    assert ("fingerprints.speech.sha256" in str(refusal.value)) is (mark == "another")


def test_another_vocabulary_is_refused(config: TrainConfig) -> None:
    def widen(content: dict[str, Any]) -> None:
        vocabulary = Vocabulary.from_json(content["vocabulary"])
        wider = replace(vocabulary, num_speech=vocabulary.num_speech + 1)
        content["vocabulary"] = wider.to_json()

    edit_checkpoint(config.out_dir, SETTINGS_NAME, widen)
    with pytest.raises(FingerprintMismatchError, match=r"vocabulary\..* is .* there and .* now"):
        train(config)


def test_another_format_version_is_refused(config: TrainConfig) -> None:
    edit_checkpoint(config.out_dir, SETTINGS_NAME, lambda content: content.update(format_version=99))
    with pytest.raises(CheckpointError, match="format version 99, this dmlm reads 1"):
        train(config)


def test_another_seed_and_another_recipe_are_refused(config: TrainConfig) -> None:
    with pytest.raises(FingerprintMismatchError, match="seed is 0 there and 7 now"):
        train(replace(config, seed=7))
    recipe = replace(config.recipe, sequence=replace(config.recipe.sequence, max_length=63))
    with pytest.raises(FingerprintMismatchError, match=r"sequence\.max_length is 64 there and 63 now"):
        train(replace(config, recipe=recipe))


def test_a_number_of_ranks_that_cannot_share_the_rows_is_refused(config: TrainConfig) -> None:
    with pytest.raises(ConfigError, match="num_micro_batches 12 cannot be shared evenly by 5 ranks"):
        train(config, Ranks(rank=0, world_size=5))


def test_a_state_of_the_stream_of_another_version_is_refused(config: TrainConfig) -> None:
    edit_checkpoint(config.out_dir, STREAM_PATH, lambda content: content.update(workers=3))
    with pytest.raises(CheckpointError, match=r"state holds .*workers; this version wants "):
        train(config)
