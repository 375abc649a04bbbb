import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dmlm.pipeline.errors import CheckpointError, ConfigError, FingerprintMismatchError, StorageError
from dmlm.pipeline.samples import Modality, Sample
from dmlm.pipeline.vocabulary import SPECIAL_TOKENS, Vocabulary
from dmlm.trainer import checkpoint as checkpoint_module
from dmlm.trainer.checkpoint import (
    TrainerState,
    latest_checkpoint,
    load_checkpoint,
    load_trainer_state,
    mark_best,
    resolve_checkpoint,
    save_checkpoint,
)
from dmlm.trainer.config import ModelConfig, OptimizerConfig, ValidationConfig, load_recipe
from dmlm.trainer.data.dataset import TrainingData, open_training_data
from dmlm.trainer.decoding import DecodingConfig
from dmlm.trainer.decoding.generation import generate
from dmlm.trainer.export import export_checkpoint
from dmlm.trainer.models.model import build_model
from dmlm.trainer.optim import build_optimizer, optimizer_tensors, restore_optimizer
from dmlm.trainer.resuming import read_codebooks
from dmlm.trainer.settings import RunSettings, check_same_run, read_settings


@pytest.fixture(scope="module")
def data(token_shards: Path) -> TrainingData:
    return open_training_data([token_shards])


@pytest.fixture(scope="module")
def settings(data: TrainingData) -> RunSettings:
    return RunSettings(
        recipe=load_recipe("demo"),
        seed=1,
        limit=None,
        datasets=data.identities,
        fingerprints=data.fingerprints,
        vocabulary=data.vocabulary,
    )


class Saver:
    """Saves checkpoints of one small model after an optimizer step."""

    def __init__(self, data: TrainingData, settings: RunSettings) -> None:
        self.data, self.settings = data, settings
        config = ModelConfig(num_layers=1, width=16, num_heads=2)
        text_dir = data.codebook_dirs[Modality.TEXT]
        self.model = build_model(config, data.vocabulary, text_dir=text_dir, max_length=32, seed=0)
        self.optimizer = build_optimizer(self.model, OptimizerConfig())
        self.model(input_ids=torch.arange(20)[None], labels=torch.arange(20)[None]).loss.backward()
        self.optimizer.step()

    def save(self, run_dir: Path, step: int, is_best: bool = False) -> Path:
        state = TrainerState(
            step=step,
            optimizer=optimizer_tensors(self.model, self.optimizer),
            stream={"step": step},
            metrics={"losses": [0.1]},
        )
        return save_checkpoint(
            run_dir,
            model=self.model,
            state=state,
            settings=self.settings,
            codebooks=read_codebooks(self.data.codebook_dirs),
            is_best=is_best,
        )


@pytest.fixture(scope="module")
def saver(data: TrainingData, settings: RunSettings) -> Saver:
    return Saver(data, settings)


@pytest.fixture(scope="module")
def saved(saver: Saver, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saver.save(tmp_path_factory.mktemp("run"), 5)


def test_stock_transformers_load_model_and_tokenizer_with_our_ids(saved: Path, saver: Saver) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved)
    ids = torch.arange(30)[None]
    assert torch.equal(model(input_ids=ids).logits, saver.model.eval()(input_ids=ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    vocabulary = Vocabulary.from_json(json.loads((saved / "vocabulary.json").read_text()))
    assert vocabulary == saver.data.vocabulary
    expected = {name: vocabulary.num_text + i for i, name in enumerate(vocabulary.added_tokens())}
    ours = {name: id_ for name, id_ in tokenizer.get_vocab().items() if id_ >= vocabulary.num_text}
    assert ours == expected
    assert len(tokenizer) == vocabulary.num_used


@pytest.mark.parametrize("tokens", [SPECIAL_TOKENS[:-2], (*SPECIAL_TOKENS, "<sw>")], ids=["fewer", "more"])
def test_a_checkpoint_with_special_tokens_of_another_version_is_used_as_before(
    data: TrainingData, settings: RunSettings, tmp_path: Path, tokens: tuple[str, ...]
) -> None:
    vocabulary = replace(data.vocabulary, special_tokens=tokens)
    saver = Saver(replace(data, vocabulary=vocabulary), replace(settings, vocabulary=vocabulary))
    checkpoint = export_checkpoint(saver.save(tmp_path / "run", 5), tmp_path / "exported")
    assert checkpoint.vocabulary == vocabulary
    spoken = Sample(
        key="k", source="s", split="test", language="en", speech_tokens=np.arange(4, dtype=np.int32)
    )
    [said] = generate(checkpoint, "asr", [spoken], DecodingConfig(max_new_tokens=3))
    assert set(said.tokens.tolist()) <= set(range(vocabulary.num_text))
    with pytest.raises(FingerprintMismatchError, match="vocabulary"):
        check_same_run(checkpoint.path, checkpoint.settings, settings)


def test_the_tokenizer_reads_and_writes_whole_sequences(saved: Path, saver: Saver) -> None:
    tokenizer = AutoTokenizer.from_pretrained(saved)
    vocabulary = saver.data.vocabulary
    prompt = "</s><speech><speech_3><speech_19></speech><asr><en>hello there</s>"
    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    assert ids[:7] == [
        vocabulary.bos_id,
        vocabulary.special_id("<speech>"),
        vocabulary.speech.start + 3,
        vocabulary.speech.start + 19,
        *(vocabulary.special_id(name) for name in ("</speech>", "<asr>", "<en>")),
    ]
    text = AutoTokenizer.from_pretrained(saver.data.codebook_dirs[Modality.TEXT])
    assert ids[7:-1] == text("hello there", add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == prompt
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<speech_3><speech_19>hello there"


def test_generation_stops_at_the_end_token(saved: Path, saver: Saver) -> None:
    config = AutoModelForCausalLM.from_pretrained(saved).generation_config
    vocabulary = saver.data.vocabulary
    assert (config.bos_token_id, config.eos_token_id) == (vocabulary.bos_id, vocabulary.eos_id)
    assert config.pad_token_id == vocabulary.eos_id


def test_a_checkpoint_is_whole_in_itself(saved: Path, saver: Saver, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(saved, tmp_path / "elsewhere"))
    checkpoint = load_checkpoint(resolve_checkpoint(moved))
    assert (checkpoint.step, checkpoint.settings) == (5, saver.settings)
    assert not checkpoint.model.training
    assert checkpoint.vocabulary == saver.data.vocabulary
    for modality in Modality:
        for path in saver.data.codebook_dirs[modality].iterdir():
            copy = checkpoint.codebook_dir / modality / path.name
            assert copy.read_bytes() == path.read_bytes()


def test_no_file_is_a_pickle(saved: Path) -> None:
    suffixes = {path.suffix for path in saved.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors", ".jinja", ".txt", ""}


def test_the_optimizer_is_restored_to_the_last_bit(saved: Path, saver: Saver) -> None:
    other = Saver(saver.data, saver.settings)
    state = load_trainer_state(saved)
    restore_optimizer(other.model, other.optimizer, state.optimizer)
    assert (state.step, state.stream, state.metrics) == (5, {"step": 5}, {"losses": [0.1]})
    for mine, theirs in zip(saver.model.parameters(), other.model.parameters(), strict=True):
        for name, value in saver.optimizer.state[mine].items():
            assert torch.equal(value, other.optimizer.state[theirs][name])


def test_the_optimizer_of_another_model_is_refused(saved: Path, saver: Saver) -> None:
    tensors = dict(load_trainer_state(saved).optimizer)
    tensors.pop("model.decoder.layers.0.fc1.weight.exp_avg")
    with pytest.raises(CheckpointError, match=r"no model\.decoder\.layers\.0\.fc1\.weight\.exp_avg"):
        restore_optimizer(saver.model, saver.optimizer, tensors)


def test_the_newest_two_are_kept(saver: Saver, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        saver.save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-000002", "checkpoint-000003"]
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-000003"


def test_a_run_that_fell_back_keeps_what_it_went_on_from_and_not_what_it_left_behind(
    saver: Saver, tmp_path: Path
) -> None:
    for step in (6, 10):
        saver.save(tmp_path, step)
    (tmp_path / "checkpoint-000010" / "model.safetensors").write_bytes(b"")
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-000006"
    saver.save(tmp_path, 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-000006", "checkpoint-000008"]


def test_what_others_put_beside_checkpoints_is_left_alone(saver: Saver, tmp_path: Path) -> None:
    saver.save(tmp_path, 1)
    shutil.copytree(tmp_path / "checkpoint-000001", tmp_path / "checkpoint-000001-keep")
    (tmp_path / "checkpoint-notes.txt").write_text("mine")
    for step in (2, 3):
        saver.save(tmp_path, step)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-000003"
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "checkpoint-000001-keep",
        "checkpoint-000002",
        "checkpoint-000003",
        "checkpoint-notes.txt",
    }


def test_as_many_are_kept_as_the_recipe_says(
    data: TrainingData, settings: RunSettings, tmp_path: Path
) -> None:
    recipe = replace(settings.recipe, keep_checkpoints=3)
    saver = Saver(data, replace(settings, recipe=recipe))
    for step in range(1, 6):
        saver.save(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"checkpoint-00000{i}" for i in (3, 4, 5)]


def test_the_best_is_kept_beside_them_until_another_is_best(saver: Saver, tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        saver.save(tmp_path, step, is_best=step == 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "best",
        *(f"checkpoint-00000{i}" for i in (1, 3, 4)),
    ]
    assert load_checkpoint(resolve_checkpoint(tmp_path / "best")).step == 1
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-000004"
    saver.save(tmp_path, 5, is_best=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", *(f"checkpoint-00000{i}" for i in (4, 5))]
    assert load_checkpoint(resolve_checkpoint(tmp_path / "best")).step == 5


def test_a_step_without_a_checkpoint_is_not_marked_as_the_best(saver: Saver, tmp_path: Path) -> None:
    saver.save(tmp_path, 1, is_best=True)
    mark_best(tmp_path, 2)
    assert (tmp_path / "best").readlink().name == "checkpoint-000001"


def test_a_folder_in_the_place_of_the_link_to_the_best_is_named(saver: Saver, tmp_path: Path) -> None:
    saver.save(tmp_path, 1, is_best=True)
    content = (tmp_path / "best").resolve()
    (tmp_path / "best").unlink()
    shutil.copytree(content, tmp_path / "best")
    with pytest.raises(StorageError, match="best: a folder, not a link to a checkpoint; move it away"):
        mark_best(tmp_path, 1)


def test_a_checkpoint_that_cannot_be_finished_leaves_its_space(
    saver: Saver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver.save(tmp_path, 1)
    write_json = checkpoint_module.write_json

    def fail_at_the_end(path: Path, content: object) -> None:
        if path.name == "DONE":
            raise OSError(errno.ENOSPC, "No space left on device")
        write_json(path, content)

    monkeypatch.setattr(checkpoint_module, "write_json", fail_at_the_end)
    with pytest.raises(StorageError, match=r"checkpoint-000002: not saved: .*No space left"):
        saver.save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000001"]


def test_saving_a_step_again_replaces_it(saver: Saver, tmp_path: Path) -> None:
    path = saver.save(tmp_path, 1)
    (path / "model.safetensors").write_bytes(b"")
    assert saver.save(tmp_path, 1) == path
    assert latest_checkpoint(tmp_path) == path


@pytest.mark.parametrize("name", ["model.safetensors", "trainer_state/stream.json", "dmlm.json", "DONE"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_passed_over(saver: Saver, tmp_path: Path, name: str, damage: str) -> None:
    old, new = saver.save(tmp_path, 1), saver.save(tmp_path, 2)
    path = new / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[:-9])
    assert latest_checkpoint(tmp_path) == old
    assert resolve_checkpoint(tmp_path) == old


def test_a_run_of_damaged_checkpoints_and_a_damaged_one_by_name_are_errors(
    saver: Saver, tmp_path: Path
) -> None:
    path = saver.save(tmp_path, 1)
    (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        latest_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        resolve_checkpoint(path)


def test_what_holds_no_checkpoint_is_said(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        resolve_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        resolve_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("stage", ["save_model", "save_tokenizer", "_sync_tree", "_remove", "write_json"])
def test_an_interrupted_save_leaves_the_checkpoint_before(
    saver: Saver, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = saver.save(tmp_path, 1)

    def fail(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, stage, fail)
        with pytest.raises(KeyboardInterrupt):
            saver.save(tmp_path, 2)
    assert latest_checkpoint(tmp_path) == old
    assert latest_checkpoint(tmp_path) == old
    new = saver.save(tmp_path, 2)
    assert latest_checkpoint(tmp_path) == new
    assert sorted(tmp_path.iterdir()) == [old, new]


def test_a_full_disk_is_a_storage_error_and_costs_no_checkpoint(
    saver: Saver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = saver.save(tmp_path, 1)

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "_sync_tree", fail)
    with pytest.raises(StorageError, match="No space left on device"):
        saver.save(tmp_path, 2)
    assert list(tmp_path.iterdir()) == [old]


def test_what_a_run_is_made_of_must_be_the_same(settings: RunSettings) -> None:
    check_same_run(Path("run"), settings, settings)
    recipe = settings.recipe
    slower = replace(recipe, optimizer=replace(recipe.optimizer, learning_rate=0.5))
    dataset = replace(settings.datasets[0], sha256="other")
    changes = {
        r"recipe\.optimizer\.learning_rate is .* there and 0.5 now": {"recipe": slower},
        r"recipe\.num_steps is": {"recipe": replace(recipe, num_steps=7)},
        r"seed is 1 there and 2 now": {"seed": 2},
        r"limit is None there and 9 now": {"limit": 9},
        r"datasets\.0\.sha256 is .* there and 'other' now": {"datasets": (dataset,)},
        r"datasets\.1\.name is None there and 'toy' now": {"datasets": settings.datasets * 2},
        r"fingerprints\.speech\.sha256 is 'speech' there and 'x' now": {
            "fingerprints": {**settings.fingerprints, Modality.SPEECH: {"sha256": "x"}}
        },
        r"vocabulary\.num_speech is 20 there and 21 now": {
            "vocabulary": replace(settings.vocabulary, num_speech=21)
        },
    }
    for message, change in changes.items():
        with pytest.raises(FingerprintMismatchError, match=message):
            check_same_run(Path("run"), settings, replace(settings, **change))


def test_how_often_a_run_saves_logs_and_validates_may_change(settings: RunSettings) -> None:
    recipe = replace(settings.recipe, save_every_steps=1, log_every_steps=1, name="renamed")
    recipe = replace(
        recipe, keep_checkpoints=9, validation=ValidationConfig(every_steps=7, splits=("a", "b", "c"))
    )
    check_same_run(Path("run"), settings, replace(settings, recipe=recipe))


def test_another_format_version_is_refused(saved: Path, tmp_path: Path) -> None:
    content = json.loads((saved / "dmlm.json").read_text())
    (tmp_path / "dmlm.json").write_text(json.dumps(content | {"format_version": 99}))
    with pytest.raises(CheckpointError, match="format version 99, this dmlm reads 1"):
        read_settings(tmp_path)


@pytest.mark.parametrize("trained", [None, 3, [3], [{"task": "asr"}], [{"task": "sing", "language": "en"}]])
def test_trained_tasks_that_cannot_be_read_are_a_checkpoint_error(
    trained: object, saved: Path, tmp_path: Path
) -> None:
    content = json.loads((saved / "dmlm.json").read_text())
    (tmp_path / "dmlm.json").write_text(json.dumps(content | {"trained": trained}))
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_settings(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format_version": 1, "step": 1}'])
def test_settings_that_cannot_be_read_are_a_checkpoint_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "dmlm.json").write_text(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_settings(tmp_path)


def test_a_rank_that_does_not_save_keeps_no_copy_of_the_optimizer(saver: Saver) -> None:
    assert len(optimizer_tensors(saver.model, saver.optimizer)) == 3 * len(list(saver.model.parameters()))
    assert not optimizer_tensors(saver.model, saver.optimizer, is_kept=False)
