"""What a checkpoint remembers of tasks and languages, and what may be asked of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.storage import sha256_file
from dmlm.trainer.config import Recipe, TrainConfig, recipe_from_json
from dmlm.trainer.loop import train
from dmlm.trainer.settings import read_settings
from dmlm.trainer.trained_tasks import TrainedTask, choose_language, warn_of_untrained


def recipe(*tasks: str, **more: object) -> Recipe:
    plain = {
        "name": "tiny",
        "num_steps": 2,
        "mix": [{"task": task, "weight": 1} for task in tasks],
        "model": {"num_layers": 1, "width": 16, "num_heads": 2},
        "sequence": {"max_length": 64},
        "batch": {"max_tokens": 128},
        "save_every_steps": 1,
    }
    return recipe_from_json(plain | more)


@pytest.fixture
def config(token_shards: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        shards=(token_shards,), recipe=recipe("asr", "speech"), out_dir=tmp_path / "run", device="cpu"
    )


def trained(checkpoint: Path) -> list[str]:
    return [str(entry) for entry in read_settings(checkpoint)[1].trained]


def forget(checkpoint: Path) -> None:
    """Makes a checkpoint one of a version that did not tell what it was trained on."""
    path = checkpoint / "dmlm.json"
    content = json.loads(path.read_bytes())
    del content["trained"]
    path.write_text(json.dumps(content))
    sums = json.loads((checkpoint / "DONE").read_bytes())
    (checkpoint / "DONE").write_text(json.dumps(sums | {"dmlm.json": sha256_file(path)}))


def test_a_run_remembers_tasks_that_had_samples_and_those_before_it(
    config: TrainConfig, tmp_path: Path
) -> None:
    mix = ("asr", "s2tt", "text", "speech")
    first = train(replace(config, recipe=recipe(*mix, splits=["test"])))  # all but the pictures
    assert trained(first.checkpoint) == ["asr (en)", "s2tt (de)", "text (en)", "speech (none)"]
    second = replace(config, recipe=recipe("i2t", "asr"), init=str(first.checkpoint), out_dir=tmp_path / "b")
    assert trained(train(second).checkpoint) == [
        *trained(first.checkpoint),
        "i2t (en)",
    ]
    forget(first.checkpoint)
    assert trained(train(replace(second, out_dir=tmp_path / "c")).checkpoint) == []


def test_a_run_of_an_older_version_goes_on_and_remembers(config: TrainConfig) -> None:
    report = train(config)
    (report.checkpoint / "DONE").unlink()
    forget(config.out_dir / "checkpoint-000001")
    resumed = train(replace(config, resume=True))
    assert resumed.checkpoint == report.checkpoint
    assert trained(resumed.checkpoint) == ["asr (en)", "speech (none)"]


ASR = ("en", "de", None)


@pytest.mark.parametrize(
    ("languages", "wanted", "expected"),
    [
        (("de",), None, "de"),
        ((None,), None, None),
        (ASR, None, "en"),
        (ASR, "de", "de"),
        (ASR, "none", None),
    ],
)
def test_the_language_is_one_that_was_trained(
    languages: tuple[str | None, ...], wanted: str | None, expected: str | None
) -> None:
    known = [TrainedTask(task="asr", language=language) for language in languages]
    other = TrainedTask(task="i2t", language="fr")
    assert choose_language([other, *known], "asr", wanted, Path("run")) == expected


@pytest.mark.parametrize(
    ("task", "wanted", "message"),
    [
        ("asr", "fr", "run: was not trained on asr in the language fr; choose one of de, it"),
        ("asr", "none", "in the language none; choose one of de, it"),
        ("asr", None, "in the language en; choose one of de, it"),
        ("i2t", None, r"run: was not trained on i2t, but on asr \(de\), asr \(it\)"),
    ],
)
def test_what_was_not_trained_is_refused_with_what_was(task: str, wanted: str | None, message: str) -> None:
    known = [TrainedTask(task="asr", language=language) for language in ("de", "it")]
    with pytest.raises(ConfigError, match=message):
        choose_language(known, task, wanted, Path("run"))


@pytest.mark.parametrize(("wanted", "expected"), [(None, "en"), ("de", "de"), ("none", None)])
def test_a_checkpoint_that_does_not_tell_is_asked_as_before(wanted: str | None, expected: str | None) -> None:
    assert choose_language((), "asr", wanted, Path("run")) == expected


def test_what_was_not_trained_is_warned_of_where_it_is_known(caplog: pytest.LogCaptureFixture) -> None:
    known = [TrainedTask(task="asr", language=language) for language in ("de", "it")]
    warn_of_untrained(known, "asr", {"de", "it"}, Path("run"))
    warn_of_untrained((), "asr", {"fr"}, Path("run"))
    assert not caplog.text
    warn_of_untrained(known, "asr", {"de", "fr", None}, Path("run"))
    warn_of_untrained(known, "i2t", {"de"}, Path("run"))
    said = ["asr (fr, none)", "i2t (de)"]
    rest = "which is scored all the same, but on asr (de), asr (it)"
    assert caplog.messages == [f"run: was not trained on {what}, {rest}" for what in said]
