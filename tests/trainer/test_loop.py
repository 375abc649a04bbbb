import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dmlm.cli import run
from dmlm.pipeline.errors import CheckpointError, ConfigError, FingerprintMismatchError, NotFiniteError
from dmlm.pipeline.shards import iter_samples
from dmlm.trainer import step
from dmlm.trainer.checkpoint import DONE_NAME, METRICS_PATH, load_checkpoint
from dmlm.trainer.config import Recipe, TrainConfig, recipe_from_json
from dmlm.trainer.export import export_checkpoint
from dmlm.trainer.loop import train

RECIPE = recipe_from_json(
    {
        "name": "tiny",
        "num_steps": 12,
        "mix": [
            {"task": "asr", "weight": 3},
            {"task": "t2s", "weight": 1},
            {"task": "i2t", "weight": 1},
            {"task": "text", "weight": 1},
        ],
        "model": {"num_layers": 1, "width": 32, "num_heads": 2, "dropout": 0.1},
        "sequence": {"max_length": 64, "collapse_runs": True, "unit_noise": 0.1},
        "batch": {"max_tokens": 128, "num_micro_batches": 2, "pool_size": 8},
        "optimizer": {"learning_rate": 5.0e-3, "num_warmup_steps": 3},
        "save_every_steps": 5,
        "log_every_steps": 1,
    }
)


@pytest.fixture
def config(token_shards: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(shards=(token_shards,), recipe=RECIPE, out_dir=tmp_path / "run")


def losses(run_dir: Path) -> dict[int, tuple[float, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: (line["loss"], line["gradient_norm"]) for line in lines}


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run_dir / "checkpoint-000012").model.state_dict()


class StopAfter:
    """Ends a run as a power cut would: in the middle of a step."""

    def __init__(self, num_steps: int) -> None:
        self.num_left = num_steps

    def __call__(self, *arguments: object) -> float:
        if self.num_left == 0:
            raise SystemError("power cut")
        self.num_left -= 1
        return learning_rate(*arguments)  # type: ignore[arg-type]


learning_rate = step.learning_rate


@pytest.mark.parametrize("cuts", [(7,), (3, 1, 6), (10,)])
def test_a_resumed_run_equals_an_undisturbed_one_to_the_last_bit(
    config: TrainConfig, cuts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = replace(config, out_dir=tmp_path / "whole")
    train(whole)
    for cut in cuts:
        monkeypatch.setattr(step, "learning_rate", StopAfter(cut))
        with pytest.raises(SystemError):
            train(replace(config, resume=True))
    monkeypatch.setattr(step, "learning_rate", learning_rate)
    report = train(replace(config, resume=True))
    assert report.checkpoint.name == "checkpoint-000012"
    assert losses(config.out_dir) == losses(whole.out_dir)
    assert losses(config.out_dir).keys() == set(range(1, 13))
    expected = weights(whole.out_dir)
    assert all(torch.equal(value, expected[name]) for name, value in weights(config.out_dir).items())


def figures(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of `metrics.jsonl` without what the clock says."""
    clocked = {"seconds", "tokens_per_second", "flops_per_second"}
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert all(line["seconds"] > 0 for line in lines)
    return [{name: value for name, value in line.items() if name not in clocked} for line in lines]


@pytest.mark.parametrize("is_of_an_older_version", [False, True])
def test_a_line_over_a_stop_holds_its_steps_before_and_behind_it(
    config: TrainConfig, is_of_an_older_version: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = replace(config, recipe=replace(RECIPE, log_every_steps=4))
    whole = replace(config, out_dir=tmp_path / "whole")
    undisturbed = train(whole).total
    monkeypatch.setattr(step, "learning_rate", StopAfter(7))
    with pytest.raises(SystemError):
        train(config)
    monkeypatch.setattr(step, "learning_rate", learning_rate)
    checkpoint = config.out_dir / "checkpoint-000005"  # behind the first of the steps 5 to 8
    if is_of_an_older_version:
        (checkpoint / METRICS_PATH).unlink()
        sums = json.loads((checkpoint / DONE_NAME).read_text())
        (checkpoint / DONE_NAME).write_text(json.dumps({n: s for n, s in sums.items() if n != METRICS_PATH}))
    total = train(replace(config, resume=True)).total
    found, expected = figures(config.out_dir), figures(whole.out_dir)
    assert total is not None
    assert undisturbed is not None
    same = all(
        getattr(total, name) == getattr(undisturbed, name)
        for name in ("loss", "num_tokens", "num_sequences", "loss_tokens_by_task", "share_by_task", "padding")
    )
    assert same is not is_of_an_older_version
    assert [line["step"] for line in found] == [4, 8, 12]
    assert (found[0], found[2]) == (expected[0], expected[2])
    assert (found[1] == expected[1]) is not is_of_an_older_version


def test_a_model_learns_and_the_report_says_so(config: TrainConfig) -> None:
    recipe = replace(RECIPE, num_steps=80, save_every_steps=80, log_every_steps=10)
    report = train(replace(config, recipe=recipe))
    assert report.last is not None
    assert report.total is not None
    first = min(losses(config.out_dir).items())[1][0]
    assert report.last.loss < 0.6 * first
    assert set(report.total.loss_by_modality) == {"text", "speech", "image"}
    assert report.total.share_by_task["asr"] == pytest.approx(0.5, abs=0.02)
    assert sum(report.total.share_by_modality.values()) == pytest.approx(1)
    for expected in ("trained 80 steps", "tokens/s", "padding", "nats/token", "checkpoint-000080"):
        assert expected in report.table()


def test_the_plan_is_shown_before_the_first_step_and_kept(
    config: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    short = replace(RECIPE, num_steps=1, sequence=replace(RECIPE.sequence, max_length=23))
    train(replace(config, recipe=short))
    plan = capsys.readouterr().err
    assert "60.0%" in plan
    assert "asr" in plan
    assert "i2t: 16 samples refused, over 23 tokens: caption-000 (25), " in plan
    assert plan.index("loss share") < plan.index("train: ")
    written = (config.out_dir / "plan.txt").read_text()
    assert written in plan
    assert "i2t: 16 samples refused" in written


def test_the_resolved_config_is_written_beside_the_checkpoints(config: TrainConfig) -> None:
    train(replace(config, recipe=replace(RECIPE, num_steps=1), seed=4))
    content = json.loads((config.out_dir / "config.json").read_text())
    assert content["seed"] == 4
    assert content["recipe"]["optimizer"]["betas"] == [0.9, 0.98]
    assert str(config.shards[0]) not in json.dumps(content)


def test_what_the_command_sets_is_in_the_config_of_the_run(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(json.dumps(RECIPE.to_json()))
    command = ["train", "--shards", str(config.shards[0]), "--recipe", str(tmp_path / "tiny.yaml")]
    command += ["--out", str(config.out_dir), "--device", "cpu"]
    assert run([*command, "--set", "num_steps=1", "--set", "loss.speech=0.5"]) == 0
    recipe = json.loads((config.out_dir / "config.json").read_text())["recipe"]
    assert (recipe["num_steps"], recipe["loss"]["speech"]) == (1, 0.5)
    assert run([*command, "--set", "num_steps=1", "--resume"]) == 2
    assert "recipe.loss.speech is 0.5 there and 0.25 now" in capsys.readouterr().err


def test_a_run_is_not_overwritten_without_resume(config: TrainConfig) -> None:
    train(replace(config, recipe=replace(RECIPE, num_steps=1)))
    with pytest.raises(ConfigError, match="--resume"):
        train(config)


def test_a_complete_run_resumes_to_nothing(config: TrainConfig) -> None:
    short = replace(config, recipe=replace(RECIPE, num_steps=1))
    train(short)
    report = train(replace(short, resume=True))
    assert report.last is None
    assert "done before" in report.table()


def test_resume_without_a_checkpoint_begins(config: TrainConfig) -> None:
    assert train(replace(config, recipe=replace(RECIPE, num_steps=1), resume=True)).total is not None


def test_resume_refuses_another_recipe_and_changed_shards(
    config: TrainConfig, write_shards: Callable[..., Path], tmp_path: Path
) -> None:
    train(replace(config, recipe=replace(RECIPE, num_steps=1)))
    with pytest.raises(FingerprintMismatchError, match=r"recipe\.num_steps is 1 there and 12 now"):
        train(replace(config, resume=True))
    shards = write_shards(tmp_path / "changed", [], speech_mark="another")
    with pytest.raises((FingerprintMismatchError, ConfigError)):
        train(replace(config, shards=(shards,), recipe=replace(RECIPE, num_steps=1), resume=True))


def test_a_run_can_begin_from_a_checkpoint(config: TrainConfig, tmp_path: Path) -> None:
    first = train(replace(config, recipe=replace(RECIPE, num_steps=5)))
    still = replace(RECIPE, num_steps=1, optimizer=replace(RECIPE.optimizer, learning_rate=1e-12))
    second = train(
        replace(config, recipe=still, init=str(first.checkpoint), out_dir=tmp_path / "second", seed=9)
    )
    assert str(tmp_path) not in (second.checkpoint / "dmlm.json").read_text()
    before, after = (load_checkpoint(report.checkpoint).model.state_dict() for report in (first, second))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-8)


def test_a_checkpoint_of_another_codebook_is_no_beginning(
    config: TrainConfig, write_shards: Callable[..., Path], tmp_path: Path
) -> None:
    """Its vocabulary has the same sizes, but its units mean something else."""
    first = train(replace(config, recipe=replace(RECIPE, num_steps=1)))
    others = write_shards(tmp_path / "others", list(iter_samples(config.shards[0])), speech_mark="another")
    second = replace(config, shards=(others,), init=str(first.checkpoint), out_dir=tmp_path / "second")
    with pytest.raises(
        FingerprintMismatchError,
        match=r"--init .*checkpoint-000001: .* speech tokens: sha256 is speech there and another",
    ):
        train(second)
    exported = tmp_path / "exported"
    export_checkpoint(first.checkpoint, exported)
    with pytest.raises(FingerprintMismatchError, match="speech there and another"):
        train(replace(second, init=str(exported)))


def test_a_damaged_checkpoint_is_no_beginning(config: TrainConfig, tmp_path: Path) -> None:
    first = train(replace(config, recipe=replace(RECIPE, num_steps=6), out_dir=tmp_path / "first")).checkpoint
    export_checkpoint(first, tmp_path / "exported")
    for damaged in (first, tmp_path / "exported"):
        weights = damaged / "model.safetensors"
        content = weights.read_bytes()
        weights.write_bytes(content[:-300] + bytes(byte ^ 1 for byte in content[-300:]))
        with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
            train(replace(config, init=str(damaged)))
    assert not config.out_dir.exists()


def test_a_run_can_begin_from_the_newest_whole_checkpoint_of_another(
    config: TrainConfig, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, num_steps=6)
    first = replace(config, recipe=recipe, out_dir=tmp_path / "first")
    newest = train(first).checkpoint
    by_run, by_name = (replace(config, recipe=recipe, out_dir=tmp_path / name) for name in ("run", "name"))
    (newest / "model.safetensors").write_bytes(b"damaged")
    train(replace(by_run, init=str(first.out_dir)))
    train(replace(by_name, init=str(first.out_dir / "checkpoint-000005")))
    assert losses(by_run.out_dir) == losses(by_name.out_dir)
    settings = json.loads((by_run.out_dir / "config.json").read_bytes())
    assert settings["recipe"]["model"]["init"] == "first"
    train(replace(first, resume=True))  # which has another newest checkpoint now
    train(replace(by_run, init=str(first.out_dir), resume=True))
    with pytest.raises(FingerprintMismatchError, match="init is 'first' there and 'name' now"):
        train(replace(by_run, init=str(by_name.out_dir), resume=True))


def break_weights(recipe: Recipe, config: TrainConfig, tmp_path: Path) -> Path:
    """A checkpoint whose embedding of one unit is infinite, and which nothing vouches for."""
    report = train(replace(config, recipe=recipe, out_dir=tmp_path / "first"))
    checkpoint = load_checkpoint(report.checkpoint)
    unit = checkpoint.vocabulary.speech.start + 7
    checkpoint.model.get_input_embeddings().weight.data[unit] = math.inf
    checkpoint.model.save_pretrained(report.checkpoint)
    (report.checkpoint / "dmlm.json").unlink()
    return report.checkpoint


def test_a_loss_that_is_not_finite_stops_the_run_by_name_and_saves_nothing(
    config: TrainConfig, tmp_path: Path
) -> None:
    broken = break_weights(replace(RECIPE, num_steps=1), config, tmp_path)
    with pytest.raises(NotFiniteError, match=r"step 1: the loss is not finite: .*utterance-\d{3}"):
        train(replace(config, init=str(broken)))
    assert not list(config.out_dir.glob("checkpoint-*"))


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_update(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates: list[float] = []
    monkeypatch.setattr(step, "clip_gradient", lambda *_: torch.tensor(math.nan))
    monkeypatch.setattr(step, "update", lambda _, rate: updates.append(rate))
    with pytest.raises(
        NotFiniteError, match=r"step 1: the gradient is not finite: (utterance|caption)-\d{3}"
    ):
        train(config)
    assert not updates


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_goes_on_later(
    config: TrainConfig, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = signal.getsignal(number)

    def interrupt(step_number: int, *arguments: object) -> float:
        if step_number == 6:
            os.kill(os.getpid(), number)
        return learning_rate(step_number, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(step, "learning_rate", interrupt)
    with pytest.raises(KeyboardInterrupt, match="checkpoint-000007"):
        train(config)
    assert signal.getsignal(number) is handler
    monkeypatch.setattr(step, "learning_rate", learning_rate)
    train(replace(config, resume=True))
    assert losses(config.out_dir).keys() == set(range(1, 13))


def test_training_runs_without_the_packages_of_the_other_half(config: TrainConfig) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(sys.argv[1].split(',')))\n"
        "from pathlib import Path; from dmlm.trainer.config import TrainConfig, load_recipe\n"
        "from dmlm.trainer.loop import train\n"
        "recipe = load_recipe('demo', {'num_steps': 1, 'batch.max_tokens': 1024, 'model.width': 8})\n"
        "shards, out_dir = map(Path, sys.argv[2:])\n"
        "train(TrainConfig(shards=(shards,), recipe=recipe, out_dir=out_dir, device='cpu'))"
    )
    absent = "webdataset,datasets,faiss,whisper,soundfile,soxr,PIL,jiwer,click,hibari,sklearn,scipy"
    arguments = [absent, str(config.shards[0]), str(config.out_dir)]
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (config.out_dir / "checkpoint-000001" / "DONE").is_file()


def test_training_leaves_the_callers_random_numbers_alone(config: TrainConfig) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    train(replace(config, recipe=replace(RECIPE, num_steps=1)))
    assert torch.equal(torch.rand(3), expected)
