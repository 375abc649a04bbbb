import math
from pathlib import Path

import pytest

from dmlm.pipeline.errors import ConfigError
from dmlm.trainer.config import Recipe, load_recipe, parse_overrides, recipe_from_json

MINIMAL = {"name": "x", "num_steps": 3, "mix": [{"task": "asr", "weight": 1}]}


@pytest.mark.parametrize("name", ["demo", "demo-full", "paper", "ivr"])
def test_packaged_recipes_are_read_and_survive_json(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe_from_json(recipe.to_json()) == recipe


def test_a_recipe_saved_before_there_was_validation_has_none() -> None:
    content = load_recipe("demo").to_json()
    del content["validation"]
    assert recipe_from_json(content).validation.every_steps == 0


def test_a_recipe_saved_before_a_mix_could_choose_splits_is_the_same() -> None:
    content = load_recipe("demo").to_json()
    for entry in content["mix"]:
        del entry["split"]
    assert recipe_from_json(content) == load_recipe("demo")


def test_a_mix_may_name_a_task_once_for_each_split() -> None:
    mix = [{"task": "asr", "split": split, "weight": 1} for split in ("train-a", "train-b")]
    assert [entry.split for entry in recipe_from_json({**MINIMAL, "mix": mix}).mix] == ["train-a", "train-b"]
    with pytest.raises(ConfigError, match="mix names a task, source and split twice"):
        recipe_from_json({**MINIMAL, "mix": mix + mix[:1]})


@pytest.mark.parametrize(
    ("source", "split", "is_trained_on"),
    [
        ("librispeech", "train-ivr", True),
        ("librispeech", "train-text", False),
        ("ami", "train-ivr", False),
        ("ami", "train", True),
        ("ami", "dev", False),
    ],
)
def test_a_recipe_trains_on_what_an_entry_of_its_mix_draws(
    source: str, split: str, is_trained_on: bool
) -> None:
    entries = [
        {"task": "asr", "weight": 1, "source": "libri*", "split": "train-ivr"},
        {"task": "t2s", "weight": 1, "source": "ami", "split": "[td]*n"},
        {"task": "speech", "weight": 1, "source": "ami", "split": "dev"},  # of no split that is trained on
    ]
    assert recipe_from_json({**MINIMAL, "mix": entries}).trains_on(source, split) is is_trained_on


def test_the_loss_of_the_paper_is_the_default_and_in_its_recipe() -> None:
    for recipe in (recipe_from_json(MINIMAL), load_recipe("paper"), load_recipe("demo")):
        assert (recipe.loss.text, recipe.loss.speech, recipe.loss.image) == (0.93, 0.25, 0.25)
        assert recipe.loss.normalise == "batch"


def test_asr_has_at_least_sixty_percent_of_the_demo() -> None:
    mix = load_recipe("demo").mix
    assert sum(entry.weight for entry in mix if entry.task == "asr") >= 0.6 * sum(e.weight for e in mix)


def test_a_file_is_read_and_named_after_itself(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("num_steps: 7\nmix: [{task: t2s, weight: 2}]\noptimizer: {betas: [0.5, 0.9]}\n")
    recipe = load_recipe(path)
    assert (recipe.name, recipe.num_steps, recipe.optimizer.betas) == ("mine", 7, (0.5, 0.9))
    assert recipe.mix[0].weight == 2.0


def test_overrides_replace_values_by_dotted_key() -> None:
    recipe = load_recipe("demo", {"num_steps": 5, "optimizer.learning_rate": 0.5, "model.init": "somewhere"})
    assert (recipe.num_steps, recipe.optimizer.learning_rate, recipe.model.init) == (5, 0.5, "somewhere")
    assert recipe.optimizer.weight_decay == load_recipe("demo").optimizer.weight_decay


def test_overrides_of_the_command_are_yaml() -> None:
    texts = ("num_steps=5", "optimizer.learning_rate=0.5", "mix=[{task: t2s, weight: 2}]", "model.init=")
    recipe = load_recipe("demo", parse_overrides(texts))
    assert (recipe.num_steps, recipe.optimizer.learning_rate, recipe.model.init) == (5, 0.5, None)
    assert [entry.task for entry in recipe.mix] == ["t2s"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["num_steps"], "--set num_steps: must be KEY=VALUE"),
        (["=3"], "--set =3: must be KEY=VALUE"),
        (["a=1", "a=2"], "--set a=2: a was set before"),
        (["mix=["], r"--set mix=\[: the value is not YAML"),
        (["num_step=3"], "recipe demo: unknown key 'num_step'; did you mean 'num_steps'"),
        (["loss.speach=3"], "recipe demo: loss: unknown key 'speach'; did you mean 'speech'"),
        (["num_steps.x=3"], "recipe demo: num_steps must hold keys and values for num_steps.x"),
        (["num_steps=many"], "recipe demo: num_steps must be int, not 'many'"),
        (["num_steps=0"], "recipe demo: num_steps must be at least 1, not 0"),
    ],
)
def test_overrides_are_strict(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe("demo", parse_overrides(texts))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_step": 3}, "unknown key 'num_step'; did you mean 'num_steps'"),
        ({"model": {"widht": 3}}, "model: unknown key 'widht'; did you mean 'width'"),
        ({"mix": [{"task": "ars", "weight": 1}]}, r"mix\[0\]: task must be one of .* did you mean 'asr'"),
        ({"mix": [{"task": "asr"}]}, r"mix\[0\]: weight is missing"),
        ({"mix": [{"task": "asr", "weight": 1, "spilt": "a"}]}, "'spilt'; did you mean 'split'"),
        ({"mix": [{"task": "asr", "weight": 1, "split": 3}]}, r"mix\[0\]: split must be str, not 3"),
        ({"mix": [{"task": "asr", "weight": 0}]}, "mix: every weight must be above 0 and finite"),
        ({"mix": [{"task": "asr", "weight": math.inf}]}, "mix: every weight must be above 0 and finite"),
        ({"mix": [{"task": "asr", "weight": math.nan}]}, "mix: every weight must be above 0 and finite"),
        ({"mix": []}, "at least one entry"),
        ({"mix": [{"task": "asr", "weight": 1}, {"task": "asr", "weight": 2}]}, "twice"),
        ({"mix": "asr"}, "mix must be a list"),
        ({"num_steps": "many"}, "num_steps must be int, not 'many'"),
        ({"num_steps": True}, "num_steps must be int, not True"),
        ({"num_steps": 0}, "recipe: num_steps must be at least 1, not 0"),
        ({"optimizer": {"learning_rate": "1e-3"}}, "YAML wants 1.0e-3"),
        ({"optimizer": {"betas": [0.9]}}, "betas must be two numbers"),
        ({"loss": {"normalise": "batches"}}, "did you mean 'batch'"),
        ({"loss": {"text": -0.1}}, "loss.text must be 0 or more, and finite, not -0.1"),
        ({"loss": {"text": math.nan}}, "loss.text must be 0 or more, and finite, not nan"),
        ({"loss": {"text": 0, "speech": 0, "image": 0}}, "loss: .* must not all be 0"),
        ({"optimizer": {"num_warmup_steps": -1}}, "optimizer.num_warmup_steps must be 0 or more, not -1"),
        ({"optimizer": {"weight_decay": -0.1}}, "optimizer.weight_decay must be 0 or more"),
        ({"optimizer": {"final_share": 1.5}}, r"optimizer.final_share must be in \[0, 1\], not 1.5"),
        ({"optimizer": {"learning_rate": math.inf}}, "optimizer.learning_rate must be above 0, and finite"),
        ({"optimizer": {"max_gradient_norm": math.inf}}, "max_gradient_norm must be above 0, and finite"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, r"optimizer.betas must be in \[0, 1\)"),
        ({"validation": {"every": 3}}, "validation: unknown key 'every'; did you mean 'every_steps'"),
        ({"validation": {"every_steps": -1}}, "validation.every_steps must be 0 or more, not -1"),
        ({"validation": {"num_sequences": 0}}, "num_sequences must be at least 1"),
        ({"keep_checkpoints": 1}, "keep_checkpoints must be at least 2"),
        ({"loss": None}, "must hold keys and values"),
        ({"model": {"num_heads": 0}}, "model.num_heads must be at least 1"),
        ({"model": {"dropout": 1.0}}, "dropout"),
        ({"model": {"num_heads": 5}}, "multiple of model.num_heads"),
        (
            {"model": {"architecture": "llama", "width": 36, "num_heads": 4}},
            "model.width must be an even multiple of model.num_heads",
        ),
        ({"sequence": {"max_length": 7}}, "sequence.max_length must be at least 8"),
        ({"sequence": {"max_length": 9000}}, "sequence.max_length must not be above batch.max_tokens"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe_from_json({**MINIMAL, **change})


def test_an_unknown_recipe_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no recipe 'dmeo'.*demo, demo-full, ivr, paper"):
        load_recipe("dmeo")
    with pytest.raises(ConfigError, match=r"recipe /nowhere/x.yaml: .*No such file"):
        load_recipe("/nowhere/x.yaml")


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "just words", ""])
def test_a_file_that_is_no_mapping_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_recipe(path)


def test_a_loss_of_one_mean_over_all_tokens_needs_no_weights() -> None:
    loss = {"text": 0, "speech": 0, "image": 0, "normalise": "none"}
    assert recipe_from_json({**MINIMAL, "loss": loss}).loss.normalise == "none"


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: Gr\u00f6\u00dfe".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"recipe .*latin\.yaml: cannot be read as UTF-8"):
        load_recipe(path)


def test_an_override_within_what_is_no_section_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("num_steps: 7\nmix: [{task: t2s, weight: 2}]\noptimizer:\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: optimizer must hold keys and values .*not None"):
        load_recipe(path, {"optimizer.learning_rate": 0.1})
    with pytest.raises(ConfigError, match=r"mix must hold .* for mix\.0\.weight"):
        load_recipe(path, {"mix.0.weight": 0.1})


def test_recipes_cannot_be_changed() -> None:
    recipe: Recipe = load_recipe("demo")
    with pytest.raises(AttributeError):
        recipe.num_steps = 1  # type: ignore[misc]
