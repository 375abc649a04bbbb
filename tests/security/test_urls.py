"""No shell and no network from data: what is no local folder is refused, and what is read opens neither."""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

import dmlm.trainer.loop  # noqa: F401 (imports may start processes, reading may not)
from dmlm.cli import run
from dmlm.pipeline.errors import ConfigError, ExitCode
from dmlm.pipeline.shards import iter_samples, load_dataset_card, open_shard, verify_dataset

ADDRESSES = (
    "pipe:touch canary",
    "pipe:cat x.tar",
    "file:x.tar",
    "file:///etc/passwd",
    "http://127.0.0.1:9/x-000000.tar",
    "https://127.0.0.1:9/x",
    "s3://bucket/x",
    "gs://bucket/x",
    "hf://datasets/x",
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
)


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


@pytest.mark.parametrize("address", ADDRESSES)
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
