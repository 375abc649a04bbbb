"""The mix in other people's loops: stock webdataset and torch read it like any pipeline."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from torch.utils.data import DataLoader

from dmlm.pipeline.shards import iter_samples
from dmlm.trainer.config import recipe_from_json
from dmlm.trainer.data.dataset import open_training_data
from dmlm.trainer.data.stream import TokenStream
from dmlm.trainer.data.tasks import TASKS, TaskSequence

RECIPE = recipe_from_json(
    {
        "name": "r",
        "num_steps": 1,
        "mix": [{"task": "asr", "weight": 3}, {"task": "i2t", "weight": 1}],
        "sequence": {"max_length": 64},
        "batch": {"max_tokens": 128, "num_micro_batches": 2},
    }
)


def open_stream(shards: Path, **ranks: int) -> TokenStream:
    return TokenStream(open_training_data([shards]), RECIPE, seed=0, **ranks)


def names(samples: Iterator[Mapping[str, Any]], count: int) -> list[tuple[str, str]]:
    return [(sample["task"], sample["__key__"]) for sample in islice(samples, count)]


def test_dicts_hold_the_sequences_of_their_samples(
    token_shards: Path, build_sequence: Callable[..., TaskSequence]
) -> None:
    samples = {sample.key: sample for sample in iter_samples(token_shards)}
    stream = open_stream(token_shards)
    vocabulary = open_training_data([token_shards]).vocabulary
    num_tokens: Counter[str] = Counter()
    for entry in islice(stream.as_webdataset(), 300):
        task = TASKS[entry["task"]]
        expected = build_sequence(task, samples[entry["__key__"]], vocabulary, RECIPE.sequence)
        np.testing.assert_array_equal(entry["tokens"], expected.tokens_T)
        np.testing.assert_array_equal(entry["inputs"], expected.tokens_T)
        np.testing.assert_array_equal(entry["modality"], expected.modality_T)
        num_tokens[task.name] += len(entry["tokens"])
    assert num_tokens["asr"] / num_tokens.total() == pytest.approx(0.75, abs=0.01)


def test_a_webdataset_pipeline_takes_it_as_its_source(token_shards: Path) -> None:
    def pad(entries: list[dict[str, Any]]) -> torch.Tensor:
        tokens = [torch.from_numpy(entry["tokens"]) for entry in entries]
        return torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)

    stream = open_stream(token_shards)
    pipeline = webdataset.DataPipeline(stream.as_webdataset(), webdataset.batched(8, collation_fn=pad))
    batches = list(islice(pipeline, 3))
    assert all(batch.shape[0] == 8 and batch.dtype == torch.int64 for batch in batches)
    first = next(iter(stream.as_webdataset()))["tokens"]
    assert batches[0][0, : len(first)].tolist() == first.tolist()


@pytest.mark.parametrize("loader", [DataLoader, webdataset.WebLoader])
def test_workers_share_the_sequences_among_them(loader: Any, token_shards: Path) -> None:
    dataset = open_stream(token_shards).as_webdataset()
    alone = names(iter(dataset), 100)
    shared = names(iter(loader(dataset, batch_size=None, num_workers=2)), 100)
    assert shared == alone  # the loader takes from its workers in turn


def test_ranks_share_the_sequences_among_them(token_shards: Path) -> None:
    alone = names(iter(open_stream(token_shards).as_webdataset()), 100)
    first, second = (
        names(iter(open_stream(token_shards, rank=rank, world_size=2).as_webdataset()), 50)
        for rank in range(2)
    )
    assert [name for pair in zip(first, second, strict=True) for name in pair] == alone


def test_workers_of_all_ranks_share_the_sequences_among_them(token_shards: Path) -> None:
    alone = names(iter(open_stream(token_shards).as_webdataset()), 80)
    shared: list[tuple[str, str]] = []
    for rank in range(2):
        dataset = open_stream(token_shards, rank=rank, world_size=2).as_webdataset()
        shared += names(iter(DataLoader(dataset, batch_size=None, num_workers=2)), 40)
    assert sorted(shared) == sorted(alone)


def test_ranks_have_different_noise(token_shards: Path) -> None:
    recipe = replace(RECIPE, sequence=replace(RECIPE.sequence, unit_noise=0.5))
    data = open_training_data([token_shards])
    units = data.vocabulary.speech

    def noise_of(rank: int) -> np.ndarray:
        """Whether each of the first 300 units was changed."""
        dataset = TokenStream(data, recipe, seed=0, rank=rank, world_size=2).as_webdataset()
        changes = []
        for entry in islice(dataset, 100):
            are_units = (entry["tokens"] >= units.start) & (entry["tokens"] < units.stop)
            changes.append((entry["inputs"] != entry["tokens"])[are_units])
        return np.concatenate(changes)[:300]

    assert len(noise_of(0)) == 300
    assert (noise_of(0) == noise_of(0)).all()
    assert (noise_of(0) == noise_of(1)).mean() < 0.8
