from collections.abc import Sequence

import pytest

from dmlm.trainer.config import recipe_from_json
from dmlm.trainer.watching.metrics import Record
from dmlm.trainer.watching.symptoms import Symptoms

NUM_STEPS = 400  # so a window is 20 steps


def recipe(**loss: object):  # type: ignore[no-untyped-def]
    mix = [{"task": "asr", "weight": 1}]
    return recipe_from_json({"name": "x", "num_steps": NUM_STEPS, "mix": mix, "loss": loss})


def record(step: int, losses: dict[str, float], shares: dict[str, float] | None = None) -> Record:
    equal = dict.fromkeys(losses, 1 / len(losses))
    return Record(
        step=step,
        loss=1.0,
        loss_by_modality=losses,
        loss_share_by_modality=shares or equal,
        loss_share_by_task={"asr": 1.0},
        loss_tokens_by_modality=dict.fromkeys(losses, 100),
        loss_tokens_by_task={"asr": 100},
        share_by_modality=equal,
        share_by_task={"asr": 1.0},
        learning_rate=1e-3,
        gradient_norm=1.0,
        padding=0.0,
        num_tokens=100,
        num_sequences=4,
        seconds=1.0,
        tokens_per_second=100.0,
        flops_per_second=1e6,
        mfu=None,
    )


def watch(symptoms: Symptoms, records: Sequence[Record]) -> list[tuple[int, str]]:
    return [(r.step, warning) for r in records for warning in symptoms.look(r)]


def test_a_run_that_learns_gives_no_warning() -> None:
    records = [record(s, {"text": 5 * 0.99**s, "speech": 4 + 2 / s}) for s in range(5, NUM_STEPS, 5)]
    assert watch(Symptoms(recipe()), records) == []


def test_a_loss_that_does_not_fall_is_told_once_and_by_name() -> None:
    records = [
        record(s, {"text": 5 * 0.99**s, "speech": 4.5 + 0.01 * (s % 3)}) for s in range(5, NUM_STEPS, 5)
    ]
    ((step, warning),) = watch(Symptoms(recipe()), records)
    assert step == 80
    assert warning.startswith("the speech loss does not fall: 4.5")


def test_a_loss_that_rises_again_is_told() -> None:
    losses = [record(s, {"text": 5 - s / 100 if s < 200 else 6.0}) for s in range(5, NUM_STEPS, 5)]
    ((step, warning),) = watch(Symptoms(recipe()), losses)
    assert 200 < step <= 220
    assert "text" in warning


def test_a_modality_that_hardly_counts_is_told_once() -> None:
    shares = {"text": 0.004, "speech": 0.996}
    records = [record(s, {"text": 5 * 0.99**s, "speech": 4 * 0.99**s}, shares) for s in range(5, 200, 5)]
    for normalise, advice in (("none", "raise the weights"), ("batch", "raise loss.text or the weights")):
        ((step, warning),) = watch(Symptoms(recipe(normalise=normalise)), records)
        assert step == 20
        assert warning.startswith("text is 0.40% of the loss")
        assert advice in warning


def test_a_modality_without_weight_is_meant_to_have_no_share() -> None:
    shares = {"text": 1.0, "speech": 0.0}
    records = [record(s, {"text": 5 * 0.99**s, "speech": 4.0}, shares) for s in range(5, NUM_STEPS, 5)]
    assert watch(Symptoms(recipe(speech=0.0)), records) == []
    assert len(watch(Symptoms(recipe(speech=0.1)), records)) == 2


@pytest.mark.parametrize("log_every_steps", [1, 20, 130, NUM_STEPS])
def test_how_often_a_run_logs_changes_no_verdict(log_every_steps: int) -> None:
    steps = range(log_every_steps, NUM_STEPS + 1, log_every_steps)
    falling = [record(s, {"text": 5 - s / 100}) for s in steps]
    assert watch(Symptoms(recipe()), falling) == []
    flat = [record(s, {"text": 5.0}) for s in steps]
    assert len(watch(Symptoms(recipe()), flat)) == (log_every_steps < NUM_STEPS)


def test_a_resumed_run_warns_as_an_undisturbed_one() -> None:
    records = [record(s, {"text": 5.0}) for s in range(5, NUM_STEPS, 5)]
    for cut in (3, 30):
        resumed = Symptoms(recipe())
        before, after = watch(resumed, records[:cut]), watch(resumed, records[cut:])
        assert before + after == watch(Symptoms(recipe()), records)
