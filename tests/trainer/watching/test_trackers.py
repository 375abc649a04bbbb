import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dmlm.pipeline.errors import MissingDependencyError
from dmlm.trainer.config import TrackerName, TrainConfig, recipe_from_json
from dmlm.trainer.loop import train
from dmlm.trainer.watching.trackers import open_trackers

RECIPE = recipe_from_json(
    {
        "name": "tiny",
        "num_steps": 4,
        "mix": [{"task": "asr", "weight": 1}],
        "model": {"num_layers": 1, "width": 16, "num_heads": 2},
        "sequence": {"max_length": 64},
        "batch": {"max_tokens": 128},
        "validation": {"every_steps": 2, "splits": ["test"], "num_sequences": 2, "num_decoded": 1},
        "log_every_steps": 1,
    }
)


@pytest.fixture
def config(token_shards: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(shards=(token_shards,), recipe=RECIPE, out_dir=tmp_path / "run", device="cpu")


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_before_the_first_step(
    config: TrainConfig, name: TrackerName, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("torch.utils.tensorboard", "tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=rf"--tracker {name} .*dmlm\[track\]"):
        train(replace(config, trackers=(name,)))
    assert not list(config.out_dir.glob("checkpoint-*"))


def test_tensorboard_shows_every_curve_and_the_answers(config: TrainConfig) -> None:
    pytest.importorskip("tensorboard", reason='TensorBoard is not installed: pip install "dmlm[track]"')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(replace(config, trackers=("tensorboard", "tensorboard")))
    events = EventAccumulator(str(config.out_dir / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    lines = [json.loads(line) for line in (config.out_dir / "metrics.jsonl").read_text().splitlines()]
    assert [event.value for event in events.Scalars("loss/speech")] == pytest.approx(
        [line["loss_by_modality"]["speech"] for line in lines], rel=1e-5
    )
    assert [event.step for event in events.Scalars("validation/asr/nats_per_character")] == [2, 4]
    (text, _) = events.Tensors("validation/answers/text_summary")
    assert b"asr utterance-0" in text.tensor_proto.string_val[0]


def test_a_resumed_run_hides_the_points_that_it_makes_again(config: TrainConfig) -> None:
    pytest.importorskip("tensorboard", reason='TensorBoard is not installed: pip install "dmlm[track]"')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first_step, values in ((0, (1.0, 2.0, 3.0)), (1, (20.0, 30.0))):
        (tracker,) = open_trackers(["tensorboard"], config.out_dir, first_step, {})
        for step, value in enumerate(values, first_step + 1):
            tracker.add_figures(step, [("loss", value)])
        tracker.close()
    events = EventAccumulator(str(config.out_dir / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 20.0), (3, 30.0)]


def test_wandb_goes_on_with_its_run_after_a_resume(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason='Weights & Biases is not installed: pip install "dmlm[track]"')
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracked = replace(config, trackers=("wandb",))
    train(tracked)
    run_id = (config.out_dir / "wandb_id.txt").read_text().strip()
    train(replace(tracked, resume=True))
    assert (config.out_dir / "wandb_id.txt").read_text().strip() == run_id
    folders = list((config.out_dir / "wandb").glob(f"offline-run-*-{run_id}"))
    assert len(folders) == 2
    assert all(list(folder.glob("*.wandb")) for folder in folders)
