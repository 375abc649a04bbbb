"""Entries of the mix that weigh one split of a corpus; test_stream.py has the rest of the mix."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Sample
from dmlm.pipeline.shards import iter_samples
from dmlm.trainer.config import Recipe, load_recipe, recipe_from_json
from dmlm.trainer.data.dataset import TrainingData, open_training_data
from dmlm.trainer.data.mix import Mix, build_groups
from dmlm.trainer.data.stream import TokenStream
from dmlm.trainer.data.tasks import TASKS, TaskSequence
from dmlm.trainer.watching.plan import make_plan
from dmlm.trainer.watching.tables import describe_plan

PROMPTS = ("utterance-001", "utterance-002", "utterance-003")


def recipe_of(*mix: dict[str, object]) -> Recipe:
    return recipe_from_json({"name": "r", "num_steps": 9, "mix": list(mix), "sequence": {"max_length": 64}})


@pytest.fixture(scope="module")
def data(
    token_shards: Path, write_shards: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> TrainingData:
    """One corpus with two splits to train on, three utterances in the smaller one."""
    splits = {"train": "train-text", "test": "test"}
    samples = [
        replace(sample, split="train-ivr" if sample.key in PROMPTS else splits[sample.split])
        for sample in iter_samples(token_shards)
    ]
    return open_training_data([write_shards(tmp_path_factory.mktemp("splits") / "toy", samples)])


def test_one_split_of_a_corpus_can_have_a_weight_of_its_own(data: TrainingData) -> None:
    recipe = recipe_of(
        {"task": "asr", "source": "toy", "split": "train-text", "weight": 0.7},
        {"task": "asr", "source": "toy", "split": "train-ivr", "weight": 0.3},
    )
    mix = Mix(build_groups(data, recipe), seed=0)
    keys = data.index["key"].to_pylist()
    tokens: Counter[bool] = Counter()
    for _ in range(2000):
        draw, length = mix.draw()
        tokens[keys[mix.rows_D[draw]] in PROMPTS] += length
    assert tokens[True] / tokens.total() == pytest.approx(0.3, abs=0.01)
    assert [len(group.rows_N) for group in mix.groups] == [25, 3]
    assert list(mix.state()) == ["asr:toy/train-text", "asr:toy/train-ivr"]


def test_an_entry_without_a_split_takes_all_that_are_trained_on_and_keeps_its_name(
    data: TrainingData,
) -> None:
    groups = build_groups(
        data,
        recipe_of(
            {"task": "asr", "weight": 1},
            {"task": "asr", "source": "toy", "weight": 1},
            {"task": "asr", "split": "train-i*", "weight": 1},
        ),
    )
    # The order of an epoch follows from the name.
    assert {group.name: len(group.rows_N) for group in groups} == {
        "asr": 28,
        "asr:toy": 28,
        "asr:*/train-i*": 3,
    }


def test_no_entry_can_bring_in_a_split_that_is_not_trained_on(data: TrainingData) -> None:
    recipe = recipe_of({"task": "asr", "weight": 1}, {"task": "asr", "split": "test", "weight": 1})
    everything, held_out = build_groups(data, recipe)
    assert (everything.weight, held_out.weight, len(held_out.rows_N)) == (1.0, 0.0, 0)


def test_the_plan_names_the_split(data: TrainingData) -> None:
    recipe = recipe_of({"task": "asr", "source": "toy", "split": "train-ivr", "weight": 1})
    table = describe_plan(make_plan(build_groups(data, recipe), recipe, seed=0))
    assert [line.split()[1] for line in table.splitlines() if line.startswith("asr:toy/train-ivr ")] == ["3"]


@pytest.mark.parametrize(
    ("source", "split", "task", "lack"),
    [
        ("toi", "*", "asr", "no source matches toi, there is toy, toy_pictures"),
        (
            *("toy", "train-irv", "asr"),
            "no split matches train* and train-irv, there is test, train-ivr, train-text",
        ),
        ("toy", "*", "i2t", "none of 36 samples has image and text"),
    ],
    ids=["source", "split", "member"],
)
def test_an_entry_without_samples_says_why(
    data: TrainingData, source: str, split: str, task: str, lack: str
) -> None:
    entry = {"task": task, "source": source, "split": split, "weight": 1}
    with pytest.raises(ConfigError, match=f"no sample fits the recipe's mix:\n  .*: {re.escape(lack)}$"):
        build_groups(data, recipe_of(entry))
    recipe = recipe_of(entry, {"task": "asr", "weight": 1})
    table = describe_plan(make_plan(build_groups(data, recipe), recipe, seed=0))
    assert re.search(f"warning: {task}:{source}.* its share goes to the others: {re.escape(lack)}$", table)


def test_samples_that_are_all_too_long_are_the_reason(data: TrainingData) -> None:
    recipe = recipe_of({"task": "asr", "source": "toy", "weight": 1})
    with pytest.raises(ConfigError, match="asr:toy: 28 of 36 samples have speech and text, and each is over"):
        build_groups(data, replace(recipe, sequence=replace(recipe.sequence, max_length=4)))


def picture(image_id: str | None, number: int, source: str = "jsonl", split: str = "train") -> Sample:
    return Sample(
        key=f"{source}-{split}-{image_id}-{number}",
        source=source,
        split=split,
        image_id=image_id,
        image_tokens=np.array([number], np.int32),
    )


@pytest.mark.parametrize("name", ["demo", "demo-full", "paper"])
def test_packaged_recipes_warn_of_no_task_or_corpus_that_is_lacking(
    name: str, write_shards: Callable[..., Path], tmp_path: Path
) -> None:
    data = open_training_data([write_shards(tmp_path / "a", [picture("1", 0), picture("2", 1)])])
    recipe = replace(load_recipe(name), num_steps=9)
    groups = build_groups(data, recipe)
    assert [group.name for group in groups if not group.lack] == ["image"]
    assert "has no samples" not in describe_plan(make_plan(groups, recipe, seed=0))


def test_an_image_is_drawn_once_whatever_other_data_sets_and_splits_call_theirs(
    write_shards: Callable[..., Path], tmp_path: Path
) -> None:
    mine = [picture("1", 0, split="train-more"), picture("1", 0), picture("1", 1), picture("2", 0)]
    theirs = [picture("1", 0), picture("2", 0), picture("2", 1), picture("1", 0, "coco")]
    nameless = [picture(None, number, "hf") for number in range(2)]
    directories = [write_shards(tmp_path / "a", mine), write_shards(tmp_path / "b", [*theirs, *nameless])]
    data = open_training_data(directories)
    (group,) = build_groups(data, recipe_of({"task": "image", "weight": 1}))
    assert group.rows_N.tolist() == [0, 1, 3, 4, 5, 7, 8, 9]
    (group,) = build_groups(data, recipe_of({"task": "image", "source": "coco", "weight": 1}))
    assert group.rows_N.tolist() == [7]


def test_images_of_one_data_set_keep_their_order(token_shards: Path) -> None:
    data = open_training_data([token_shards])
    (group,) = build_groups(data, recipe_of({"task": "image", "weight": 1}))
    assert data.index["key"].take(group.rows_N).to_pylist() == [f"caption-{i:03d}" for i in range(0, 16, 2)]


def test_samples_of_every_pair_of_languages_have_their_own_sequences(
    write_shards: Callable[..., Path], build_sequence: Callable[..., TaskSequence], tmp_path: Path
) -> None:
    units = np.array([1, 2, 3], np.int32)
    samples = [
        Sample(
            key=f"{first}-{second}",
            source="s",
            split="train",
            language=first,
            translation_language=second,
            speech_tokens=units,
            text_tokens=units,
            translation_tokens=units,
        )
        for first in ("en", "it", None)
        for second in ("de", "fr", None)
    ]
    data = open_training_data([write_shards(tmp_path / "a", samples)])
    recipe = recipe_of({"task": "asr", "weight": 1}, {"task": "s2tt", "weight": 1})
    by_key = {sample.key: sample for sample in samples}
    stream = TokenStream(data, recipe, seed=0)
    for row in (row for _ in range(20) for row in stream.next_step()):
        sequences = [
            build_sequence(TASKS[task], by_key[key], data.vocabulary, recipe.sequence).tokens_T
            for key, task in zip(row.keys, row.tasks, strict=True)
        ]
        assert row.tokens_T.tolist() == np.concatenate(sequences).tolist()
