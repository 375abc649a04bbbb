"""Shards are hashed once, in the background; damage that no structure shows stops the run."""

import json
import os
import shutil
import time
from concurrent.futures import wait
from contextlib import closing
from pathlib import Path
from threading import Event

import pytest

from dmlm.pipeline.errors import ShardCorruptError
from dmlm.trainer.config import TrainConfig, recipe_from_json
from dmlm.trainer.data import shard_hashing
from dmlm.trainer.data.dataset import ShardFile, TrainingData, open_training_data
from dmlm.trainer.data.shard_hashing import MEMORY_NAME, ShardHasher
from dmlm.trainer.loop import train


@pytest.fixture
def shards(token_shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(token_shards, tmp_path / "toy"))


def open_data(shards: Path) -> TrainingData:
    return open_training_data([shards])


def flip_a_bit(tar: Path) -> None:
    """Of the json of a sample, which training never reads."""
    data = bytearray(tar.read_bytes())
    data[data.index(b'"source":"toy') + 12] ^= 1
    tar.write_bytes(data)


def check_all(shards: Path, run_dir: Path) -> set[str]:
    """What is remembered once everything was hashed."""
    with closing(ShardHasher(open_data(shards).files, run_dir)) as hasher:
        deadline = time.monotonic() + 20
        while hasher._waiting and time.monotonic() < deadline:
            hasher.check()
            time.sleep(0.002)
    return set(json.loads((run_dir / MEMORY_NAME).read_bytes()))


def test_whole_shards_are_remembered_and_not_hashed_again(shards: Path, tmp_path: Path) -> None:
    memory = check_all(shards, tmp_path)
    assert len(memory) == 2
    with closing(ShardHasher(open_data(shards).files, tmp_path)) as hasher:
        assert not hasher._waiting
    assert str(tmp_path) not in (tmp_path / MEMORY_NAME).read_text()


def test_what_was_hashed_is_written_once_a_minute_and_at_the_end(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, first_is_written, hash_file = open_data(shards).files, Event(), shard_hashing._hash

    def hash_in_turn(file: ShardFile) -> str:
        assert file == files[0] or first_is_written.wait(20)
        return hash_file(file)

    def num_remembered() -> int:
        return len(json.loads((tmp_path / MEMORY_NAME).read_bytes()))

    monkeypatch.setattr(shard_hashing, "_hash", hash_in_turn)
    with closing(ShardHasher(files, tmp_path)) as hasher:
        wait([hasher._waiting[0]], timeout=20)
        hasher.check()
        first_is_written.set()
        wait(hasher._waiting, timeout=20)
        hasher.check()
        assert not hasher._waiting
        assert num_remembered() == 1
    assert num_remembered() == len(files) == 2


def test_a_flipped_bit_that_only_the_hash_shows_is_found(shards: Path, tmp_path: Path) -> None:
    flip_a_bit(shards / "toy-000001.tar")
    with pytest.raises(ShardCorruptError, match=r"toy-000001.tar: sha256 mismatch \(expected .*, got"):
        check_all(shards, tmp_path)


def test_a_file_written_since_is_hashed_again(shards: Path, tmp_path: Path) -> None:
    check_all(shards, tmp_path)
    flip_a_bit(shards / "toy-000000.tar")
    with pytest.raises(ShardCorruptError, match=r"toy-000000\.tar"):
        check_all(shards, tmp_path)


def test_the_same_bytes_with_another_time_of_writing_pass(shards: Path, tmp_path: Path) -> None:
    check_all(shards, tmp_path)
    os.utime(shards / "toy-000000.tar", ns=(1, 1))
    assert len(check_all(shards, tmp_path)) == 3


@pytest.mark.parametrize("content", [b"", b"[1", b"7", b"{}"])
def test_a_damaged_memory_means_hashing_again(content: bytes, shards: Path, tmp_path: Path) -> None:
    (tmp_path / MEMORY_NAME).write_bytes(content)
    assert len(check_all(shards, tmp_path)) == 2


def test_training_stops_at_a_shard_that_is_not_its_card_s(shards: Path, tmp_path: Path) -> None:
    flip_a_bit(shards / "toy-000000.tar")
    recipe = recipe_from_json(
        {
            "name": "long",
            "num_steps": 100_000,
            "mix": [{"task": "text", "weight": 1}],
            "model": {"num_layers": 1, "width": 8, "num_heads": 1},
            "sequence": {"max_length": 32},
            "batch": {"max_tokens": 32},
        }
    )
    with pytest.raises(ShardCorruptError, match=r"toy-000000\.tar: sha256 mismatch"):
        train(TrainConfig(shards=(shards,), recipe=recipe, out_dir=tmp_path / "run", device="cpu"))
