"""Which checkpoint a run goes on from, on one rank and on others."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from dmlm.pipeline.errors import ConfigError, FingerprintMismatchError
from dmlm.pipeline.shards import iter_samples
from dmlm.pipeline.vocabulary import SPECIAL_TOKENS
from dmlm.trainer import loop
from dmlm.trainer.checkpoint import load_checkpoint, save_checkpoint
from dmlm.trainer.config import MixEntry, TrainConfig, recipe_from_json
from dmlm.trainer.data.dataset import TrainingData, open_training_data
from dmlm.trainer.decoding.generation import generate
from dmlm.trainer.distributed import ALONE, Ranks
from dmlm.trainer.loop import train
from dmlm.trainer.resuming import choose_checkpoint, resolve_init
from dmlm.trainer.settings import read_settings

RECIPE = recipe_from_json(
    {
        "name": "tiny",
        "num_steps": 2,
        "mix": [{"task": "asr", "weight": 1}],
        "model": {"num_layers": 1, "width": 16, "num_heads": 2},
        "sequence": {"max_length": 64},
        "batch": {"max_tokens": 128},
        "save_every_steps": 1,
    }
)


@dataclass(frozen=True, kw_only=True)
class First(Ranks):
    """The first rank; keeps what it tells."""

    told: list[int]

    def tell_all(self, values: Sequence[int]) -> list[int]:
        self.told[:] = values
        return list(values)


@dataclass(frozen=True, kw_only=True)
class Second(Ranks):
    """Another rank, which was told something."""

    rank: int = 1
    told: list[int]

    def tell_all(self, values: Sequence[int]) -> list[int]:
        assert len(values) == len(self.told)
        return self.told


@pytest.fixture
def config(token_shards: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(shards=(token_shards,), recipe=RECIPE, out_dir=tmp_path / "run", device="cpu")


def test_others_go_on_from_what_the_first_rank_chose(config: TrainConfig) -> None:
    last = train(config).checkpoint
    told: list[int] = []
    assert choose_checkpoint(config.out_dir, First(told=told)) == last
    before = config.out_dir / "checkpoint-000001"
    assert before.is_dir()
    assert choose_checkpoint(config.out_dir, Second(told=told)) == last
    (last / "model.safetensors").write_bytes(b"damaged")
    assert choose_checkpoint(config.out_dir, First(told=told)) == before
    assert choose_checkpoint(config.out_dir, Second(told=told)) == before


def test_a_rank_with_a_folder_of_its_own_says_so(config: TrainConfig, tmp_path: Path) -> None:
    told: list[int] = []
    train(config)
    choose_checkpoint(config.out_dir, First(told=told))
    message = r"rank 1: .*checkpoint-000002 is not what the first rank goes on from; .* must be one folder"
    with pytest.raises(ConfigError, match=message):
        choose_checkpoint(tmp_path / "empty", Second(told=told))
    other = replace(config, out_dir=tmp_path / "other", seed=1)
    train(other)
    with pytest.raises(ConfigError, match=message):
        choose_checkpoint(other.out_dir, Second(told=told))


def test_ranks_begin_with_the_checkpoint_that_the_first_one_found(config: TrainConfig) -> None:
    last, told = train(config).checkpoint, list[int]()
    later = last.rename(last.with_name("later"))
    first = resolve_init(str(config.out_dir), First(told=told))
    later.rename(last)  # the other run has saved it meanwhile
    assert first == str(config.out_dir / "checkpoint-000001")
    assert resolve_init(str(config.out_dir), Second(told=told)) == first


def test_what_a_run_began_with_may_be_gone_when_it_goes_on(config: TrainConfig, tmp_path: Path) -> None:
    first = train(config)
    model = tmp_path / "model"
    shutil.copytree(first.checkpoint, model)
    begun = replace(config, out_dir=tmp_path / "second", init=str(model))
    last = train(begun).checkpoint
    shutil.rmtree(model)
    expected = (last / "dmlm.json").read_bytes()
    for init in (str(model), None):
        shutil.rmtree(last)
        assert train(replace(begun, init=init, resume=True)).checkpoint == last
        assert (last / "dmlm.json").read_bytes() == expected
    with pytest.raises(FingerprintMismatchError, match=r"init is 'model' there and 'other/llm' now"):
        train(replace(begun, init="other/llm", resume=True))


@pytest.mark.parametrize("tokens", [SPECIAL_TOKENS[:-2], (*SPECIAL_TOKENS, "<sw>")], ids=["fewer", "more"])
def test_a_run_goes_on_and_begins_with_the_special_tokens_of_its_checkpoint(
    config: TrainConfig, tokens: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def open_as_another_version(*arguments: Any) -> TrainingData:
        data = open_training_data(*arguments)
        return replace(data, vocabulary=replace(data.vocabulary, special_tokens=tokens))

    with monkeypatch.context() as patch:
        patch.setattr(loop, "open_training_data", open_as_another_version)
        last = train(config).checkpoint
    names = ("model.safetensors", "vocabulary.json", "dmlm.json")
    expected = [(last / name).read_bytes() for name in names]
    shutil.rmtree(last)
    assert train(replace(config, resume=True)).checkpoint == last
    assert [(last / name).read_bytes() for name in names] == expected
    second = train(replace(config, init=str(last), out_dir=tmp_path / "second")).checkpoint
    assert read_settings(second)[1].vocabulary.special_tokens == tokens


def test_a_joint_model_is_trained_further_on_a_part_of_its_modalities(
    config: TrainConfig, token_shards: Path, write_shards: Callable[..., Path], tmp_path: Path
) -> None:
    joint = (MixEntry(task="asr", weight=1), MixEntry(task="i2t", weight=1))
    train(replace(config, recipe=replace(RECIPE, mix=joint)))
    spoken = [sample for sample in iter_samples(token_shards) if sample.image_tokens is None]
    shards = write_shards(tmp_path / "spoken", spoken, has_images=False)
    recipe = replace(RECIPE, num_steps=4)
    further = replace(config, shards=(shards,), recipe=recipe, out_dir=tmp_path / "further")
    last = train(replace(further, init=str(config.out_dir))).checkpoint
    expected = (last / "dmlm.json").read_bytes()
    shutil.rmtree(last)
    shutil.rmtree(config.out_dir)
    assert train(replace(further, resume=True)).checkpoint == last
    assert (last / "dmlm.json").read_bytes() == expected
    checkpoint = load_checkpoint(last)
    assert checkpoint.vocabulary == open_training_data([token_shards]).vocabulary
    assert (checkpoint.codebook_dir / "image" / "codebook.json").is_file()
    seen = [sample for sample in iter_samples(token_shards) if sample.image_tokens is not None]
    assert len(list(generate(checkpoint, "i2t", seen[:2]))) == 2


def test_a_model_of_speech_learns_images_later(
    config: TrainConfig, token_shards: Path, write_shards: Callable[..., Path], tmp_path: Path
) -> None:
    spoken = [sample for sample in iter_samples(token_shards) if sample.image_tokens is None]
    shards = write_shards(tmp_path / "spoken", spoken, has_images=False)
    first = replace(config, shards=(shards,), out_dir=tmp_path / "first")
    train(replace(first, recipe=replace(RECIPE, num_steps=4)))
    joint = (MixEntry(task="asr", weight=1), MixEntry(task="i2t", weight=1))
    later = replace(config, recipe=replace(RECIPE, mix=joint, num_steps=4))
    last = train(replace(later, init=str(first.out_dir))).checkpoint
    expected = (last / "model.safetensors").read_bytes()
    shutil.rmtree(last)
    shutil.rmtree(first.out_dir)
    assert train(replace(later, resume=True)).checkpoint == last
    assert (last / "model.safetensors").read_bytes() == expected
    checkpoint = load_checkpoint(last)
    assert checkpoint.vocabulary == open_training_data([token_shards]).vocabulary
    seen = [sample for sample in iter_samples(token_shards) if sample.image_tokens is not None]
    assert len(list(generate(checkpoint, "i2t", seen[:2]))) == 2


def test_what_a_run_began_with_may_go_before_its_first_save(
    config: TrainConfig,
    token_shards: Path,
    write_shards: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    joint = (MixEntry(task="asr", weight=1), MixEntry(task="i2t", weight=1))
    train(replace(config, recipe=replace(RECIPE, mix=joint)))
    spoken = [sample for sample in iter_samples(token_shards) if sample.image_tokens is None]
    shards = write_shards(tmp_path / "spoken", spoken, has_images=False)

    def save_when_it_is_gone(*arguments: Any, **settings: Any) -> Path:
        shutil.rmtree(config.out_dir, ignore_errors=True)
        return save_checkpoint(*arguments, **settings)

    monkeypatch.setattr(loop, "save_checkpoint", save_when_it_is_gone)
    further = replace(config, shards=(shards,), init=str(config.out_dir), out_dir=tmp_path / "further")
    checkpoint = load_checkpoint(train(further).checkpoint)
    expected = token_shards / "codebook" / "image"
    for path in expected.iterdir():
        assert (checkpoint.codebook_dir / "image" / path.name).read_bytes() == path.read_bytes()


def test_a_run_from_the_best_of_another_goes_on_when_that_has_a_better_one(
    config: TrainConfig, tmp_path: Path
) -> None:
    first = train(config).checkpoint
    best = tmp_path / "best"
    best.symlink_to(first.with_name("checkpoint-000001"))
    second = replace(config, out_dir=tmp_path / "second", init=str(best))
    last = train(second).checkpoint
    expected = (last / "model.safetensors").read_bytes()
    shutil.rmtree(last)
    best.unlink()
    best.symlink_to(first)
    assert train(replace(second, resume=True)).checkpoint == last
    assert (last / "model.safetensors").read_bytes() == expected


def test_a_link_to_what_a_run_began_with_is_known_again(config: TrainConfig, tmp_path: Path) -> None:
    first = train(config).checkpoint
    second = replace(config, out_dir=tmp_path / "second", init=str(first))
    last = train(second).checkpoint
    shutil.rmtree(last)
    (tmp_path / "best").symlink_to(first)
    assert train(replace(second, init=str(tmp_path / "best"), resume=True)).checkpoint == last


def test_where_the_first_rank_has_nothing_all_begin(config: TrainConfig, tmp_path: Path) -> None:
    assert choose_checkpoint(tmp_path, ALONE) is None
    told: list[int] = []
    choose_checkpoint(tmp_path, First(told=told))
    train(config)
    assert choose_checkpoint(config.out_dir, Second(told=told)) is None
