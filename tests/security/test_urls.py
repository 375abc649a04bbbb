"""No shell and no network from data.

A data set is a local folder. Only an option that the user gives may name an address, of two schemes; it is
mirrored in a local folder first. What is read opens neither a socket nor a process.
"""

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

import dmlm.trainer.loop  # noqa: F401 (imports may start processes, reading may not)
from dmlm.cli import run
from dmlm.pipeline.errors import ConfigError, ExitCode, ShardCorruptError
from dmlm.pipeline.remote import datasets
from dmlm.pipeline.remote.options import dataset_folder
from dmlm.pipeline.shards import iter_samples, load_dataset_card, open_shard, verify_dataset
from dmlm.pipeline.shards.card import parse_dataset_card
from dmlm.pipeline.storage import encode_json, sha256_json

ADDRESSES = (
    "pipe:touch canary",
    "pipe:cat x.tar",
    "file:x.tar",
    "file:///etc/passwd",
    "http://127.0.0.1:9/x-000000.tar",
    "https://127.0.0.1:9/x",
    "gs://bucket/x",
    "hub:someone/something",
    "-",
    "|touch canary",
    "$(touch canary)",
    "`touch canary`",
    "x-{000000..999999}.tar",
    "{0..10000000000}",
    "x::y",
    "*.tar",
    "~/x",
    "\\\\127.0.0.1\\share",
    "s3://bucket/../x",
    "s3://bucket/*",
    "s3://bucket/x?versionId=1",
    "s3://x::http://127.0.0.1:9/x",
    "hf://",
    "hf:datasets/x",
    "S3://bucket/x",
    "memory://x",
    "simplecache::s3://bucket/x",
)
REACHABLE = ("s3://bucket/x", "hf://datasets/somebody/x")
"""What may be mirrored, when an option says so."""


@pytest.fixture(autouse=True)
def nothing_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Sockets, processes and shells fail; the working directory stays empty."""

    def refuse(*arguments: object, **options: object) -> NoReturn:
        pytest.fail(f"reached outside: {arguments[:2]}")

    for owner, names in {
        socket: ("socket", "create_connection", "getaddrinfo"),
        subprocess: ("Popen", "run", "call", "check_output"),
        os: ("system", "popen", "fork", "posix_spawn", "execv"),
    }.items():
        for name in names:
            monkeypatch.setattr(owner, name, refuse)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize("address", [*ADDRESSES, *REACHABLE])
def test_address_is_not_a_data_set(address: str) -> None:
    for read in (load_dataset_card, verify_dataset, lambda path: open_shard(path, "x-000000")):
        with pytest.raises(ConfigError, match="a data set is a local folder"):
            read(Path(address))


@pytest.mark.parametrize("address", ADDRESSES)
def test_commands_refuse_addresses_as_shards(
    address: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for command in (["verify"], ["train", "--out", str(tmp_path / "run")]):
        assert run([command[0], f"--shards={address}", *command[1:]]) == ExitCode.USAGE
        assert "no such folder" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_reading_a_data_set_opens_no_socket_and_no_process(dataset: Path) -> None:
    assert verify_dataset(dataset).num_samples == len(list(iter_samples(dataset))) == 3
    shard = open_shard(dataset, load_dataset_card(dataset).shards[0].name)
    assert len(shard.read_tokens(0, "speech")) == 16


@pytest.mark.parametrize("address", REACHABLE)
def test_only_the_fetching_of_an_option_reaches_an_address(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(datasets, "fetch_dataset", lambda remote, **_: fetched.append(remote.address))
    assert run(["index", f"--shards={address}"]) == ExitCode.USAGE  # works on tars, so it is not for mirrors
    assert fetched == []
    dataset_folder(address)
    assert fetched == [address]


def test_an_address_in_a_card_is_refused(dataset: Path) -> None:
    card = json.loads((dataset / "dataset.json").read_bytes())
    for name in ("s3://bucket/x", "hf://datasets/x/y", "/etc/passwd"):
        for change in ({"files": {name: "0" * 64}}, {"shards": [{**card["shards"][0], "name": name}]}):
            body = {**card, **change}
            del body["sha256"]
            content = encode_json({**body, "sha256": sha256_json(body)})
            with pytest.raises(ShardCorruptError, match=r"name that dmlm does not give|outside the data set"):
                parse_dataset_card(content, "somewhere")
