"""Four tasks with one model that learnt toy data of conftest.token_shards by heart."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Sample
from dmlm.pipeline.shards import iter_samples
from dmlm.trainer.checkpoint import Checkpoint, load_checkpoint, resolve_checkpoint
from dmlm.trainer.config import (
    BatchConfig,
    MixEntry,
    ModelConfig,
    OptimizerConfig,
    Recipe,
    SequenceConfig,
    TrainConfig,
)
from dmlm.trainer.data.tasks import TASKS
from dmlm.trainer.decoding import DecodingConfig
from dmlm.trainer.decoding.generation import Generated, generate
from dmlm.trainer.loop import train
from dmlm.trainer.scoring.references import (
    open_matching_shards,
    read_references,
    read_training_texts,
)
from dmlm.trainer.scoring.task_scoring import SCORERS, neighbours

FOUR_TASKS = ("asr", "s2tt", "t2s", "i2t")


@pytest.fixture(scope="module")
def checkpoint(token_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    recipe = Recipe(
        name="toy",
        num_steps=60,
        splits=("*",),
        mix=tuple(MixEntry(task=task, weight=1.0) for task in FOUR_TASKS),
        model=ModelConfig(num_layers=2, width=64, num_heads=2, dropout=0.0),
        sequence=SequenceConfig(max_length=512),
        batch=BatchConfig(max_tokens=512),
        optimizer=OptimizerConfig(learning_rate=4e-3, num_warmup_steps=10),
    )
    out_dir = tmp_path_factory.mktemp("toy") / "run"
    train(TrainConfig(shards=(token_shards,), recipe=recipe, out_dir=out_dir, device="cpu"))
    return load_checkpoint(resolve_checkpoint(out_dir))


def samples_for(task: str, token_shards: Path) -> list[Sample]:
    members = [f"{member}_tokens" for member in TASKS[task].members]
    found = iter_samples(token_shards)
    return [sample for sample in found if all(getattr(sample, name) is not None for name in members)]


def run(checkpoint: Checkpoint, task: str, samples: list[Sample], **options: object) -> list[Generated]:
    return sorted(generate(checkpoint, task, samples, **options), key=lambda output: output.index)


@pytest.mark.parametrize("task", FOUR_TASKS)
def test_targets_are_local_ids_of_their_modality_only(
    task: str, checkpoint: Checkpoint, token_shards: Path
) -> None:
    samples = samples_for(task, token_shards)
    outputs = run(checkpoint, task, samples)
    assert [output.index for output in outputs] == list(range(len(samples)))
    num_ids = checkpoint.vocabulary.num_speech if task == "t2s" else checkpoint.vocabulary.num_text
    assert sum(len(output.tokens) for output in outputs) > len(samples)
    for output in outputs:
        assert output.tokens.dtype == np.int32
        assert all(0 <= token < num_ids for token in output.tokens)
        assert output.num_prompt > 3
    if task != "t2s":
        assert all(checkpoint.vocabulary.eos_id not in output.tokens for output in outputs)


def test_captions_that_were_learnt_come_out(checkpoint: Checkpoint, token_shards: Path) -> None:
    samples = samples_for("i2t", token_shards)
    outputs = run(checkpoint, "i2t", samples)
    right = [np.array_equal(o.tokens, s.text_tokens) for o, s in zip(outputs, samples, strict=True)]
    assert np.mean(right) > 0.6
    assert all(output.is_finished for output, is_right in zip(outputs, right, strict=True) if is_right)


def test_limits_are_kept(checkpoint: Checkpoint, token_shards: Path) -> None:
    samples = samples_for("t2s", token_shards)[:5]
    for limit in (1, 2):
        outputs = run(checkpoint, "t2s", samples, config=DecodingConfig(max_new_tokens=limit))
        assert [len(output.tokens) for output in outputs] == [limit] * 5
        assert not any(output.is_finished for output in outputs)
    with pytest.raises(ConfigError, match="max_new_tokens"):
        DecodingConfig(max_new_tokens=0)


def test_task_without_source_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="no source"):
        list(generate(checkpoint, "text", []))


def caption(number: int, image_id: str | None, text: str) -> Sample:
    return Sample(
        key=f"c-{number}",
        source="coco",
        split="test",
        image_id=image_id,
        language="en",
        text=text,
        image_tokens=np.arange(4, dtype=np.int32),
        text_tokens=np.array([100], np.int32),
    )


def test_captions_of_an_image_are_one_sample_with_all_references(
    checkpoint: Checkpoint, write_shards, tmp_path: Path
) -> None:
    captions = [
        caption(0, "7", "a cat"),
        caption(1, "7", "one cat"),
        caption(2, "7", "cats"),
        caption(3, "8", "dog"),
    ]
    directory = write_shards(tmp_path / "coco", captions)
    shards = open_matching_shards([directory], checkpoint, "i2t")
    references = list(read_references(shards, ["test"], "i2t"))
    assert [reference.texts for reference in references] == [("a cat", "one cat", "cats"), ("dog",)]
    assert [len(set(reference.hashes)) for reference in references] == [3, 1]
    assert [reference.sample.key for reference in references] == ["c-0", "c-3"]
    (first,) = read_references(shards, ["test"], "i2t", limit=1)
    assert first.texts == ("a cat", "one cat", "cats")


def test_captions_of_an_image_need_not_follow_each_other(
    checkpoint: Checkpoint, write_shards, tmp_path: Path
) -> None:
    captions = [
        caption(0, "7", "a cat"),
        caption(1, "8", "dog"),
        caption(2, None, "sky"),
        caption(3, None, "sea"),
        caption(4, "7", "one cat"),
    ]
    shards = open_matching_shards([write_shards(tmp_path / "coco", captions)], checkpoint, "i2t")
    texts = [("a cat", "one cat"), ("dog",), ("sky",), ("sea",)]
    assert [reference.texts for reference in read_references(shards, ["test"], "i2t")] == texts
    limited = read_references(shards, ["test"], "i2t", limit=2)
    assert [reference.texts for reference in limited] == texts[:2]


def test_a_limit_counts_samples_of_each_split_of_each_data_set(
    checkpoint: Checkpoint, write_shards, tmp_path: Path
) -> None:
    def spoken(number: int, split: str) -> Sample:
        units, words = np.arange(4, dtype=np.int32), np.array([100], np.int32)
        return Sample(
            key=f"{split}-{number}",
            source="s",
            split=split,
            text="a",
            language="en",
            speech_tokens=units,
            text_tokens=words,
        )

    directories = [
        write_shards(tmp_path / name, [spoken(number, split) for split in splits for number in range(3)])
        for name, splits in {"one": ("dev", "test"), "two": ("test",)}.items()
    ]
    shards = open_matching_shards(directories, checkpoint, "asr")
    references = read_references(shards, ["dev", "test"], "asr", limit=2)
    assert [reference.sample.key for reference in references] == [
        *("dev-0", "dev-1", "test-0", "test-1"),
        *("test-0", "test-1"),
    ]


def test_translations_are_scored_in_their_own_language(
    checkpoint: Checkpoint, write_shards, tmp_path: Path
) -> None:
    spoken = Sample(
        key="u-0",
        source="covost",
        split="test",
        text="the house",
        language="en",
        translation="das Haus",
        translation_language="de",
        speech_tokens=np.array([1, 1, 2], np.int32),
        text_tokens=np.array([100], np.int32),
        translation_tokens=np.array([101], np.int32),
    )
    other = replace(spoken, key="u-1", translation="der Baum am See", text="the tree")
    directory = write_shards(tmp_path / "covost", [spoken, other])
    shards = open_matching_shards([directory], checkpoint, "s2tt")
    references = list(read_references(shards, ["test"], "s2tt"))
    assert [(r.texts, r.language) for r in references] == [
        (("das Haus",), "de"),
        (("der Baum am See",), "de"),
    ]
    pytest.importorskip("sacrebleu")
    clean = [replace(reference, text_rule="verbatim") for reference in references]
    assert SCORERS["s2tt"](clean, ["das Haus", "der Baum am See"]).values["chrf"] == pytest.approx(100)
    assert neighbours(references) == {0: 1, 1: 0}
    assert (
        len(run(checkpoint, "s2tt", [r.sample for r in references], config=DecodingConfig(num_beams=2))) == 2
    )


def test_training_texts_are_looked_for_among_texts_and_translations(
    checkpoint: Checkpoint, write_shards, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = np.array([100], np.int32)
    trained = Sample(
        key="t-0",
        source="text",
        split="train",
        text="das Haus",
        language="de",
        text_tokens=words,
        translation="a tree",
        translation_language="en",
        translation_tokens=words,
    )
    spoken = replace(trained, key="u-0", split="test", speech_tokens=np.array([1, 2], np.int32))
    house = replace(spoken, text="the house", translation="das Haus")
    tree = replace(spoken, key="u-1", text="a tree", translation="ein Baum")
    written = write_shards(tmp_path / "training", [trained]), write_shards(tmp_path / "test", [house, tree])
    training_shards, shards = (open_matching_shards([path], checkpoint, "s2tt") for path in written)
    training = read_training_texts(training_shards, checkpoint)
    references = {task: list(read_references(shards, ["test"], task)) for task in ("s2tt", "asr")}
    assert [training.has_text_of(reference) for reference in references["s2tt"]] == [True, None]
    assert [training.has_text_of(reference) for reference in references["asr"]] == [None, True]
    assert [training.has_words_of(reference) for reference in references["asr"]] == [None, True]
    assert training.words == {"das", "haus", "a", "tree"}
    assert "began with" not in caplog.text
    settings = checkpoint.settings
    recipe = replace(settings.recipe, mix=(MixEntry(task="asr", split="dev", weight=1.0),))
    recipe = replace(recipe, model=replace(recipe.model, init="checkpoint-000007"))
    other = replace(checkpoint, settings=replace(settings, recipe=recipe))
    assert not read_training_texts(training_shards, other).hashes
    assert "the training began with checkpoint-000007" in caplog.text


def test_training_texts_beyond_the_limit_of_the_run_do_not_count(
    checkpoint: Checkpoint, write_shards, tmp_path: Path
) -> None:
    samples = [
        Sample(
            key=f"t-{number}",
            source=source,
            split="train",
            text=f"{source} {number}",
            language="en",
            speech_tokens=np.array([1, 2], np.int32),
            text_tokens=np.array([100], np.int32),
        )
        for number in range(3)
        for source in ("red", "green")
    ]
    directory = write_shards(tmp_path / "training", samples)
    shards = open_matching_shards([directory], checkpoint, "asr")
    limited = replace(checkpoint, settings=replace(checkpoint.settings, limit=2))
    # Among --shards and --train-shards, too, a data set counts once.
    training = read_training_texts([*shards, *shards], limited)
    assert training.words == {"red", "green", "0", "1"}
    assert len(training.hashes) == 4
    assert read_training_texts(shards, checkpoint).words == {"red", "green", "0", "1", "2"}


def test_sampling_repeats_with_its_seed(checkpoint: Checkpoint, token_shards: Path) -> None:
    samples = samples_for("asr", token_shards)
    seeds = [
        run(checkpoint, "asr", samples, config=DecodingConfig(temperature=1.5, seed=seed))
        for seed in (1, 1, 2)
    ]
    texts = [json.dumps([output.tokens.tolist() for output in outputs]) for outputs in seeds]
    assert texts[0] == texts[1] != texts[2]
