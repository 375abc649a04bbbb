import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmlm.pipeline.shards import iter_samples
from dmlm.trainer import step
from dmlm.trainer.checkpoint import load_checkpoint
from dmlm.trainer.config import MixEntry, Recipe, TrainConfig, ValidationConfig, recipe_from_json
from dmlm.trainer.data.dataset import TrainingData, open_training_data
from dmlm.trainer.data.mix import build_groups
from dmlm.trainer.data.tasks import MODALITIES
from dmlm.trainer.distributed import ALONE
from dmlm.trainer.loop import train
from dmlm.trainer.watching.validation import Validation, open_validator
from dmlm.trainer.watching.validation_set import TaskValidationSet, build_validation_set

NUM_STEPS = 8
LAST = f"checkpoint-{NUM_STEPS:06d}"
RECIPE = recipe_from_json(
    {
        "name": "tiny",
        "num_steps": NUM_STEPS,
        "mix": [
            {"task": "asr", "weight": 3},
            {"task": "asr", "source": "toy", "weight": 1},
            {"task": "t2s", "weight": 1},
            {"task": "speech", "weight": 1},
            {"task": "i2t", "weight": 1},
        ],
        "model": {"architecture": "llama", "num_layers": 1, "width": 32, "num_heads": 2, "dropout": 0.1},
        "sequence": {"max_length": 64, "unit_noise": 0.2},
        "batch": {"max_tokens": 128, "num_micro_batches": 2},
        "optimizer": {"learning_rate": 5.0e-3, "num_warmup_steps": 3},
        "validation": {"every_steps": 3, "splits": ["*"], "num_decoded": 1},
        "save_every_steps": 4,
        "log_every_steps": 1,
    }
)
learning_rate = step.learning_rate


@pytest.fixture
def config(token_shards: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(shards=(token_shards,), recipe=RECIPE, out_dir=tmp_path / "run", device="cpu")


def lines(run_dir: Path) -> list[dict[str, Any]]:
    content = (run_dir / "validation.jsonl").read_text().splitlines()
    return [{**json.loads(line), "seconds": 0.0} for line in content]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run_dir / LAST).model.state_dict()


def validate(config: TrainConfig, recipe: Recipe) -> tuple[Any, Validation]:
    """A model that was trained for some steps, and its validation."""
    report = train(replace(config, recipe=replace(RECIPE, validation=ValidationConfig())))
    model = load_checkpoint(report.checkpoint).model
    data = open_training_data(config.shards)
    validator = open_validator(data, recipe, build_groups(data, recipe), torch.float32, ALONE)
    assert validator is not None
    return model, validator(model, NUM_STEPS)


def find_sets(data: TrainingData, recipe: Recipe) -> tuple[TaskValidationSet, ...]:
    return build_validation_set(data, recipe, build_groups(data, recipe))


def test_losses_are_those_of_stock_transformers_one_sequence_at_a_time(config: TrainConfig) -> None:
    model, validation = validate(config, RECIPE)
    data = open_training_data(config.shards)
    vocabulary = data.vocabulary
    asr, characters, sums = [], 0, {"text": [0.0, 0], "speech": [0.0, 0]}
    held_out = [i for i, split in enumerate(data.index["split"].to_pylist()) if split == "test"]
    for row in held_out:
        units, text = (data.tokens.read(np.array([row]), member)[0] for member in ("speech", "text"))
        if not len(text):
            continue
        asr.append(row)
        opening = [vocabulary.bos_id, vocabulary.special_id("<speech>")]
        speech = [*(units + vocabulary.speech.start), vocabulary.special_id("</speech>")]
        given = [vocabulary.special_id("<asr>"), vocabulary.special_id("<en>")]
        ids = torch.tensor([[*opening, *speech, *given, *text, vocabulary.eos_id]])
        with torch.no_grad():
            losses = -model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        first, end = len(opening) - 1, len(opening) + len(speech) - 1
        for modality, part in (("speech", losses[first:end]), ("text", losses[end + len(given) :])):
            sums[modality][0] += part.sum().item()
            sums[modality][1] += len(part)
        characters += len(text)  # of the toy's bytes, each is a character
    loss = validation.tasks["asr"]
    assert loss.num_sequences == len(asr) > 2
    assert loss.nats_per_token == pytest.approx({m: s / n for m, (s, n) in sums.items()}, rel=1e-5)
    assert loss.nats_per_character == pytest.approx(sums["text"][0] / characters, rel=1e-5)
    assert set(validation.tasks) == {"asr", "t2s", "speech"}
    assert validation.tasks["t2s"].nats_per_character is None


def test_the_loss_mixes_the_tasks_as_training_does(config: TrainConfig) -> None:
    """An entry without samples gives its weight to the others, here a third to each."""
    mix = (
        MixEntry(task="asr", weight=1),
        MixEntry(task="speech", weight=3),
        MixEntry(task="asr", source="elsewhere", weight=5),
    )
    recipe = replace(RECIPE, mix=mix)
    _, validation = validate(config, recipe)
    data = open_training_data(config.shards)
    sets = {s.task.name: s for s in find_sets(data, recipe)}
    sums, counts = Counter[str](), Counter[str]()
    for task, share in (("asr", 0.25), ("speech", 0.75)):
        tokens = Counter(MODALITIES[code] for row in sets[task].rows for code in row.modality_N.tolist())
        for modality, number in tokens.items():
            scaled = share / sets[task].num_tokens * number
            sums[modality] += scaled * validation.tasks[task].nats_per_token[modality]
            counts[modality] += scaled
    text, speech = (sums[modality] / counts[modality] for modality in ("text", "speech"))
    assert validation.loss == pytest.approx(0.93 * text + 0.25 * speech)
    assert validation.is_best


def test_answers_are_greedy_and_the_model_is_left_as_it_was(config: TrainConfig) -> None:
    report = train(replace(config, recipe=replace(RECIPE, validation=ValidationConfig())))
    model = load_checkpoint(report.checkpoint).model
    before = model.config._attn_implementation
    data = open_training_data(config.shards)
    validator = open_validator(data, RECIPE, build_groups(data, RECIPE), torch.float32, ALONE)
    assert validator is not None
    answers = {answer.task: answer for answer in validator(model.train(), 1).answers}
    assert model.training
    assert model.config._attn_implementation == before
    assert set(answers) == {"asr", "t2s"}  # the others answer no source
    (asr_set,) = [s for s in validator.sets if s.task.name == "asr"]
    assert answers["asr"].key == asr_set.questions[0].key
    units = [int(unit) for unit in answers["t2s"].expected.split()]
    assert all(0 <= unit < 20 for unit in units)
    prompt = torch.from_numpy(asr_set.questions[0].prompt_T)[None].long()
    vocabulary = open_training_data(config.shards).vocabulary
    logits = model.eval()(input_ids=prompt).logits[0, -1, : vocabulary.num_text]
    first = int(logits.argmax())
    given = answers["asr"].given
    assert given == "" if first == vocabulary.eos_id else given


def test_a_run_with_validation_trains_exactly_as_one_without(config: TrainConfig, tmp_path: Path) -> None:
    plain = replace(config, recipe=replace(RECIPE, validation=ValidationConfig()), out_dir=tmp_path / "plain")
    train(plain)
    train(config)
    expected = weights(plain.out_dir)
    assert all(torch.equal(value, expected[name]) for name, value in weights(config.out_dir).items())
    assert [line["step"] for line in lines(config.out_dir)] == [3, 6, 8]


class StopAfter:
    """Ends a run as a power cut would: in the middle of a step."""

    def __init__(self, num_steps: int) -> None:
        self.num_left = num_steps

    def __call__(self, *arguments: Any) -> float:
        if self.num_left == 0:
            raise SystemError("power cut")
        self.num_left -= 1
        return learning_rate(*arguments)


def test_validation_and_the_best_survive_power_cuts(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = replace(config, out_dir=tmp_path / "whole")
    train(whole)
    for cut in (5, 3):
        monkeypatch.setattr(step, "learning_rate", StopAfter(cut))
        with pytest.raises(SystemError):
            train(replace(config, resume=True))
    monkeypatch.setattr(step, "learning_rate", learning_rate)
    train(replace(config, resume=True))
    assert lines(config.out_dir) == lines(whole.out_dir)
    best = min(lines(whole.out_dir), key=lambda line: line["loss"])
    for run in (config, whole):
        assert (run.out_dir / "best").readlink().name == f"checkpoint-{best['step']:06d}"


def test_a_checkpoint_that_was_saved_unvalidated_is_validated_on_resume(
    config: TrainConfig, tmp_path: Path
) -> None:
    train(config)
    path = config.out_dir / "validation.jsonl"
    kept = path.read_text().splitlines()
    torn_inside_a_character = '{"torn": "ü'.encode()[:-1]
    path.write_bytes("".join(f"{line}\n" for line in kept[:-1]).encode() + torn_inside_a_character)
    (config.out_dir / "best").unlink()
    train(replace(config, resume=True))
    assert [line["step"] for line in lines(config.out_dir)] == [3, 6, 8]
    assert json.loads(kept[-1])["loss"] == lines(config.out_dir)[-1]["loss"]
    assert (config.out_dir / "best").is_symlink()


def test_validation_may_change_on_resume(config: TrainConfig) -> None:
    train(replace(config, recipe=replace(RECIPE, validation=ValidationConfig())))
    report = train(replace(config, resume=True))
    assert report.last is None
    assert [line["step"] for line in lines(config.out_dir)] == [NUM_STEPS]


def test_on_other_sequences_the_best_is_looked_for_anew(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "learning_rate", StopAfter(5))
    with pytest.raises(SystemError):
        train(config)
    monkeypatch.setattr(step, "learning_rate", learning_rate)
    path = config.out_dir / "validation.jsonl"
    (line,) = lines(config.out_dir)
    path.write_text(json.dumps({**line, "loss": 0.1}) + "\n")  # on easier sequences than there are
    fewer = replace(RECIPE, validation=replace(RECIPE.validation, num_sequences=2))
    train(replace(config, recipe=fewer, resume=True))
    assert [(line["step"], line["is_best"]) for line in lines(config.out_dir)][:2] == [(3, True), (6, True)]
    assert (config.out_dir / "best").readlink().name != "checkpoint-000003"


def test_validations_of_an_older_version_count_as_those_on_the_same_sequences(config: TrainConfig) -> None:
    short = replace(config, recipe=replace(RECIPE, validation=replace(RECIPE.validation, every_steps=4)))
    train(short)
    path = config.out_dir / "validation.jsonl"
    first = lines(config.out_dir)[0]
    del first["set_sha256"]
    path.write_text(json.dumps({**first, "loss": 0.1}) + "\n")
    train(replace(short, resume=True))
    assert [line["is_best"] for line in lines(config.out_dir)] == [True, False]
    assert (config.out_dir / "best").readlink().name == "checkpoint-000004"


def test_what_is_trained_on_is_left_out_and_no_held_out_split_is_said(
    config: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    short = replace(RECIPE, num_steps=1, splits=("*",))
    train(replace(config, recipe=short))
    assert "a split that is held out and matches *" in capsys.readouterr().err
    assert not (config.out_dir / "validation.jsonl").exists()


def test_a_task_is_validated_on_the_sources_that_it_is_trained_on(
    token_shards: Path, write_shards: Callable[..., Path], tmp_path: Path
) -> None:
    samples = [replace(s, key=f"other-{s.key}", source="other") for s in iter_samples(token_shards)]
    data = open_training_data([token_shards, write_shards(tmp_path / "other", samples)])
    mix = (
        MixEntry(task="t2s", source="toy", weight=1),
        MixEntry(task="asr", source="toy", weight=1),
        MixEntry(task="asr", weight=1),
    )
    validation = replace(RECIPE.validation, num_sequences=100, num_decoded=100)
    sets = find_sets(data, replace(RECIPE, mix=mix, validation=validation))
    keys = {tasks.task.name: {question.key for question in tasks.questions} for tasks in sets}
    assert keys["t2s"] == {key for key in keys["asr"] if not key.startswith("other-")}
    assert keys["t2s"] < keys["asr"]


def test_a_source_without_samples_to_train_on_is_not_validated(
    token_shards: Path, write_shards: Callable[..., Path], tmp_path: Path
) -> None:
    held_out = (s for s in iter_samples(token_shards) if s.split == "test")
    samples = [replace(s, key=f"other-{s.key}", source="other") for s in held_out]
    data = open_training_data([token_shards, write_shards(tmp_path / "other", samples)])
    mix = tuple(MixEntry(task="asr", source=source, weight=1) for source in ("toy", "other"))
    validation = replace(RECIPE.validation, num_sequences=100, num_decoded=100)
    (asr,) = find_sets(data, replace(RECIPE, mix=mix, validation=validation))
    assert asr.questions
    assert not [question.key for question in asr.questions if question.key.startswith("other-")]


def test_there_is_no_noise_in_what_a_run_is_validated_on(token_shards: Path) -> None:
    noisy = replace(RECIPE.sequence, unit_noise=0.5, text_noise=0.5, target_unit_noise=0.5)
    sets = find_sets(open_training_data([token_shards]), replace(RECIPE, sequence=noisy))
    for row in (row for tasks in sets for row in tasks.rows):
        assert row.tokens_T[row.predictors_N + 1].tolist() == row.targets_N.tolist()


def test_a_split_that_no_entry_of_the_mix_draws_from_is_held_out(token_shards: Path) -> None:
    data = open_training_data([token_shards])
    mix = (MixEntry(task="asr", split="test", weight=1), MixEntry(task="t2s", split="test", weight=1))
    sets = find_sets(data, replace(RECIPE, mix=mix, splits=("*",)))
    held_out = dict(zip(data.index["key"].to_pylist(), data.index["split"].to_pylist(), strict=True))
    keys = {question.key for tasks in sets for question in tasks.questions}
    assert {held_out[key] for key in keys} == {"train"}


def test_held_out_splits_without_a_task_that_is_trained_are_as_good_as_none(
    config: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    train(replace(config, recipe=replace(RECIPE, mix=(RECIPE.mix[-1],))))
    message = "no validation: no sample of what is trained is in a split that is held out and matches *"
    assert message in capsys.readouterr().err


def test_the_console_shows_losses_and_answers(
    config: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config)
    shown = capsys.readouterr().err
    assert (
        "validation every 3 steps on held-out sequences: asr 4, t2s 4, speech 4; none of i2t, without"
        in shown
    )
    assert "validation: step 3, loss " in shown
    assert "(the best so far)" in shown
    assert "asr utterance-0" in shown
    assert "  expected  " in shown
    assert not any(character < " " and character != "\n" for character in shown)


def test_the_best_checkpoint_is_kept_beside_the_newest(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dmlm.trainer.watching import validation

    falling_then_rising: Callable[..., float] = lambda self, *_: abs(self.history.newest_step - 1) + 1.0  # noqa: E731
    monkeypatch.setattr(validation.Validator, "_mixed_loss", falling_then_rising)
    recipe = replace(
        RECIPE, validation=replace(RECIPE.validation, every_steps=1, num_decoded=0), save_every_steps=3
    )
    train(replace(config, recipe=recipe))
    names = sorted(path.name for path in config.out_dir.glob("checkpoint-*"))
    assert names == ["checkpoint-000002", "checkpoint-000006", LAST]
    assert load_checkpoint(config.out_dir / "best").step == 2
    assert math.isclose(min(line["loss"] for line in lines(config.out_dir)), 1.0)
