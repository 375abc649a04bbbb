"""Which splits are scored when none is named, and which texts count as trained on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dmlm.pipeline.samples import Sample
from dmlm.pipeline.shards import iter_samples, load_dataset_card, open_shard
from dmlm.trainer.config import Recipe, recipe_from_json
from dmlm.trainer.scoring.references import (
    Reference,
    ScoredShard,
    TrainingTexts,
    _find_trained,
    choose_splits,
    read_references,
    words_of,
)

Open = Callable[..., list[ScoredShard]]
RECIPE: Recipe = recipe_from_json({"name": "x", "num_steps": 1, "mix": [{"task": "asr", "weight": 1}]})


@pytest.fixture
def open_splits(token_shards: Path, write_shards: Callable[..., Path], tmp_path: Path) -> Open:
    """Function that gives shards of utterances in some splits, and of pictures in others."""
    samples = list(iter_samples(token_shards))
    spoken = [sample for sample in samples if sample.key == "utterance-001"]
    seen = [sample for sample in samples if sample.key == "caption-000"]

    def copies(kind: list[Sample], splits: tuple[str, ...]) -> list[Sample]:
        return [
            replace(sample, key=f"{split}-{i}", split=split)
            for split in splits
            for i, sample in enumerate(kind)
        ]

    def open_all(*splits: str, pictures: tuple[str, ...] = ()) -> list[ScoredShard]:
        directory = write_shards(tmp_path / "shards", [*copies(spoken, splits), *copies(seen, pictures)])
        card = load_dataset_card(directory)
        return [
            ScoredShard(reader=open_shard(directory, record.name), text_rule="toy", dataset_sha256="")
            for record in card.shards
        ]

    return open_all


@pytest.mark.parametrize(
    ("splits", "chosen", "said"),
    [
        (("train", "dev", "test"), ["test"], "scoring test; held out, too, and not scored: dev"),
        (
            ("train", "test-clean", "test-other"),
            ["test-clean", "test-other"],
            "scoring test-clean, test-other\n",
        ),
        (("train", "dev", "valid"), ["dev", "valid"], "scoring dev, valid\n"),
    ],
)
def test_test_splits_are_scored_where_any_was_held_out(
    splits: tuple[str, ...],
    chosen: list[str],
    said: str,
    open_splits: Open,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert choose_splits(open_splits(*splits), None, "asr", RECIPE) == chosen
    assert said in capsys.readouterr().err


def test_a_split_without_samples_of_the_task_is_no_choice(open_splits: Open) -> None:
    shards = open_splits("train", "dev", pictures=("train2017", "test"))
    assert choose_splits(shards, None, "asr", RECIPE) == ["dev"]
    assert choose_splits(shards, ["test"], "asr", RECIPE) == ["test"]


def test_shards_without_the_task_name_all_that_there_is(open_splits: Open) -> None:
    assert choose_splits(open_splits(pictures=("test",)), None, "asr", RECIPE) == ["test"]


def test_an_image_with_captions_in_two_languages_is_asked_for_each(
    token_shards: Path, write_shards: Callable[..., Path], tmp_path: Path
) -> None:
    picture = next(sample for sample in iter_samples(token_shards) if sample.key == "caption-000")
    captions = [("en", "a cat"), ("de", "eine Katze"), ("en", "a red cat")]
    samples = [
        replace(picture, key=f"{number}", image_id="1", language=language, text=text)
        for number, (language, text) in enumerate(captions)
    ]
    directory = write_shards(tmp_path / "shards", samples)
    shards = [
        ScoredShard(reader=open_shard(directory, record.name), text_rule="toy", dataset_sha256="")
        for record in load_dataset_card(directory).shards
    ]
    found = [(r.language, r.texts) for r in read_references(shards, [picture.split], "i2t")]
    assert found == [("en", ("a cat", "a red cat")), ("de", ("eine Katze",))]
    first = read_references(shards, [picture.split], "i2t", limit=1)
    assert [reference.language for reference in first] == ["en"]


@pytest.mark.parametrize(("trained", "is_known"), [("second", True), ("third", False)])
def test_an_image_one_of_whose_captions_was_trained_on_is_in_training(trained: str, is_known: bool) -> None:
    reference = Reference(
        directory=Path(),
        sample=Sample(key="k", source="s", split="test"),
        texts=("a cat", "a red cat"),
        hashes=("first", "second"),
        language="en",
        text_rule="plain",
    )
    texts = TrainingTexts(hashes={trained}, words=set(), is_complete=True)
    assert texts.has_text_of(reference) is is_known


def test_a_limit_of_the_training_counts_in_each_data_set(token_shards: Path) -> None:
    records = load_dataset_card(token_shards).shards

    def count(*names: str) -> int:
        shards = [
            ScoredShard(reader=open_shard(token_shards, record.name), text_rule="toy", dataset_sha256=name)
            for name in names
            for record in records
        ]
        return len(list(_find_trained(shards, RECIPE, limit=5)))

    assert count("a", "b") == 2 * count("a") > 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don\u2019t stop: it's the dogs' e-mail!", ["don't", "stop", "it's", "the", "dogs", "e", "mail"]),
        ("लाल पानी, पीना।", ["लाल", "पानी", "पीना"]),
        ("நான் வந்தேன்.", ["நான்", "வந்தேன்"]),
        ("Cafe\u0301", ["caf\u00e9"]),
    ],
    ids=["English", "Hindi", "Tamil", "accent"],
)
def test_words_keep_their_vowel_signs_and_apostrophes(text: str, words: list[str]) -> None:
    assert words_of(text) == words
