"""Rows built at once; test_stream.py compares them with sequences built one by one."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from dmlm.pipeline.errors import ShardCorruptError
from dmlm.pipeline.shards import load_dataset_card, open_shard
from dmlm.trainer.config import Recipe, recipe_from_json
from dmlm.trainer.data.dataset import open_training_data
from dmlm.trainer.data.rows import _collapse_runs
from dmlm.trainer.data.stream import TokenStream

NUM_UNITS = 20


def recipe_of(**sequence: object) -> Recipe:
    return recipe_from_json(
        {
            "name": "r",
            "num_steps": 1,
            "mix": [{"task": "asr", "weight": 1}],
            "sequence": {"max_length": 64, **sequence},
            "batch": {"max_tokens": 128},
        }
    )


def test_every_row_has_noise_of_its_own(token_shards: Path) -> None:
    stream = TokenStream(open_training_data([token_shards]), recipe_of(unit_noise=0.5), seed=0)
    first, again, second = (stream._builder.build([0, 1, 2], number).inputs_T for number in (0, 0, 1))
    assert first.tolist() == again.tolist() != second.tolist()


def test_a_unit_equal_to_the_tag_before_it_is_no_part_of_a_run() -> None:
    tokens = np.array([7, 7, 7, 8, 8], np.int32)  # a tag, three units, a tag
    kept, lengths = _collapse_runs(tokens, np.array([1, 3, 1]), np.array([False, True, False]))
    assert (kept.tolist(), lengths.tolist()) == ([7, 7, 8, 8], [1, 2, 1])


def test_an_id_outside_the_vocabulary_stops_the_training(token_shards: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(token_shards, tmp_path / "toy")
    for record in load_dataset_card(directory).shards:
        path = directory / f"{record.name}.tar"
        content = bytearray(path.read_bytes())
        for offset, size in open_shard(directory, record.name).spans("speech.npy").tolist():
            if offset >= 0:
                content[offset + size - 4 : offset + size] = NUM_UNITS.to_bytes(4, "little")
        path.write_bytes(content)
    stream = TokenStream(open_training_data([directory]), recipe_of(), seed=0)
    with pytest.raises(ShardCorruptError, match=r"ids must be in \[0, 20\), found 20"):
        stream.next_step()
