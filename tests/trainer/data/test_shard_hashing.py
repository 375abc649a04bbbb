"""Shards are hashed once, in the background; damage that no structure shows stops the run."""

import json
import os
import shutil
import signal
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

from dmlm.pipeline.errors import ShardCorruptError
from dmlm.pipeline.storage import sha256_file
from dmlm.trainer.checkpoint import latest_checkpoint
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


def num_remembered(run_dir: Path) -> int:
    return len(json.loads((run_dir / MEMORY_NAME).read_bytes()))


def check_until_one_is_written(hasher: ShardHasher, run_dir: Path) -> None:
    deadline = time.monotonic() + 20
    while not (run_dir / MEMORY_NAME).is_file() and time.monotonic() < deadline:
        hasher.check()
        time.sleep(0.002)


def check_all(shards: Path, run_dir: Path) -> set[str]:
    """What is remembered once everything was hashed."""
    with closing(ShardHasher(open_data(shards).files, run_dir)) as hasher:
        assert hasher.wait(20)
    return set(json.loads((run_dir / MEMORY_NAME).read_bytes()))


def test_whole_shards_are_remembered_and_not_hashed_again(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = check_all(shards, tmp_path)
    assert len(memory) == 2
    hashed: list[Path] = []
    monkeypatch.setattr(shard_hashing, "sha256_file", hashed.append)
    assert check_all(shards, tmp_path) == memory
    assert not hashed
    assert str(tmp_path) not in (tmp_path / MEMORY_NAME).read_text()


def test_what_was_hashed_is_written_once_a_minute_and_at_the_end(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, first_is_written = open_data(shards).files, Event()

    def hash_in_turn(path: Path) -> str:
        assert path == files[0].path or first_is_written.wait(20)
        return sha256_file(path)

    monkeypatch.setattr(shard_hashing, "sha256_file", hash_in_turn)
    with closing(ShardHasher(files, tmp_path)) as hasher:
        check_until_one_is_written(hasher, tmp_path)
        first_is_written.set()
        hasher._thread.join(20)
        hasher.check()
        assert num_remembered(tmp_path) == 1
    assert num_remembered(tmp_path) == len(files) == 2


def test_a_disk_that_does_not_answer_keeps_no_process_and_loses_nothing(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = tmp_path / "silent.tar"
    os.mkfifo(silent)  # whoever reads it waits
    monkeypatch.setattr(shard_hashing, "_CLOSE_SECONDS", 0.2)
    files = [open_data(shards).files[0], ShardFile(path=silent, sha256="")]
    with closing(ShardHasher(files, tmp_path)) as hasher:
        check_until_one_is_written(hasher, tmp_path)
    assert num_remembered(tmp_path) == 1
    assert hasher._thread.is_alive()
    assert hasher._thread.daemon
    silent.open("wb").close()
    hasher._thread.join(20)
    assert not hasher._thread.is_alive()


def test_a_flipped_bit_that_only_the_hash_shows_is_found(shards: Path, tmp_path: Path) -> None:
    flip_a_bit(shards / "toy-000001.tar")
    with pytest.raises(ShardCorruptError, match=r"toy-000001.tar: sha256 mismatch \(expected .*, got"):
        check_all(shards, tmp_path)


def test_a_tar_that_was_deleted_is_named(shards: Path, tmp_path: Path) -> None:
    files = open_data(shards).files
    files[1].path.unlink()
    with closing(ShardHasher(files, tmp_path)) as hasher:
        hasher._thread.join(20)
        with pytest.raises(ShardCorruptError, match=r"^toy-000001\.tar: cannot be read"):
            hasher.check()
    assert num_remembered(tmp_path) == 1


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


def run_of(shards: Path, run_dir: Path, num_steps: int) -> TrainConfig:
    recipe = recipe_from_json(
        {
            "name": "long",
            "num_steps": num_steps,
            "save_every_steps": num_steps,
            "mix": [{"task": "text", "weight": 1}],
            "model": {"num_layers": 1, "width": 8, "num_heads": 1},
            "sequence": {"max_length": 32},
            "batch": {"max_tokens": 32},
        }
    )
    return TrainConfig(shards=(shards,), recipe=recipe, out_dir=run_dir, device="cpu")


def test_damage_stops_a_run_between_two_saves(shards: Path, tmp_path: Path) -> None:
    flip_a_bit(shards / "toy-000001.tar")
    with pytest.raises(ShardCorruptError, match=r"toy-000001\.tar: sha256 mismatch"):
        train(run_of(shards, tmp_path / "run", 100_000))
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_no_run_ends_well_on_a_shard_that_is_not_its_card_s(shards: Path, tmp_path: Path) -> None:
    flip_a_bit(shards / "toy-000001.tar")
    config = run_of(shards, tmp_path / "run", 1)
    for resume in (False, True):
        with pytest.raises(ShardCorruptError, match=r"toy-000001\.tar: sha256 mismatch"):
            train(replace(config, resume=resume))


def test_a_run_that_waits_for_hashes_can_be_stopped_and_has_saved_its_steps(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, is_stopped = run_of(shards, tmp_path / "run", 1), Event()

    def stop_the_run_while_it_waits(path: Path) -> str:
        deadline = time.monotonic() + 60
        while latest_checkpoint(config.out_dir) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        signal.raise_signal(signal.SIGTERM)
        assert is_stopped.wait(20)
        return sha256_file(path)

    with monkeypatch.context() as patch:
        patch.setattr(shard_hashing, "sha256_file", stop_the_run_while_it_waits)
        patch.setattr(shard_hashing, "_CLOSE_SECONDS", 0.2)
        with pytest.raises(KeyboardInterrupt, match="all steps are saved"):
            train(config)
    is_stopped.set()
    assert train(replace(config, resume=True)).checkpoint == config.out_dir / "checkpoint-000001"
    assert num_remembered(config.out_dir) == 2
