"""`--root` at an address: all files below it, mirrored before the work begins."""

import logging
from pathlib import Path
from typing import Any

import pytest

from dmlm.pipeline.commands import resolve_root
from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.remote.options import cache_dir, folder
from dmlm.pipeline.sources import open_source

FILES = {
    "LibriSpeech/dev-tiny/7/9/7-9.trans.txt": b"7-9-0000 HELLO\n",
    "LibriSpeech/dev-tiny/7/9/7-9-0000.flac": b"no real one",
    "a name with spaces/é.txt": b"",
}


@pytest.fixture
def corpus(server: Any, bucket: Any) -> dict[str, bytes]:
    """On the server, beside a folder whose name begins with its own."""
    for name, content in FILES.items():
        bucket.pipe(f"bucket/data/{name}", content)
    bucket.pipe("bucket/data-of-others/x", b"x")
    server.requests.clear()
    return FILES


def content_of(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def test_a_corpus_is_mirrored_after_saying_how_much_it_is(
    corpus: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        root = resolve_root(folder("s3://bucket/data"), "librispeech")
    assert "s3://bucket/data: 3 files, 0.0 MB; to be fetched into" in caplog.text
    assert content_of(root) == corpus
    assert [item.key for item in open_source("librispeech", root, None).iter_items()] == ["7-9-0000"]


def test_only_what_changed_is_fetched_again(corpus: dict[str, bytes], server: Any, bucket: Any) -> None:
    resolve_root(folder("s3://bucket/data"), None)
    bucket.pipe("bucket/data/new.txt", b"new")
    bucket.rm("bucket/data/LibriSpeech/dev-tiny/7/9/7-9-0000.flac")
    server.requests.clear()
    root = resolve_root(folder("s3://bucket/data"), None)
    assert server.names("GET") == ["data/new.txt"]
    assert set(content_of(root)) == {*corpus, "new.txt"} - {"LibriSpeech/dev-tiny/7/9/7-9-0000.flac"}


def test_markers_of_empty_folders_are_no_files(corpus: dict[str, bytes], bucket: Any) -> None:
    bucket.pipe("bucket/data/LibriSpeech/", b"")
    assert content_of(resolve_root(folder("s3://bucket/data"), None)) == corpus


def test_nothing_at_the_address_is_an_error(server: Any) -> None:
    with pytest.raises(ConfigError, match="s3://bucket/dat: nothing there"):
        resolve_root(folder("s3://bucket/dat"), None)


def test_a_file_at_the_address_is_named_as_one(server: Any, bucket: Any) -> None:
    bucket.pipe("bucket/data/my.jsonl", b"{}")
    with pytest.raises(ConfigError, match=r"my.jsonl: a file; give the address of its folder"):
        resolve_root(folder("s3://bucket/data/my.jsonl"), "jsonl")


@pytest.mark.parametrize("name", ["XDG_CACHE_HOME", "DMLM_CACHE"])
def test_an_empty_variable_puts_no_mirror_into_the_working_folder(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("XDG_CACHE_HOME", "DMLM_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, "")
    assert cache_dir() == Path.home() / ".cache" / "dmlm" / "remote"
