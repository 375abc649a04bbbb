"""Two processes on gloo, beside one that trains the same alone."""

import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dmlm.pipeline.errors import ConfigError, RankError
from dmlm.pipeline.samples import Sample
from dmlm.trainer.checkpoint import OPTIMIZER_PATH, load_checkpoint
from dmlm.trainer.config import TrainConfig, recipe_from_json
from dmlm.trainer.distributed import join_ranks, take_gpu
from dmlm.trainer.loop import train

NUM_STEPS = 6
RECIPE = recipe_from_json(
    {
        "name": "recipe",
        "num_steps": NUM_STEPS,
        "mix": [
            {"task": "asr", "weight": 3},
            {"task": "t2s", "weight": 1},
            {"task": "i2t", "weight": 1},
        ],
        "model": {"architecture": "llama", "num_layers": 2, "width": 32, "num_heads": 2, "dropout": 0.1},
        "sequence": {"max_length": 64, "unit_noise": 0.1},
        "batch": {"max_tokens": 128, "num_micro_batches": 4, "pool_size": 8},
        "optimizer": {"learning_rate": 5.0e-3, "num_warmup_steps": 3},
        "validation": {"every_steps": 3, "splits": ["test"], "num_sequences": 3, "num_decoded": 1},
        "save_every_steps": 3,
        "log_every_steps": 1,
    }
)
LAST = f"checkpoint-{NUM_STEPS:06d}"
SCRIPT = Path(__file__).with_name("rank_process.py")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of all runs."""

    folder: Path
    shards: Path
    results: tuple[dict[str, Any], dict[str, Any]]
    """Of each rank, by name of the check."""
    outputs: tuple[str, str]
    """Standard error of each rank, which ends with rank 1 killed."""


@pytest.fixture(scope="module")
def outcome(
    token_shards: Path, write_shards: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Outcome:
    folder = tmp_path_factory.mktemp("ranks")
    train(TrainConfig(shards=(token_shards,), recipe=RECIPE, out_dir=folder / "alone", device="cpu"))
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE.to_json()))
    make_infinite(folder / "alone" / LAST, folder / "infinite")
    sample = Sample(
        key="only",
        source="toy",
        split="train",
        language="en",
        speech_tokens=torch.arange(9, dtype=torch.int32).numpy(),
        text_tokens=torch.arange(100, 104, dtype=torch.int32).numpy(),
    )
    one_sample = write_shards(folder / "one_sample", [sample])
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), str(token_shards), str(one_sample)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = tuple(process.communicate(timeout=280)[1] for process in processes)
    finally:
        for process in processes:
            process.kill()
    results = tuple(read_results(folder / f"rank{rank}.json", outputs[rank]) for rank in range(2))
    return Outcome(folder=folder, shards=token_shards, results=results, outputs=outputs)


def read_results(path: Path, output: str) -> dict[str, Any]:
    assert path.is_file(), output
    return json.loads(path.read_text())


def make_infinite(checkpoint: Path, directory: Path) -> None:
    """A checkpoint whose embedding of one unit is infinite, and which nothing vouches for."""
    shutil.copytree(checkpoint, directory, ignore=shutil.ignore_patterns("dmlm.json", "DONE"))
    loaded = load_checkpoint(checkpoint)
    loaded.model.get_input_embeddings().weight.data[loaded.vocabulary.speech.start + 7] = math.inf
    loaded.model.save_pretrained(directory)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def validations(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "validation.jsonl").read_text().splitlines()]


def assert_same_run(run_dir: Path, expected_dir: Path) -> None:
    """Same global batches, so the same losses but for the order of additions."""
    lines, expected_lines = metrics(run_dir), metrics(expected_dir)
    assert [line["step"] for line in lines] == list(range(1, NUM_STEPS + 1))
    for line, expected in zip(lines, expected_lines, strict=True):
        for name in ("loss", "gradient_norm", "loss_by_modality"):
            assert line[name] == pytest.approx(expected[name], rel=1e-5), (line["step"], name)
        for name in ("num_tokens", "num_sequences", "padding", "share_by_task", "share_by_modality"):
            assert line[name] == expected[name], (line["step"], name)
    name = f"{LAST}/model.safetensors"
    weights, expected_weights = load_file(run_dir / name), load_file(expected_dir / name)
    assert weights.keys() == expected_weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected_weights[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_two_ranks_equal_one_process(outcome: Outcome, name: str) -> None:
    assert_same_run(outcome.folder / name, outcome.folder / "alone")


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_cut_and_resumed_ranks_equal_those_that_were_not_bit_for_bit(outcome: Outcome, name: str) -> None:
    assert [result[f"{name}_cut"]["message"] for result in outcome.results] == ["power cut"] * 2
    assert [result[f"{name}_resumed"]["checkpoint"] for result in outcome.results] == [LAST] * 2
    whole, cut = outcome.folder / name, outcome.folder / f"{name}_cut"
    for line, expected in zip(metrics(cut), metrics(whole), strict=True):
        for figure in ("step", "loss", "gradient_norm", "loss_by_modality"):
            assert line[figure] == expected[figure], (line["step"], figure)
    for file in ("model.safetensors", OPTIMIZER_PATH):
        tensors, expected = load_file(cut / LAST / file), load_file(whole / LAST / file)
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in tensors.items()), file


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_ranks_share_a_validation(outcome: Outcome, name: str) -> None:
    lines, expected_lines = (validations(outcome.folder / run) for run in (name, "alone"))
    assert [line["step"] for line in lines] == [3, 6]
    for line, expected in zip(lines, expected_lines, strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert line["tasks"]["asr"]["nats_per_token"] == pytest.approx(
            expected["tasks"]["asr"]["nats_per_token"], rel=1e-5
        )
        assert [answer["key"] for answer in line["answers"]] == [a["key"] for a in expected["answers"]]
    best = min(expected_lines, key=lambda line: line["loss"])["step"]
    assert (outcome.folder / name / "best").readlink().name == f"checkpoint-{best:06d}"


def test_one_process_goes_on_where_two_stopped(outcome: Outcome, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(outcome.folder / "fsdp2", run_dir, symlinks=True)
    shutil.rmtree(run_dir / LAST)
    train(TrainConfig(shards=(outcome.shards,), recipe=RECIPE, out_dir=run_dir, device="cpu", resume=True))
    assert_same_run(run_dir, outcome.folder / "alone")


def test_a_checkpoint_of_shards_is_a_whole_model(outcome: Outcome) -> None:
    model = load_checkpoint(outcome.folder / "fsdp2" / LAST).model
    tokens = torch.arange(6)[None]
    assert model(input_ids=tokens, labels=tokens).loss.isfinite()


def test_the_first_rank_alone_writes_the_log(outcome: Outcome) -> None:
    first, second = outcome.results
    assert first["ddp"]["total"]["num_tokens"] == sum(
        line["num_tokens"] for line in metrics(outcome.folder / "ddp")
    )
    assert second["ddp"]["total"] is None
    assert "2 × cpu" in outcome.outputs[0]
    assert "tokens/s" not in outcome.outputs[1]


def test_one_sample_in_two_shards_is_enough_for_two_ranks(outcome: Outcome) -> None:
    assert [result["uneven"]["checkpoint"] for result in outcome.results] == ["checkpoint-000002"] * 2


def test_rows_that_cannot_be_shared_evenly_are_refused(outcome: Outcome) -> None:
    for result in outcome.results:
        assert result["odd"]["error"] == "ConfigError"
        assert "num_micro_batches 3" in result["odd"]["message"]


def test_a_signal_to_one_rank_saves_and_stops_all(outcome: Outcome) -> None:
    for result in outcome.results:
        assert result["stopped"]["error"] == "KeyboardInterrupt"
        assert "stopped and saved" in result["stopped"]["message"]
        assert "checkpoint-000002" in result["stopped"]["message"]
    assert (outcome.folder / "stopped" / "checkpoint-000002" / "DONE").is_file()


def test_a_loss_that_is_not_finite_stops_all_ranks_before_the_update(outcome: Outcome) -> None:
    messages = [result["broken"]["message"] for result in outcome.results]
    assert [result["broken"]["error"] for result in outcome.results] == ["NotFiniteError"] * 2
    assert all("step 1: the loss is not finite" in message for message in messages)
    assert any("utterance-" in message for message in messages)
    assert not list((outcome.folder / "broken").glob("checkpoint-*"))


def test_a_rank_that_dies_is_seen_at_once(outcome: Outcome) -> None:
    assert "RankError: rank 0: another rank ended" in outcome.outputs[0]
    assert json.loads((outcome.folder / "seconds.json").read_text()) < 10


@pytest.mark.parametrize(
    ("name", "local_rank", "taken"),
    [("auto", 1, "cuda:1"), ("cuda", 1, "cuda:1"), ("cuda:0", 1, "cuda:0"), ("cpu", 1, None)],
)
def test_a_rank_takes_its_gpu_only_where_it_trains_on_one(
    name: str, local_rank: int, taken: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", found.append)
    take_gpu(name, local_rank)
    assert found == ([] if taken is None else [torch.device(taken)])


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="device cuda:2: torch sees 2 GPUs here"):
        take_gpu("auto", 2)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "0"}, "RANK is set but not WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; start with"),
        (
            {"RANK": "x", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
            "RANK=x is no number; start with torchrun",
        ),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, "not MASTER_ADDR, MASTER_PORT; start with"),
    ],
)
def test_what_torchrun_would_not_set_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message), join_ranks(environment, "cpu"):
        pass


def test_ranks_that_cannot_meet_say_where(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        for name, value in ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"} | where).items():
            monkeypatch.setenv(name, value)
        message = (
            rf"rank 0: the ranks cannot meet at 127\.0\.0\.1:{port} \(.*in use.*whether that port is free"
        )
        with pytest.raises(RankError, match=message), join_ranks(os.environ, "cpu"):
            pass


CLOSED = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:52951"
)


@pytest.mark.parametrize(
    "text",
    [
        f"{CLOSED}. This is typically caused by a remote worker crashing. GLHF!",
        f"Got the following error when running the callback: RuntimeError: {CLOSED}. This is typically "
        "caused by a remote worker crashing. GLHF!\n\nAt:\n  /a/trainer/distributed.py(189): <lambda>\n",
    ],
    ids=["plain", "met in a hook of the gradients"],
)
def test_a_lost_rank_is_reported_without_frames_of_the_code(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"} | where).items():
        monkeypatch.setenv(name, value)
    message = f"another rank ended or does not answer ({CLOSED}); look at its output"
    with pytest.raises(RankError, match=re.escape(message)), join_ranks(os.environ, "cpu"):
        raise RuntimeError(text)


def test_torchrun_runs_the_command(token_shards: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, num_steps=2, parallel="fsdp2")
    (tmp_path / "tiny.yaml").write_text(json.dumps(recipe.to_json()))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--no-python", str(Path(sys.executable).with_name("dmlm-cli")), "train"]
    command += ["--shards", str(token_shards), "--recipe", str(tmp_path / "tiny.yaml"), "--device", "cpu"]
    result = subprocess.run(
        [*command, "--out", str(tmp_path / "run")], capture_output=True, text=True, timeout=280
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("trained 2 steps") == 1
    assert (tmp_path / "run" / "checkpoint-000002" / "DONE").is_file()
