import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest

from dmlm.pipeline.errors import (
    CheckpointError,
    ConfigError,
    FingerprintMismatchError,
    ShardCorruptError,
)
from dmlm.pipeline.samples import Sample
from dmlm.pipeline.shards import iter_samples, load_dataset_card, write_dataset_card
from dmlm.trainer.config import Recipe, recipe_from_json
from dmlm.trainer.data.dataset import TrainingData, open_training_data
from dmlm.trainer.data.mix import build_groups
from dmlm.trainer.data.packing import PackedBatch, pack_sequences
from dmlm.trainer.data.stream import TokenStream
from dmlm.trainer.data.tasks import TASKS, TaskSequence

EVERYTHING = [
    {"task": "asr", "weight": 6},
    {"task": "s2tt", "weight": 1},
    {"task": "t2s", "weight": 1},
    {"task": "i2t", "weight": 1},
    {"task": "image", "weight": 1},
]


def recipe_of(mix: list[dict[str, object]], **fields: object) -> Recipe:
    batch = {"max_tokens": 128, "pool_size": 8}
    return recipe_from_json(
        {"name": "r", "num_steps": 1, "mix": mix, "sequence": {"max_length": 64}, "batch": batch, **fields}
    )


@pytest.fixture(scope="module")
def data(token_shards: Path) -> TrainingData:
    return open_training_data([token_shards])


@pytest.fixture(scope="module")
def copies(token_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[Path]]:
    """Function that gives some data sets of the same samples."""

    def copy(number: int) -> Path:
        directory = tmp_path_factory.mktemp("copies") / "toy"
        shutil.copytree(token_shards, directory)
        card = load_dataset_card(directory)
        write_dataset_card(directory, replace(card, settings={"copy": number}))
        return directory

    return lambda count: [copy(number) for number in range(count)]


def batches(stream: TokenStream, count: int) -> list[PackedBatch]:
    return [batch for _ in range(count) for batch in stream.next_step()]


def content(rows: list[PackedBatch]) -> list[object]:
    return [
        (row.keys, row.tasks, row.tokens_T.tolist(), row.targets_N.tolist(), row.modality_N.tolist())
        for row in rows
    ]


def test_shares_of_tokens_are_the_weights_of_the_mix(data: TrainingData) -> None:
    stream = TokenStream(data, recipe_of(EVERYTHING), seed=0)
    tokens: Counter[str] = Counter()
    for row in batches(stream, 300):
        assert sum(row.lengths) == len(row.tokens_T) <= 128
        for task, length in zip(row.tasks, row.lengths, strict=True):
            tokens[task] += length
    total = tokens.total()
    assert {task: round(count / total, 2) for task, count in tokens.items()} == {
        "asr": 0.6,
        "s2tt": 0.1,
        "t2s": 0.1,
        "i2t": 0.1,
        "image": 0.1,
    }


def test_every_epoch_draws_each_sample_once_in_another_order(data: TrainingData) -> None:
    stream = TokenStream(data, recipe_of([{"task": "asr", "weight": 1}], batch={"pool_size": 8}), seed=0)
    (group,) = stream.groups
    epochs = [[group.draw(0)[0] for _ in group.rows_N] for _ in range(3)]
    assert all(sorted(epoch) == list(range(len(group.rows_N))) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("cut", [0, 1, 7, 40])
def test_a_restored_stream_goes_on_exactly_with_its_pool(data: TrainingData, cut: int) -> None:
    recipe = recipe_of(EVERYTHING, sequence={"max_length": 64, "unit_noise": 0.3, "text_noise": 0.3})
    stream = TokenStream(data, recipe, seed=3)
    batches(stream, cut)
    state = json.loads(json.dumps(stream.state()))
    assert bool(state["pool"]) == (cut in (1, 7))
    expected = content(batches(stream, 50))
    restored = TokenStream(data, recipe, seed=3)
    restored.restore(state)
    assert content(batches(restored, 50)) == expected


def test_another_seed_gives_another_order(data: TrainingData) -> None:
    first, second = (TokenStream(data, recipe_of(EVERYTHING), seed=seed) for seed in (0, 1))
    assert content(batches(first, 5)) != content(batches(second, 5))


def test_only_splits_that_match_are_trained_on(data: TrainingData) -> None:
    held_out = set(data.index.filter(pc.equal(data.index["split"], "test"))["key"].to_pylist())
    stream = TokenStream(data, recipe_of(EVERYTHING), seed=0)
    assert not held_out & {key for row in batches(stream, 100) for key in row.keys}
    on_test = TokenStream(data, recipe_of(EVERYTHING, splits=["test"]), seed=0)
    assert {key for row in batches(on_test, 20) for key in row.keys} <= held_out


def test_a_source_can_have_a_weight_of_its_own(data: TrainingData) -> None:
    mix = [{"task": "text", "weight": 1, "source": "toy_p*"}]
    stream = TokenStream(data, recipe_of(mix), seed=0)
    assert [group.name for group in stream.groups] == ["text:toy_p*"]
    assert all(key.startswith("caption") for row in batches(stream, 5) for key in row.keys)


def test_image_only_takes_each_image_once(data: TrainingData) -> None:
    mix = [{"task": "image", "weight": 1}, {"task": "i2t", "weight": 1}]
    image, i2t = TokenStream(data, recipe_of(mix), seed=0).groups
    assert (len(image.rows_N), len(i2t.rows_N)) == (8, 16)


def test_unpaired_samples_feed_the_unpaired_tasks(data: TrainingData) -> None:
    mix = [{"task": "asr", "weight": 1}, {"task": "speech", "weight": 1}]
    asr, speech = TokenStream(data, recipe_of(mix), seed=0).groups
    assert (len(asr.rows_N), len(speech.rows_N)) == (28, 36)  # 40 utterances, 4 held out, 8 without text


def test_long_sequences_are_refused_by_name_and_never_cropped(data: TrainingData) -> None:
    recipe = recipe_of([{"task": "asr", "weight": 1}], sequence={"max_length": 24})
    (group,) = TokenStream(data, recipe, seed=0).groups
    assert group.refused
    assert len(group.refused) + len(group.rows_N) == 28
    assert min(group.refused.values()) > 24 >= group.lengths_N.max()
    (all_of_it,) = TokenStream(data, recipe_of([{"task": "asr", "weight": 1}]), seed=0).groups
    lengths = dict(
        zip(data.index["key"].take(all_of_it.rows_N).to_pylist(), all_of_it.lengths_N.tolist(), strict=True)
    )
    assert all(lengths[key] == length for key, length in group.refused.items())


def test_a_mix_that_nothing_fits_says_what_there_is(data: TrainingData) -> None:
    with pytest.raises(ConfigError, match=r"no split matches dev, there is test, train"):
        TokenStream(data, recipe_of(EVERYTHING, splits=["dev"]), seed=0)


@pytest.mark.parametrize(
    ("limit", "counts"),
    [
        (2, {("toy", "train"): 2, ("toy", "test"): 2, ("toy_pictures", "train"): 2}),
        (5, {("toy", "train"): 5, ("toy", "test"): 4, ("toy_pictures", "train"): 5}),
    ],
)
def test_a_limit_counts_samples_of_each_split_of_each_data_set(
    copies: Callable[[int], list[Path]], limit: int, counts: dict[tuple[str, str], int]
) -> None:
    data = open_training_data(copies(2), limit=limit)
    mix = [{"task": "speech", "weight": 1}, {"task": "i2t", "weight": 1}]
    groups = build_groups(data, recipe_of(mix, splits=["*"]))
    columns = [data.index[name].to_pylist() for name in ("source", "split", "key")]
    rows = [[column[row] for column in columns] for group in groups for row in group.rows_N.tolist()]
    assert Counter((source, split) for source, split, _ in rows) == {
        name: 2 * count for name, count in counts.items()
    }
    assert max(Counter(key for *_, key in rows).values()) == 2  # once in each of the two data sets


def test_a_limit_leaves_out_the_shards_that_it_does_not_need(
    write_shards: Callable[..., Path], tmp_path: Path
) -> None:
    samples = [
        Sample(key=f"u-{i}", source="s", split="train", speech_tokens=np.array([1], np.int32))
        for i in range(9)
    ]
    directory = write_shards(tmp_path / "long", samples, num_shards=4)
    assert len(open_training_data([directory]).files) > 1
    assert len(open_training_data([directory], limit=1).files) == 1


def test_data_sets_of_different_tokenizers_are_refused(
    token_shards: Path, write_shards: Callable[..., Path], tmp_path: Path
) -> None:
    sample = Sample(key="a", source="s", split="train", speech_tokens=np.array([1], np.int32))
    other = write_shards(tmp_path / "other", [sample], speech_mark="another")
    with pytest.raises(FingerprintMismatchError, match=r"sha256 is speech in .*toy and another in .*other"):
        open_training_data([token_shards, other])


def test_a_data_set_given_twice_is_refused_naming_both_folders(token_shards: Path, tmp_path: Path) -> None:
    shutil.copytree(token_shards, tmp_path / "again")
    for second in (token_shards, tmp_path / "again"):
        with pytest.raises(
            ConfigError, match=rf"{second}: the same data set as {token_shards}; give it once"
        ):
            open_training_data([token_shards, second])


@pytest.mark.parametrize(
    ("missing", "message"),
    [(0, "sample utterance-.*: does not fit its tokens"), (1, "has no text, but its index counts")],
)
def test_an_index_that_does_not_fit_its_tokens_is_found(
    token_shards: Path, missing: int, message: str
) -> None:
    data = open_training_data([token_shards])
    counts = data.index["num_text_tokens"]
    counts = pc.if_else(pc.greater(counts, 0), pc.add(counts, 1), missing)
    column = data.index.schema.get_field_index("num_text_tokens")
    wrong = data.index.set_column(column, data.index.schema.field(column), counts)
    with pytest.raises(ShardCorruptError, match=rf"toy-00000\d\..*{message}"):
        batches(TokenStream(replace(data, index=wrong), recipe_of([{"task": "asr", "weight": 1}]), seed=0), 1)


NOISES = {"unit_noise": 0.3, "text_noise": 0.3, "target_unit_noise": 0.3}
NOISY = {"max_length": 64, **NOISES, "collapse_runs": True}


@pytest.mark.parametrize("sequence", [{"max_length": 64}, NOISY], ids=["clean", "noisy"])
@pytest.mark.parametrize("world_size", [2, 4])
def test_any_number_of_ranks_shares_the_same_global_batches(
    data: TrainingData, world_size: int, sequence: dict[str, object]
) -> None:
    batch = {"max_tokens": 128, "num_micro_batches": 4, "pool_size": 8}
    recipe = recipe_of(EVERYTHING, batch=batch, sequence=sequence)
    alone = TokenStream(data, recipe, seed=0)
    ranks = [
        TokenStream(data, recipe, seed=0, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    num_epochs = 0
    while num_epochs < 3:
        shares = [stream.next_step() for stream in ranks]
        assert {len(share) for share in shares} == {4 // world_size}
        # Micro-batch i of the step is on rank i mod world size.
        together = [row for rows in zip(*shares, strict=True) for row in rows]
        assert content(together) == content(alone.next_step())
        assert all(stream.state() == alone.state() for stream in ranks)
        num_epochs = min(group.num_draws // len(group.rows_N) for group in alone.groups)


def test_a_stream_goes_on_with_another_number_of_ranks(data: TrainingData) -> None:
    recipe = recipe_of(EVERYTHING, batch={"max_tokens": 128, "num_micro_batches": 4, "pool_size": 8})
    alone = TokenStream(data, recipe, seed=0)
    batches(alone, 5)
    pair = [TokenStream(data, recipe, seed=0, rank=rank, world_size=2) for rank in range(2)]
    for stream in pair:
        stream.restore(json.loads(json.dumps(alone.state())))
    for _ in range(5):
        first, second = (content(stream.next_step()) for stream in pair)
        assert content(alone.next_step()) == [first[0], second[0], first[1], second[1]]


@pytest.mark.parametrize("num_shards", [2, 6, 14])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_no_rank_runs_dry_whatever_the_shards(
    copies: Callable[[int], list[Path]], num_shards: int, world_size: int
) -> None:
    few = open_training_data(copies(num_shards // 2), limit=3)
    recipe = recipe_of(EVERYTHING[:1], batch={"max_tokens": 128, "num_micro_batches": 12, "pool_size": 8})
    ranks = [TokenStream(few, recipe, seed=0, rank=rank, world_size=world_size) for rank in range(world_size)]
    for _ in range(5):
        assert [len(stream.next_step()) for stream in ranks] == [12 // world_size] * world_size


def test_rows_that_cannot_be_shared_evenly_are_refused(data: TrainingData) -> None:
    recipe = recipe_of(EVERYTHING, batch={"max_tokens": 128, "num_micro_batches": 3})
    with pytest.raises(ConfigError, match="num_micro_batches 3 cannot be shared evenly by 2 ranks"):
        TokenStream(data, recipe, seed=0, world_size=2)


def test_a_state_of_another_mix_or_version_is_refused(data: TrainingData) -> None:
    stream = TokenStream(data, recipe_of(EVERYTHING), seed=0)
    other = TokenStream(data, recipe_of([{"task": "asr", "weight": 1}]), seed=0)
    with pytest.raises(CheckpointError, match=r"drawing from asr, the recipe mixes asr, s2tt"):
        stream.restore(other.state())
    with pytest.raises(CheckpointError, match=r"state holds num_draws, open_rows; this version wants"):
        stream.restore({"num_draws": 3, "open_rows": []})


def test_a_batch_equals_what_its_samples_give_one_by_one(
    token_shards: Path, data: TrainingData, build_sequence: Callable[..., TaskSequence]
) -> None:
    samples = {sample.key: sample for sample in iter_samples(token_shards)}
    for sequence in ({"max_length": 64}, {"max_length": 64, "collapse_runs": True, "target_only": True}):
        recipe = recipe_of(EVERYTHING, sequence=sequence)
        for row in batches(TokenStream(data, recipe, seed=0), 40):
            sequences = [
                build_sequence(TASKS[task], samples[key], data.vocabulary, recipe.sequence)
                for key, task in zip(row.keys, row.tasks, strict=True)
            ]
            expected = pack_sequences(sequences, keys=row.keys, tasks=row.tasks)
            assert content([row]) == content([expected])
            for name in ("positions_T", "predictors_N", "sequence_N"):
                assert getattr(row, name).tolist() == getattr(expected, name).tolist()


def noise_of(data: TrainingData, **noise: float) -> Iterator[tuple[str, int, int]]:
    """What was seen and what it should have been, for each token of asr and t2s that differs."""
    mix = [{"task": "asr", "weight": 1}, {"task": "t2s", "weight": 1}]
    clean = TokenStream(data, recipe_of(mix), seed=0)
    noisy = TokenStream(data, recipe_of(mix, sequence={"max_length": 64, **noise}), seed=0)
    for expected, seen in zip(batches(clean, 60), batches(noisy, 60), strict=True):
        assert seen.targets_N.tolist() == expected.targets_N.tolist()
        tasks = np.repeat(seen.tasks, seen.lengths)
        for place in np.flatnonzero(seen.tokens_T != expected.tokens_T).tolist():
            yield tasks[place], int(seen.tokens_T[place]), int(expected.tokens_T[place])


def test_unit_noise_puts_other_units_in_the_place_of_units_of_the_source(data: TrainingData) -> None:
    changes = list(noise_of(data, unit_noise=0.5))
    assert len(changes) > 100
    units = data.vocabulary.speech
    assert all(task == "asr" and seen in units and clean in units for task, seen, clean in changes)


def test_text_noise_puts_other_words_in_the_place_of_words_of_the_target(data: TrainingData) -> None:
    changes = list(noise_of(data, text_noise=0.9))
    assert len(changes) > 100
    words = range(100, 120)  # EOS, which closes the target, is not among them
    assert all(task == "asr" and seen in words and clean in words for task, seen, clean in changes)


def test_target_unit_noise_puts_other_units_of_the_speech_in_the_place_of_what_was_said(
    data: TrainingData,
) -> None:
    changes = list(noise_of(data, target_unit_noise=0.9))
    assert len(changes) > 100
    units = data.vocabulary.speech  # the closing tag is not among them
    assert all(task == "t2s" and seen in units and clean in units for task, seen, clean in changes)


def test_noise_on_targets_stays_within_its_sequence(data: TrainingData) -> None:
    recipe = recipe_of([{"task": "t2s", "weight": 1}], sequence={"max_length": 64, "target_unit_noise": 0.9})
    for row in batches(TokenStream(data, recipe, seed=0), 30):
        clean_T = row.tokens_T.clone()
        clean_T[row.predictors_N + 1] = row.targets_N
        for seen, clean in zip(row.tokens_T.split(row.lengths), clean_T.split(row.lengths), strict=True):
            assert set(seen.tolist()) <= set(clean.tolist())


def test_noise_on_the_units_of_targets_leaves_the_other_noise_as_it_was(data: TrainingData) -> None:
    without = list(noise_of(data, unit_noise=0.3, text_noise=0.3))
    with_it = [change for change in noise_of(data, **NOISES) if change[0] == "asr"]
    assert without == with_it


def test_a_share_of_the_units_is_noise(data: TrainingData) -> None:
    num_units = 0
    stream = TokenStream(data, recipe_of([{"task": "asr", "weight": 1}]), seed=0)
    for row in batches(stream, 60):
        num_units += int((row.targets_N >= data.vocabulary.speech.start).sum()) - len(row.lengths)
    mix = [{"task": "asr", "weight": 1}]
    noisy = TokenStream(data, recipe_of(mix, sequence={"max_length": 64, "unit_noise": 0.5}), seed=0)
    changed = sum(
        int((a.tokens_T != b.tokens_T).sum())
        for a, b in zip(
            batches(noisy, 60), batches(TokenStream(data, recipe_of(mix), seed=0), 60), strict=True
        )
    )
    assert changed / num_units == pytest.approx(0.5 * 19 / 20, abs=0.05)  # one unit in 20 is drawn again


def test_every_token_is_read_from_the_right_shard(
    token_shards: Path, copies: Callable[[int], list[Path]]
) -> None:
    data = open_training_data(copies(2), limit=10)
    samples = list(iter_samples(token_shards))
    samples = 2 * (samples[:20] + samples[29:50])  # up to the last within the limit in each shard of 29
    assert data.keys.take(np.arange(len(samples))) == [sample.key for sample in samples]
    rows = np.flatnonzero([sample.speech_tokens is not None for sample in samples])
    np.random.default_rng(0).shuffle(rows)
    tokens, counts = data.tokens.read(rows, "speech")
    np.testing.assert_array_equal(tokens, np.concatenate([samples[row].speech_tokens for row in rows]))
    assert counts.tolist() == [len(samples[row].speech_tokens) for row in rows]
    assert data.keys.take(rows) == [samples[row].key for row in rows]
    assert data.keys[70] == samples[70].key


def test_no_shards_is_an_error() -> None:
    with pytest.raises(ConfigError, match="--shards"):
        open_training_data([])
