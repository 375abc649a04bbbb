"""A server that fails or hangs: what passes is waited for, what stays is an error in bounded time."""

import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dmlm.cli import run
from dmlm.pipeline.errors import ConfigError, ExitCode, MissingDependencyError, StorageError
from dmlm.pipeline.remote import folder as remote_folder
from dmlm.pipeline.remote.folder import RemoteFolder

ADDRESS = "s3://bucket/some/folder"
CONTENT = bytes(range(256)) * 4096
LIMIT_SECONDS = 30


@pytest.fixture
def remote(server: Any, bucket: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RemoteFolder:
    """A folder with one file, of a server that is soon given up."""
    monkeypatch.setattr(remote_folder, "READ_SECONDS", 1.0)
    monkeypatch.setattr(remote_folder, "MAX_ATTEMPTS", 2)
    bucket.pipe(f"{ADDRESS}/file", CONTENT)
    server.requests.clear()
    return RemoteFolder(ADDRESS, tmp_path / "mirror")


def at_first(reply: Any) -> Callable[[str, str], Any]:
    """The reply to the first request for each file."""
    seen: Counter[tuple[str, str]] = Counter()

    def answer(method: str, name: str) -> Any:
        seen[method, name] += 1
        return reply if name and seen[method, name] == 1 else None

    return answer


@pytest.mark.parametrize("status", [500, 502, 503])
def test_an_error_that_passes_is_not_noticed(status: int, remote: RemoteFolder, server: Any) -> None:
    server.answer = at_first(status)
    remote.fetch("file")
    assert (remote.local / "file").read_bytes() == CONTENT
    (remote.local / "new").write_bytes(CONTENT)
    remote.send("new")
    assert server.names("PUT") == ["some/folder/new"] * 2


def test_a_reply_that_breaks_off_is_gone_on_with(remote: RemoteFolder, server: Any) -> None:
    server.answer = at_first(lambda body: body[: len(body) // 2])
    remote.fetch("file")
    assert (remote.local / "file").read_bytes() == CONTENT


def test_a_server_that_always_fails_is_given_up(
    remote: RemoteFolder, server: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    server.answer = lambda method, name: 500
    start = time.monotonic()
    assert run(["train", "--shards", ADDRESS, "--out", str(tmp_path / "run")]) == ExitCode.STORAGE
    assert time.monotonic() - start < LIMIT_SECONDS
    assert f"error: {ADDRESS}/dataset.json: " in (message := capsys.readouterr().err)
    assert "run the same command again" in message
    assert "canary-of-the-key" not in message
    assert "Traceback" not in message


def test_a_server_that_hangs_is_noticed(remote: RemoteFolder, server: Any) -> None:
    server.answer = lambda method, name: time.sleep(3)
    start = time.monotonic()
    with pytest.raises(StorageError, match=f"{ADDRESS}/file: .*[Tt]imeout"):
        remote.fetch("file")
    assert time.monotonic() - start < LIMIT_SECONDS
    assert list(remote.local.iterdir()) == []


def test_a_slow_server_is_waited_for(remote: RemoteFolder, server: Any) -> None:
    server.answer = lambda method, name: time.sleep(0.5)
    remote.fetch("file")
    assert (remote.local / "file").read_bytes() == CONTENT


def test_what_was_taken_and_is_not_there_is_an_error(remote: RemoteFolder, server: Any) -> None:
    server.answer = lambda method, name: 200 if method == "PUT" else None
    remote.local.mkdir()
    (remote.local / "new").write_bytes(CONTENT)
    with pytest.raises(StorageError, match=f"{ADDRESS}/new: uploaded, but sha256"):
        remote.send("new")


def test_no_right_to_write_is_an_error_at_once(remote: RemoteFolder, server: Any) -> None:
    server.answer = lambda method, name: 403 if method == "PUT" else None
    remote.local.mkdir()
    (remote.local / "new").write_bytes(CONTENT)
    with pytest.raises(StorageError, match=f"{ADDRESS}/new: PermissionError"):
        remote.send("new")
    assert server.names("PUT") == ["some/folder/new"]


def test_no_bucket_is_an_error(server: Any, tmp_path: Path) -> None:
    remote = RemoteFolder("s3://nobucket/x", tmp_path)
    (tmp_path / "new").write_bytes(CONTENT)
    with pytest.raises(StorageError, match="s3://nobucket/x/new: not there"):
        remote.send("new")


@pytest.mark.parametrize("scheme", ["s3", "hf"])
def test_no_server_is_an_error(
    scheme: str, remote: RemoteFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import fsspec

    nobody = "http://127.0.0.1:9"
    options = {"s3": {"endpoint_url": nobody}, "hf": {"endpoint": nobody}}
    monkeypatch.setattr(fsspec.config, "conf", options)
    address = f"{scheme}://datasets/somebody/something"
    with pytest.raises(StorageError, match=f"{address}/x: .*; check address, rights and network"):
        RemoteFolder(address, tmp_path).fetch("x")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from fsspec.registry import _registry

    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3", raising=False)
    with pytest.raises(MissingDependencyError, match=r'pip install "dmlm\[s3\]"'):
        RemoteFolder("s3://bucket/x", tmp_path).read("x")


@pytest.mark.parametrize(
    "address",
    [
        *(
            "s3://",
            "s3:///x",
            "s3://bucket//x",
            "s3://bucket/../x",
            "s3://bucket/x?y",
            "s3://key:word@host/x",
        ),
        *("s3://bucket/*", "s3://b::http://x", "S3://bucket/x", "gs://bucket/x", "http://x/y", "file:///x"),
    ],
)
def test_other_addresses_are_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no address that dmlm reads"):
        RemoteFolder.of(address, tmp_path)


def test_mirrors_of_two_addresses_are_two_folders(tmp_path: Path) -> None:
    addresses = ("s3://a/x", "s3://b/x", "s3://a/x/x", "hf://datasets/a/x", "hf://datasets/a/x@main")
    assert len({RemoteFolder.of(address, tmp_path).local for address in addresses}) == len(addresses)
    assert RemoteFolder.of("s3://a/x/", tmp_path) == RemoteFolder.of("s3://a/x", tmp_path)
