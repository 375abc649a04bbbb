"""Shards that `--reuse` takes tokens from, one by one; test_reuse.py has whole runs."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dmlm.pipeline.errors import ShardCorruptError
from dmlm.pipeline.samples import Modality, Sample, Utterance
from dmlm.pipeline.shards import iter_samples, load_dataset_card, open_shard, write_shard
from dmlm.pipeline.tokenization.reuse import EarlierDataset, _EarlierShard
from dmlm.pipeline.tokenization.shard_tasks import ShardTask
from dmlm.pipeline.vocabulary import Vocabulary

RATE_HZ = 16_000


def test_a_whole_shard_that_is_not_the_one_of_the_card_is_refused(tiny_dataset: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(tiny_dataset, tmp_path / "earlier")
    card = load_dataset_card(directory)
    first = card.shards[0]
    samples = [
        replace(sample, speech_tokens=np.zeros_like(sample.speech_tokens))
        for sample in list(iter_samples(directory))[: first.num_samples]
    ]
    write_shard(
        directory, first.name, samples, card.vocabulary, task_sha256=first.task_sha256, num_in=len(samples)
    )
    earlier = EarlierDataset(
        directory=directory,
        modalities=frozenset([Modality.SPEECH]),
        records={record.name: record for record in card.shards},
        sampling_rate_hz=RATE_HZ,
    )
    with pytest.raises(ShardCorruptError, match="missing or damaged"):
        earlier.look_up(ShardTask(name=first.name, items=()))


def test_the_length_of_a_recording_comes_back_exactly(tmp_path: Path) -> None:
    length = next(n for n in range(1, RATE_HZ) if int(n / RATE_HZ * RATE_HZ) != n)
    sample = Sample(
        key="k",
        source="s",
        split="train",
        duration_seconds=length / RATE_HZ,
        speech_tokens=np.array([1, 2], np.int32),
    )
    vocabulary = Vocabulary(num_text=1, num_speech=9, num_image=0, bos_id=0, eos_id=0)
    write_shard(tmp_path, "x-000000", [sample], vocabulary, task_sha256="t", num_in=1)
    item = Utterance(key="k", source="s", split="train", audio_path=tmp_path / "a.wav")
    shard = _EarlierShard(open_shard(tmp_path, "x-000000"), RATE_HZ)
    outcomes = shard.speech(ShardTask(name="x", items=(item,)))
    assert outcomes is not None
    assert outcomes["k"].length == length
