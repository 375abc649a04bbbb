import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest

from dmlm.pipeline.errors import ConfigError, FingerprintMismatchError, ShardCorruptError
from dmlm.pipeline.samples import Sample
from dmlm.trainer.config import Recipe, recipe_from_json
from dmlm.trainer.dataset import TrainingData, open_training_data
from dmlm.trainer.packing import PackedBatch
from dmlm.trainer.stream import TokenStream

EVERYTHING = [
    {"task": "asr", "weight": 6},
    {"task": "s2tt", "weight": 1},
    {"task": "t2s", "weight": 1},
    {"task": "i2t", "weight": 1},
    {"task": "image", "weight": 1},
]


def recipe_of(mix: list[dict[str, object]], **fields: object) -> Recipe:
    batch = {"max_tokens": 128, "num_open_rows": 3}
    return recipe_from_json(
        {"name": "r", "num_steps": 1, "mix": mix, "sequence": {"max_length": 64}, "batch": batch, **fields}
    )


@pytest.fixture(scope="module")
def data(token_shards: Path) -> TrainingData:
    return open_training_data([token_shards])


def batches(stream: TokenStream, count: int) -> list[PackedBatch]:
    return [stream.next_batch() for _ in range(count)]


def content(rows: list[PackedBatch]) -> list[object]:
    return [(row.keys, row.tasks, row.tokens_T.tolist(), row.targets_N.tolist()) for row in rows]


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
    stream = TokenStream(data, recipe_of([{"task": "asr", "weight": 1}], batch={"num_open_rows": 1}), seed=0)
    (group,) = stream.groups
    epochs = [[group.draw(0) for _ in group.rows_N] for _ in range(3)]
    assert all(sorted(epoch) == list(range(len(group.rows_N))) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("cut", [0, 1, 7, 40])
def test_a_restored_stream_goes_on_exactly_with_its_open_rows(data: TrainingData, cut: int) -> None:
    recipe = recipe_of(EVERYTHING, sequence={"max_length": 64, "unit_noise": 0.3, "text_noise": 0.3})
    stream = TokenStream(data, recipe, seed=3)
    batches(stream, cut)
    state = json.loads(json.dumps(stream.state()))
    assert cut == 0 or len(state["open_rows"]) == 3
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
    with pytest.raises(ConfigError, match=r"splits dev; the shards hold sources toy, .* splits test, train"):
        TokenStream(data, recipe_of(EVERYTHING, splits=["dev"]), seed=0)


def test_noise_changes_what_is_seen_and_not_what_is_predicted(data: TrainingData) -> None:
    mix = [{"task": "asr", "weight": 1}]
    clean = TokenStream(data, recipe_of(mix), seed=0).next_batch()
    noisy = TokenStream(
        data, recipe_of(mix, sequence={"max_length": 64, "unit_noise": 0.5}), seed=0
    ).next_batch()
    assert noisy.targets_N.tolist() == clean.targets_N.tolist()
    assert 0 < int((noisy.tokens_T != clean.tokens_T).sum()) < len(clean.tokens_T)


def test_a_limit_counts_samples_of_each_data_set(token_shards: Path) -> None:
    assert len(open_training_data([token_shards], limit=5).index) == 5
    assert len(open_training_data([token_shards, token_shards], limit=40).index) == 80


def test_tokens_of_several_data_sets_are_read_from_the_right_shard(token_shards: Path) -> None:
    data = open_training_data([token_shards, token_shards], limit=50)
    for row in range(100):
        twin = data.read_sample((row + 50) % 100, ())
        sample = data.read_sample(row, ())
        assert sample.key == twin.key == data.index["key"][row].as_py()
        if data.index["num_speech_tokens"][row].as_py():
            units = [data.read_sample(r, ("speech",)).speech_tokens for r in (row, (row + 50) % 100)]
            np.testing.assert_array_equal(*units)
            assert len(units[0]) == data.index["num_speech_tokens"][row].as_py()


def test_data_sets_of_different_tokenizers_are_refused(
    token_shards: Path, write_shards: Callable[..., Path], tmp_path: Path
) -> None:
    sample = Sample(key="a", source="s", split="train", speech_tokens=np.array([1], np.int32))
    other = write_shards(tmp_path / "other", [sample], speech_mark="another")
    with pytest.raises(FingerprintMismatchError, match=r"sha256 is speech in .*toy and another in .*other"):
        open_training_data([token_shards, other])


@pytest.mark.parametrize(
    ("missing", "message"),
    [(0, "its index does not fit its tokens"), (1, "has no text, but its index counts")],
)
def test_an_index_that_does_not_fit_its_tokens_is_found(
    token_shards: Path, missing: int, message: str
) -> None:
    data = open_training_data([token_shards])
    counts = data.index["num_text_tokens"]
    counts = pc.if_else(pc.greater(counts, 0), pc.add(counts, 1), missing)
    column = data.index.schema.get_field_index("num_text_tokens")
    wrong = data.index.set_column(column, data.index.schema.field(column), counts)
    broken = TrainingData(**{**vars(data), "index": wrong})
    with pytest.raises(ShardCorruptError, match=message):
        batches(TokenStream(broken, recipe_of([{"task": "asr", "weight": 1}]), seed=0), 1)


def test_no_shards_is_an_error() -> None:
    with pytest.raises(ConfigError, match="--shards"):
        open_training_data([])
