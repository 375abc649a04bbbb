"""A data set on a server of S3 is read as the one that was put there, and as no other."""

import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dmlm.cli import run
from dmlm.pipeline.errors import CorruptInputError, ExitCode, ShardCorruptError
from dmlm.pipeline.remote.datasets import STALE_SECONDS, fetch_dataset, fetch_missing, send_dataset
from dmlm.pipeline.remote.folder import RemoteFolder
from dmlm.pipeline.remote.options import dataset_folder
from dmlm.pipeline.samples import Sample
from dmlm.pipeline.shards import load_dataset_card
from dmlm.trainer.data.dataset import open_training_data

ADDRESS = "s3://bucket/shards/toy"
FILES = ("toy-000000.tar", "toy-000001.parquet", "dataset.json")


@pytest.fixture
def published(server: Any, token_shards: Path) -> RemoteFolder:
    """The toy data set, uploaded."""
    remote = RemoteFolder(ADDRESS, token_shards)
    send_dataset(remote, load_dataset_card(token_shards))
    server.requests.clear()
    return remote


def flip_a_byte(bucket: Any, name: str) -> None:
    content = bytearray(bucket.cat(f"{ADDRESS}/{name}"))
    content[len(content) // 2] ^= 1
    bucket.pipe(f"{ADDRESS}/{name}", bytes(content))


def test_the_trainer_reads_a_data_set_at_an_address(published: RemoteFolder, tmp_path: Path) -> None:
    local = dataset_folder(ADDRESS)
    assert local.parent == tmp_path / "cache"
    here, there = open_training_data([local]), open_training_data([published.local])
    assert here.identities == there.identities
    assert here.index.equals(there.index)
    for name in FILES:
        assert (local / name).read_bytes() == (published.local / name).read_bytes()


def test_the_card_is_sent_last_and_fetched_last(server: Any, token_shards: Path, tmp_path: Path) -> None:
    remote = RemoteFolder(ADDRESS, token_shards)
    send_dataset(remote, load_dataset_card(token_shards))
    assert server.names("PUT")[-1] == "shards/toy/dataset.json"
    server.answer = lambda method, name: 404 if name.endswith("000001.tar") else None
    with pytest.raises(ShardCorruptError, match=f"{ADDRESS}/toy-000001.tar: not there"):
        fetch_dataset(RemoteFolder(ADDRESS, tmp_path / "here"))
    assert not (tmp_path / "here" / "dataset.json").exists()


def test_what_is_here_and_whole_is_not_fetched_again(published: RemoteFolder, server: Any) -> None:
    local = dataset_folder(ADDRESS)
    server.requests.clear()
    dataset_folder(ADDRESS)
    assert server.names("GET") == ["shards/toy/dataset.json"]
    (local / "toy-000000.tar").write_bytes(b"damaged here")
    dataset_folder(ADDRESS)
    assert sorted(server.names("GET"))[2:] == ["shards/toy/toy-000000.tar"]
    assert (local / "toy-000000.tar").read_bytes() == (published.local / "toy-000000.tar").read_bytes()


def test_processes_of_a_machine_fetch_a_data_set_once(published: RemoteFolder, server: Any) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(dataset_folder, [ADDRESS] * 4))) == 1
    assert server.names("GET").count("shards/toy/toy-000000.tar") == 1


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_on_the_server_is_found_and_named(
    name: str, published: RemoteFolder, bucket: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flip_a_byte(bucket, name)
    assert run(["train", "--shards", ADDRESS, "--out", str(tmp_path / "run")]) == ExitCode.CORRUPT_INPUT
    error = capsys.readouterr().err
    assert f"{ADDRESS}/{name}: not {'a finished' if name == 'dataset.json' else 'the file'}" in error
    assert not list((tmp_path / "cache").rglob("dataset.json"))
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_a_folder_without_a_card_is_no_data_set(published: RemoteFolder, bucket: Any) -> None:
    bucket.rm(f"{ADDRESS}/dataset.json")
    for address in (ADDRESS, "s3://bucket/shards", "s3://bucket/none", "s3://nobucket/x"):
        with pytest.raises(ShardCorruptError, match=f"{address}: not a finished data set: dataset.json"):
            dataset_folder(address)


def test_a_data_set_that_was_replaced_replaces_its_mirror(
    published: RemoteFolder, bucket: Any, write_shards: Callable[..., Path], tmp_path: Path
) -> None:
    assert len(list(dataset_folder(ADDRESS).glob("*.tar"))) == 2
    samples = [Sample(key="only", source="toy", split="train")]
    other = write_shards(tmp_path / "other", samples, num_shards=1)
    bucket.rm(ADDRESS, recursive=True)
    send_dataset(RemoteFolder(ADDRESS, other), load_dataset_card(other))
    local = dataset_folder(ADDRESS)
    assert [path.name for path in local.glob("*.tar")] == ["toy-000000.tar"]
    assert load_dataset_card(local) == load_dataset_card(other)


def test_what_a_killed_run_left_in_the_mirror_is_removed(published: RemoteFolder) -> None:
    local = dataset_folder(ADDRESS)
    (local / "codebook").mkdir()
    names = ("toy-000000.tar.0123abcd.tmp", "codebook/codebook.json.0123abcd.tmp", "toy-1.tar.4567cdef.tmp")
    for name in names:
        (local / name).touch()
    for name in names[:2]:
        os.utime(local / name, (0, time.time() - STALE_SECONDS - 60))
    dataset_folder(ADDRESS)
    assert [path.name for path in local.rglob("*.tmp")] == [names[2]]  # somebody is writing it


def test_names_that_a_card_or_a_listing_makes_up_stay_in_the_mirror(
    published: RemoteFolder, bucket: Any, tmp_path: Path
) -> None:
    bucket.pipe(f"{ADDRESS}/sub/../../x", b"x")
    with pytest.raises(CorruptInputError, match="is no path of a file"):
        fetch_missing(RemoteFolder(ADDRESS, tmp_path / "here"), ["x"])
    card = json.loads(bucket.cat(f"{ADDRESS}/dataset.json"))
    card["files"]["../../escaped"] = "0" * 64
    bucket.pipe(f"{ADDRESS}/dataset.json", json.dumps(card).encode())
    with pytest.raises(ShardCorruptError, match="not a finished data set"):
        dataset_folder(ADDRESS)
    assert not list(tmp_path.rglob("escaped"))


def test_a_copy_made_by_other_tools_is_a_data_set(server: Any, bucket: Any, token_shards: Path) -> None:
    bucket.put(str(token_shards), "bucket/copied", recursive=True)
    local = dataset_folder("s3://bucket/copied/")
    shutil.rmtree(local)
    assert load_dataset_card(dataset_folder("s3://bucket/copied")) == load_dataset_card(token_shards)
