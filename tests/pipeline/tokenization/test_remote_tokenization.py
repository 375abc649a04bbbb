"""`tokenize --out s3://…`: uploaded shard by shard, the card last, by one machine or several."""

import logging
import os
import runpy
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from dmlm.cli import run
from dmlm.pipeline.errors import ConfigError, ExitCode, FingerprintMismatchError, StorageError
from dmlm.pipeline.remote import folder as remote_folder
from dmlm.pipeline.remote.datasets import fetch_dataset
from dmlm.pipeline.remote.folder import RemoteFolder
from dmlm.pipeline.shards import verify_dataset
from dmlm.pipeline.tokenization.planning import TokenizeConfig
from dmlm.pipeline.tokenization.running import tokenize, tokenize_share
from dmlm.trainer.data.dataset import open_training_data

ADDRESS = "s3://bucket/shards/speech"
Content = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def on_machine(
    server: Any, settings: Callable[..., TokenizeConfig], tiny_corpora: Path, tmp_path: Path
) -> Callable[..., TokenizeConfig]:
    """Function that gives the settings on a machine of its own, which shares nothing but the address."""

    def make(machine: str, **changes: object) -> TokenizeConfig:
        remote = RemoteFolder(ADDRESS, tmp_path / machine / "out")
        return replace(settings(tiny_corpora, remote.local, **changes), remote=remote)

    return make


def uploaded(server: Any) -> list[str]:
    return [name.removeprefix("shards/speech/") for name in server.names("PUT")]


def shards_in(names: list[str]) -> list[str]:
    return [name for name in names if name.endswith((".tar", ".parquet"))]


def test_a_data_set_at_an_address_has_the_bytes_of_a_local_one(
    on_machine: Callable[..., TokenizeConfig],
    server: Any,
    content: Content,
    tiny_dataset: Path,
    tmp_path: Path,
) -> None:
    assert tokenize(on_machine("one")).num_out == 8
    names = uploaded(server)
    assert names[:3] == ["run.json", "librispeech-000000.tar", "librispeech-000000.parquet"]
    assert names[-1] == "dataset.json"
    assert len(names) == len(set(names))
    elsewhere = fetch_dataset(RemoteFolder(ADDRESS, tmp_path / "elsewhere"))
    assert content(elsewhere) == content(tiny_dataset)
    assert verify_dataset(elsewhere).num_samples == len(open_training_data([elsewhere]).keys) == 8


def test_killed_between_uploads_it_goes_on_on_another_machine(
    on_machine: Callable[..., TokenizeConfig],
    server: Any,
    content: Content,
    tiny_dataset: Path,
    processes: ForkServerContext,
    tmp_path: Path,
) -> None:
    started = []

    def kill(method: str, name: str) -> None:
        if method == "PUT" and name.endswith("000001.parquet") and not started[0].exitcode:
            started[0].kill()
            started[0].join()

    server.answer = kill
    script = tmp_path / "run.py"
    script.write_text("import os; os.environ.update(environment); tokenize(config)")
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    known = {"tokenize": tokenize, "environment": environment, "config": on_machine("one")}
    started.append(processes.Process(target=runpy.run_path, args=(str(script), known)))
    started[0].start()
    started[0].join(200)
    assert started[0].exitcode == -9
    assert uploaded(server)[-2:] == ["librispeech-000001.tar", "librispeech-000001.parquet"]
    server.answer = lambda method, name: None
    before = len(server.requests)
    tokenize(on_machine("two"))
    after = [name for method, name in server.requests[before:] if method == "PUT"]
    assert "shards/speech/librispeech-000000.tar" not in after
    elsewhere = fetch_dataset(RemoteFolder(ADDRESS, tmp_path / "elsewhere"))
    assert content(elsewhere) == content(tiny_dataset)


def test_a_job_array_on_machines_that_share_nothing_is_published_by_any(
    on_machine: Callable[..., TokenizeConfig],
    server: Any,
    bucket: Any,
    content: Content,
    tiny_dataset: Path,
    tmp_path: Path,
) -> None:
    for index in (1, 0):
        tokenize_share(on_machine(f"machine {index}"), index, 2)
    assert not bucket.exists(f"{ADDRESS}/dataset.json")
    done = shards_in(uploaded(server))
    assert len(done) == len(set(done)) == 2 * len(list(tiny_dataset.glob("*.tar")))
    tokenize(on_machine("machine 2"))
    assert shards_in(uploaded(server)) == done
    elsewhere = fetch_dataset(RemoteFolder(ADDRESS, tmp_path / "elsewhere"))
    assert content(elsewhere) == content(tiny_dataset)


def test_what_is_complete_is_left_alone_and_what_is_damaged_is_repaired(
    on_machine: Callable[..., TokenizeConfig], server: Any, bucket: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tokenize(on_machine("one"))
    server.requests.clear()
    with caplog.at_level(logging.WARNING):
        tokenize(on_machine("two"))
    assert "is complete already" in caplog.text
    assert uploaded(server) == []
    for name in ("librispeech-000001.tar", "codebook/codebook.json"):
        bucket.pipe(f"{ADDRESS}/{name}", b"damaged")
    bucket.rm(f"{ADDRESS}/librispeech-000000.parquet")
    server.requests.clear()
    tokenize(on_machine("one"))
    assert sorted(uploaded(server)) == [
        "codebook/codebook.json",
        "librispeech-000000.parquet",
        "librispeech-000001.tar",
    ]


def test_a_card_that_was_not_uploaded_is_uploaded_by_the_next_run(
    on_machine: Callable[..., TokenizeConfig],
    server: Any,
    bucket: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote_folder, "MAX_ATTEMPTS", 1)
    server.answer = lambda method, name: 500 if (method, name[-12:]) == ("PUT", "dataset.json") else None
    with pytest.raises(StorageError, match=f"{ADDRESS}/dataset.json"):
        tokenize(on_machine("one"))
    assert not bucket.exists(f"{ADDRESS}/dataset.json")
    server.answer = lambda method, name: None
    server.requests.clear()
    tokenize(on_machine("one"))
    assert uploaded(server) == ["dataset.json"]


def test_an_address_of_other_settings_or_other_things_is_refused_and_left_alone(
    on_machine: Callable[..., TokenizeConfig], server: Any, bucket: Any
) -> None:
    tokenize_share(on_machine("one"), 0, 3)
    before = bucket.find(ADDRESS)
    with pytest.raises(FingerprintMismatchError, match=f"{ADDRESS} holds a data set of other settings"):
        tokenize(on_machine("two", samples_per_shard=4))
    assert bucket.find(ADDRESS) == before
    assert not on_machine("two").out_dir.exists()
    bucket.rm(f"{ADDRESS}/run.json")
    with pytest.raises(ConfigError, match=f"{ADDRESS} is not empty"):
        tokenize(on_machine("three"))


def test_a_finished_data_set_of_another_corpus_is_refused(
    on_machine: Callable[..., TokenizeConfig], server: Any, root: Path
) -> None:
    tokenize(on_machine("one"))
    server.requests.clear()
    (root / "LibriSpeech" / "train-tiny" / "7" / "9" / "7-9-0000.flac").write_bytes(b"another")
    message = f"the corpus has changed since.*delete dataset.json at {ADDRESS} and in "
    with pytest.raises(FingerprintMismatchError, match=message):
        tokenize(replace(on_machine("two"), root=root))
    assert uploaded(server) == []


def test_commands_take_addresses(
    server: Any, bucket: Any, tiny_corpora: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket.put(str(tiny_corpora / "coco"), "bucket/data/coco", recursive=True)
    command = ["tokenize", "--source", "coco", "--root", "s3://bucket/data", "--out", "s3://bucket/coco"]
    command += ["--codebook", str(tiny_corpora / "codebook")]
    assert run([*command, "--workers", "1"]) == ExitCode.OK
    capsys.readouterr()
    assert run(["verify", "--shards", "s3://bucket/coco"]) == ExitCode.OK
    assert "coco: whole; 1 shards, 12 samples" in capsys.readouterr().out
    content = bytearray(bucket.cat("bucket/coco/coco-000000.tar"))
    content[2000] ^= 1
    bucket.pipe("bucket/coco/coco-000000.tar", bytes(content))
    assert run(["verify", "--shards", "s3://bucket/coco"]) == ExitCode.CORRUPT_INPUT
    assert "s3://bucket/coco/coco-000000.tar: not the file" in capsys.readouterr().err
    assert b"canary-of-the-key" not in b"".join(map(bucket.cat, bucket.find("bucket/coco")))
    assert str(tiny_corpora).encode() not in bucket.cat("bucket/coco/run.json")


def test_a_mirror_that_was_only_read_can_be_repaired_and_published(
    on_machine: Callable[..., TokenizeConfig], server: Any, bucket: Any
) -> None:
    tokenize(on_machine("one"))
    two = on_machine("two")
    fetch_dataset(RemoteFolder(ADDRESS, two.out_dir))
    bucket.pipe(f"{ADDRESS}/librispeech-000001.tar", b"damaged")
    server.requests.clear()
    tokenize(two)
    assert uploaded(server) == ["librispeech-000001.tar"]


@pytest.mark.parametrize("was_read", [False, True])
def test_a_mirror_of_what_was_at_the_address_before_is_not_in_the_way(
    on_machine: Callable[..., TokenizeConfig], bucket: Any, tmp_path: Path, was_read: bool
) -> None:
    tokenize(on_machine("one", samples_per_shard=4))
    if was_read:
        (on_machine("one").out_dir / "run.json").unlink()
    bucket.rm(ADDRESS, recursive=True)
    assert tokenize(on_machine("one")).num_out == 8
    assert verify_dataset(fetch_dataset(RemoteFolder(ADDRESS, tmp_path / "elsewhere"))).num_shards == 3
