import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Modality
from dmlm.trainer.config import LossConfig, OptimizerConfig, recipe_from_json
from dmlm.trainer.data.dataset import TrainingData, open_training_data
from dmlm.trainer.data.mix import Mix, build_groups
from dmlm.trainer.data.tasks import MODALITIES, TASKS
from dmlm.trainer.models.model import build_model
from dmlm.trainer.step import StepResult
from dmlm.trainer.watching.metrics import MetricsWindow
from dmlm.trainer.watching.plan import Operations, Plan, count_operations, make_plan, peak_flops
from dmlm.trainer.watching.tables import count, describe_plan

RECIPE = recipe_from_json(
    {
        "name": "tiny",
        "num_steps": 50,
        "mix": [{"task": "asr", "weight": 3}, {"task": "i2t", "weight": 1}],
        "model": {"num_layers": 3, "width": 32, "num_heads": 4},
        "sequence": {"max_length": 64},
        "batch": {"max_tokens": 256},
    }
)
TEXT, SPEECH, IMAGE = (MODALITIES.index(m) for m in (Modality.TEXT, Modality.SPEECH, Modality.IMAGE))


@pytest.fixture(scope="module")
def data(token_shards: Path) -> TrainingData:
    return open_training_data([token_shards])


def plan_of(data: TrainingData, **loss: object) -> Plan:
    recipe = replace(RECIPE, loss=LossConfig(**loss))  # type: ignore[arg-type]
    return make_plan(build_groups(data, recipe), recipe, seed=0)


def test_tokens_follow_the_weights_of_the_mix_and_what_rows_hold(data: TrainingData) -> None:
    plan = plan_of(data)
    assert 0.95 < plan.fill <= 1
    assert plan.tokens_G.sum() == pytest.approx(50 * 256 * plan.fill)
    assert plan.tokens_G[0] == pytest.approx(3 * plan.tokens_G[1])
    assert all(group.num_draws == 0 for group in plan.groups)


def test_a_normalised_loss_is_shared_by_its_weights(data: TrainingData) -> None:
    plan = plan_of(data)
    assert plan.weights_GM.sum(axis=0)[[TEXT, SPEECH, IMAGE]] == pytest.approx([0.93, 0.25, 0.25])
    captions = [group.task.name for group in plan.groups].index("i2t")
    assert plan.weights_GM[captions, SPEECH] == 0


def test_a_loss_that_weighs_only_what_the_mix_lacks_is_refused(data: TrainingData) -> None:
    recipe = replace(RECIPE, mix=RECIPE.mix[:1], loss=LossConfig(text=0.0, speech=0.0))
    with pytest.raises(ConfigError, match=r"no token of this mix .*speech 0.0, loss.image 0.25"):
        make_plan(build_groups(data, recipe), recipe, seed=0)


def test_a_plain_loss_is_shared_by_tokens(data: TrainingData) -> None:
    plan = plan_of(data, normalise="none")
    tokens_M = plan.loss_tokens_GM.sum(axis=0)
    assert plan.weights_GM.sum(axis=0) == pytest.approx(tokens_M)


def test_a_loss_by_sequence_is_shared_by_sequences(data: TrainingData) -> None:
    plan = plan_of(data, normalise="sequence")
    num_sequences = plan.epochs_G * [len(group.rows_N) for group in plan.groups]
    speech, image = plan.weights_GM.sum(axis=0)[[SPEECH, IMAGE]]
    assert speech / image == pytest.approx(num_sequences[0] / num_sequences[1])


def test_the_table_names_tokens_padding_and_shares_of_the_loss(data: TrainingData) -> None:
    recipe = replace(RECIPE, sequence=replace(RECIPE.sequence, max_length=24))
    table = describe_plan(make_plan(build_groups(data, recipe), recipe, seed=0))
    lines = {line.split()[0]: line.split() for line in table.splitlines() if line}
    assert lines["task"][-4:] == ["with", "loss", "loss", "share"]
    assert lines["asr"][1] == "9"
    assert lines["asr"][-1] == "100.0%"
    assert lines["text"][1] == "0.93"
    assert "full" in table
    assert "i2t: 16 samples refused, over 24 tokens: caption-000 (25), " in table


def test_the_table_warns_of_a_schedule_that_is_hardly_meant(data: TrainingData) -> None:
    optimizer = OptimizerConfig(
        learning_rate=1e-3, num_warmup_steps=100, schedule="constant", final_share=0.1
    )
    recipe = replace(RECIPE, optimizer=optimizer)
    assert describe_plan(make_plan(build_groups(data, recipe), recipe, seed=0)).splitlines()[-2:] == [
        "warning: the warm-up lasts for the whole run, which ends with learning rate 0.0005: "
        "optimizer.num_warmup_steps 100, num_steps 50",
        "warning: optimizer.final_share 0.1 has no effect: optimizer.schedule is constant",
    ]
    meant = replace(RECIPE, optimizer=OptimizerConfig(num_warmup_steps=49))
    assert "warning" not in describe_plan(make_plan(build_groups(data, meant), meant, seed=0))


def test_a_plan_draws_nothing_from_the_groups_of_the_run(data: TrainingData) -> None:
    groups, untouched = build_groups(data, RECIPE), build_groups(data, RECIPE)
    mixes = [Mix(part, seed=0) for part in (groups, untouched)]
    for mix in mixes:
        mix.draw()  # each group has now looked ahead
    make_plan(groups, replace(RECIPE, num_steps=1, batch=replace(RECIPE.batch, pool_size=2)), seed=0)
    first, second = ([mix.draw() for _ in range(100)] for mix in mixes)
    assert first == second


def test_operations_equal_those_that_torch_counts(data: TrainingData) -> None:
    groups = [
        replace(group, lengths_N=np.full(len(group.rows_N), 40)) for group in build_groups(data, RECIPE)
    ]
    text_dir = data.codebook_dirs[Modality.TEXT]
    model = build_model(RECIPE.model, data.vocabulary, text_dir=text_dir, max_length=64, seed=0)
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(1, 40, dtype=torch.long)).logits.sum().backward()
    operations = count_operations(model, groups, world_size=1)
    # Eager attention also computes what the mask hides: 780 of 1,600 pairs of tokens.
    hidden = 3 * 4 * 780 * RECIPE.model.width * RECIPE.model.num_layers
    assert operations.total({"asr": 40}, num_loss_tokens=40) == pytest.approx(
        counter.get_total_flops() - hidden
    )
    assert operations.peak_per_second is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("Tesla T4", None),
    ],
)
def test_the_peak_of_a_gpu_is_known_by_its_name(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def only_asr(values_M: list[float]) -> npt.NDArray[np.float64]:
    values_KM = np.zeros((len(TASKS), 3))
    values_KM[list(TASKS).index("asr")] = values_M
    return values_KM


def test_a_restored_window_gives_throughput_and_what_was_left_out_costs_none(data: TrainingData) -> None:
    operations = Operations(per_token=dict.fromkeys(TASKS, 10.0), per_loss_token=5.0, peak_per_second=1e6)
    window = MetricsWindow(plan_of(data), operations)
    result = StepResult(
        loss=2.0,
        num_tokens_KM=only_asr([30, 60, 0]).astype(np.int64),
        sums_KM=only_asr([90.0, 60.0, 0.0]),
        parts_KM=only_asr([1.5, 0.5, 0.0]),
        tokens_by_task={task: 128 * (task == "asr") for task in TASKS},
        num_sequences=4,
        num_rows=1,
        learning_rate=0.1,
        gradient_norm=1.0,
        is_stopping=False,
    )
    window.add(result)
    window.leave_out(-10.0)  # ten seconds more
    state = json.loads(json.dumps(window.state()))
    window = MetricsWindow(plan_of(data), operations)
    window.restore(state)
    record = window.record(7, result)
    assert record.seconds == pytest.approx(10, abs=1)
    assert record.tokens_per_second * record.seconds == pytest.approx(128)
    assert record.flops_per_second * record.seconds == pytest.approx(1280 + 450)
    assert record.mfu == pytest.approx(record.flops_per_second / 1e6)
    assert record.padding == 0.5
    means = {MODALITIES[TEXT]: 3.0, MODALITIES[SPEECH]: 1.0}
    assert record.loss_by_modality == pytest.approx({str(m): mean for m, mean in means.items()})
    assert record.loss_share_by_modality == {"text": 0.75, "speech": 0.25}
    assert record.loss_share_by_task == {"asr": 1.0}
    assert record.loss_tokens_by_task == {"asr": 90}
    for expected in ("text 3.000", "tokens/s", "GFLOP/s (MFU", "padding 50.0%", "lr 1.0e-01"):
        assert expected in record.line()
    other = MetricsWindow(plan_of(data), operations)
    other.restore(state | {"tasks": list(TASKS)[::-1]})  # of a version with another table of tasks
    assert other.state()["num_steps"] == 0


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0"), (999, "999"), (1000, "1.00 k"), (12345, "12.3 k"), (999_960, "1.00 M"), (4.56e9, "4.56 G")],
)
def test_numbers_are_shown_in_three_digits(number: float, shown: str) -> None:
    assert count(number) == shown
