"""`tokenize` into a folder that is not new: kept, repaired, or refused, but never mixed."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dmlm.pipeline.errors import (
    BadSampleBudgetError,
    ConfigError,
    FingerprintMismatchError,
    ShardCorruptError,
)
from dmlm.pipeline.quarantine import LedgerEntry
from dmlm.pipeline.samples import Sample
from dmlm.pipeline.shards import load_dataset_card, verify_dataset
from dmlm.pipeline.shards.index import read_index
from dmlm.pipeline.tokenization.item_encoding import ItemEncoder
from dmlm.pipeline.tokenization.planning import TokenizeConfig
from dmlm.pipeline.tokenization.running import tokenize, tokenize_share


def flac(root: Path, number: int) -> Path:
    return root / "LibriSpeech" / "train-tiny" / "7" / "9" / f"7-9-{number:04d}.flac"


def test_running_again_on_a_complete_data_set_changes_nothing(
    settings: Callable[..., TokenizeConfig],
    tiny_corpora: Path,
    tiny_dataset: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_dataset.rglob("*") if path.name != "run.json"}
    with caplog.at_level(logging.WARNING):
        report = tokenize(settings(tiny_corpora, tiny_dataset))
    assert "is complete already" in caplog.text
    assert (report.num_in, report.num_out) == (8, 8)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_rate_is_that_of_the_audio_that_this_run_encoded(
    settings: Callable[..., TokenizeConfig], tiny_corpora: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    out_dir = shutil.copytree(tiny_dataset, tmp_path / "out")
    finished = tokenize(settings(tiny_corpora, out_dir))
    assert finished.new_audio_seconds == 0
    assert finished.table().endswith(f", {finished.audio_seconds:.0f} s of audio")
    (out_dir / "librispeech-000002.tar").unlink()  # its two utterances have 1.5 and 0.5 s
    resumed = tokenize(settings(tiny_corpora, out_dir))
    assert resumed.new_audio_seconds == pytest.approx(2.0)
    assert resumed.audio_seconds == finished.audio_seconds
    assert f" s of audio at {2.0 / resumed.seconds:.0f} times real time" in resumed.table()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limit": 2}, "settings.limit is None there, 2 now"),
        ({"samples_per_shard": 4}, "settings.samples_per_shard is 3 there, 4 now"),
        ({"source": "coco"}, "settings.source is librispeech there, coco now"),
    ],
)
def test_folder_of_other_settings_is_refused_and_left_alone(
    settings: Callable[..., TokenizeConfig],
    content: Callable[[Path], dict[str, bytes]],
    changes: dict[str, object],
    message: str,
    tiny_corpora: Path,
    tiny_dataset: Path,
) -> None:
    before = content(tiny_dataset)
    with pytest.raises(FingerprintMismatchError, match=message):
        tokenize(settings(tiny_corpora, tiny_dataset, **changes))
    assert content(tiny_dataset) == before


def test_folder_that_holds_something_else_is_refused(
    settings: Callable[..., TokenizeConfig], tiny_corpora: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match="is not empty"):
        tokenize(settings(tiny_corpora, tmp_path))
    with pytest.raises(ConfigError, match="is a file"):
        tokenize(settings(tiny_corpora, tmp_path / "thesis.txt"))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_damaged_files_of_a_finished_data_set_are_made_again(
    settings: Callable[..., TokenizeConfig],
    content: Callable[[Path], dict[str, bytes]],
    tiny_corpora: Path,
    tiny_dataset: Path,
    tmp_path: Path,
) -> None:
    out_dir = shutil.copytree(tiny_dataset, tmp_path / "out")
    tar = out_dir / "librispeech-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-1000])
    (out_dir / "librispeech-000002.parquet").write_bytes(b"PAR1")
    (out_dir / "ledger.jsonl").write_bytes(b"{}")
    (out_dir / "codebook" / "text" / "tokenizer.json").unlink()
    with pytest.raises(ShardCorruptError):
        verify_dataset(out_dir)
    tokenize(settings(tiny_corpora, out_dir))
    assert content(out_dir) == content(tiny_dataset)
    (out_dir / "dataset.json").write_bytes(b"{")
    tokenize(settings(tiny_corpora, out_dir))
    assert content(out_dir) == content(tiny_dataset)


def flip_bit(path: Path) -> None:
    """Flips one that an index can be read without: Arrow takes the other copy of the footer."""
    data = bytearray(path.read_bytes())
    data[data.index(b'"audio_seconds":')] ^= 1
    path.write_bytes(data)
    read_index(path)


def test_the_report_comes_back_of_a_run_killed_behind_the_card(
    settings: Callable[..., TokenizeConfig], tiny_corpora: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    config = settings(tiny_corpora, shutil.copytree(tiny_dataset, tmp_path / "out"))
    path = config.out_dir / "report.json"
    num_in = json.loads(path.read_text())["num_in"]
    path.unlink()
    tokenize(config)
    assert json.loads(path.read_text())["num_in"] == num_in


@pytest.mark.parametrize("num_shares", [0, 1, 2])
def test_index_that_can_be_read_but_is_not_the_card_s_is_made_again(
    settings: Callable[..., TokenizeConfig],
    content: Callable[[Path], dict[str, bytes]],
    num_shares: int,
    tiny_corpora: Path,
    tiny_dataset: Path,
    tmp_path: Path,
) -> None:
    config = settings(tiny_corpora, shutil.copytree(tiny_dataset, tmp_path / "out"))
    for number in range(2):
        flip_bit(config.out_dir / f"librispeech-{number:06d}.parquet")
    for index in range(num_shares):
        tokenize_share(config, index, num_shares)
    tokenize(config)
    assert content(config.out_dir) == content(tiny_dataset)
    verify_dataset(config.out_dir)


def test_finished_data_set_of_a_corpus_that_has_changed_is_left_alone(
    settings: Callable[..., TokenizeConfig],
    content: Callable[[Path], dict[str, bytes]],
    root: Path,
    tiny_dataset: Path,
    tmp_path: Path,
) -> None:
    out_dir = shutil.copytree(tiny_dataset, tmp_path / "out")
    flip_bit(out_dir / "librispeech-000000.parquet")
    before = content(out_dir)
    flac(root, 7).unlink()
    with pytest.raises(FingerprintMismatchError, match="the corpus has changed since"):
        tokenize(settings(root, out_dir))
    assert content(out_dir) == before
    (out_dir / "dataset.json").unlink()
    assert tokenize(settings(root, out_dir)).num_in == 7
    verify_dataset(out_dir)


def test_shards_of_items_that_are_gone_are_removed(
    settings: Callable[..., TokenizeConfig], root: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    out_dir = shutil.copytree(tiny_dataset, tmp_path / "out")
    (out_dir / "dataset.json").unlink()
    for number in (6, 7):
        flac(root, number).unlink()
    tokenize(settings(root, out_dir))
    assert len(list(out_dir.glob("*.tar"))) == len(list(out_dir.glob("*.parquet"))) == 2
    verify_dataset(out_dir)


def break_to_the_same_size(root: Path, *numbers: int) -> dict[Path, bytes]:
    """Breaks recordings without changing their size; what they were."""
    before = {flac(root, number): flac(root, number).read_bytes() for number in numbers}
    for path, content in before.items():
        path.write_bytes(content.replace(b"fLaC", b"LLaC"))
    return before


def cut_off(root: Path, *numbers: int) -> dict[Path, bytes]:
    """Cuts recordings off; what they were."""
    before = {flac(root, number): flac(root, number).read_bytes() for number in numbers}
    for path in before:
        path.write_bytes(b"short")
    return before


def repair(before: dict[Path, bytes]) -> None:
    for path, content in before.items():
        path.write_bytes(content)


@pytest.mark.parametrize("num_shares", [0, 2])
@pytest.mark.parametrize("broken", [break_to_the_same_size, cut_off], ids=["same size", "another size"])
def test_a_repaired_file_is_taken_into_the_data_set(
    broken: Callable[..., dict[Path, bytes]],
    settings: Callable[..., TokenizeConfig],
    content: Callable[[Path], dict[str, bytes]],
    num_shares: int,
    root: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = settings(root, tmp_path / "out")
    before = broken(root, 4)
    assert tokenize(config).num_quarantined == 1
    kept = (config.out_dir / "librispeech-000000.tar").stat().st_mtime_ns
    repair(before)
    for index in range(num_shares):
        tokenize_share(config, index, num_shares)
    assert (config.out_dir / "dataset.json").exists() == (num_shares == 0)
    assert tokenize(config).num_quarantined == 0
    assert content(config.out_dir) == content(tiny_dataset)
    assert (config.out_dir / "librispeech-000000.tar").stat().st_mtime_ns == kept
    warning = "librispeech-000001: made again, as it had quarantined files and has changed"
    assert (warning in caplog.messages) == (broken is cut_off)
    assert not any("librispeech-000000" in message for message in caplog.messages)
    verify_dataset(config.out_dir)


def test_files_repaired_to_the_same_size_no_longer_count_against_the_budget(
    settings: Callable[..., TokenizeConfig],
    content: Callable[[Path], dict[str, bytes]],
    root: Path,
    tiny_dataset: Path,
    tmp_path: Path,
) -> None:
    config = settings(root, tmp_path / "out")
    before = break_to_the_same_size(root, *range(6))
    with pytest.raises(BadSampleBudgetError):
        tokenize(config)
    repair(before)
    assert tokenize(config).num_quarantined == 0
    assert content(config.out_dir) == content(tiny_dataset)


def test_a_file_that_is_as_broken_as_before_changes_nothing(
    settings: Callable[..., TokenizeConfig], root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = settings(root, tmp_path / "out")
    (path,) = break_to_the_same_size(root, 4)
    tokenize(config)
    path.touch()
    with caplog.at_level(logging.WARNING):
        assert tokenize(config).num_quarantined == 1
    assert "is complete already" in caplog.text
    path.write_bytes(path.read_bytes()[:-1] + b"x")  # still broken, but another file
    assert tokenize(config).num_quarantined == 1
    verify_dataset(config.out_dir)


def test_a_repaired_file_is_not_reused_as_broken(
    settings: Callable[..., TokenizeConfig],
    content: Callable[[Path], dict[str, bytes]],
    root: Path,
    tiny_dataset: Path,
    tmp_path: Path,
) -> None:
    before = break_to_the_same_size(root, 4)
    tokenize(settings(root, tmp_path / "broken"))
    repair(before)
    tokenize(settings(root, tmp_path / "out", reuse_dir=tmp_path / "broken"))
    assert content(tmp_path / "out") == content(tiny_dataset)


def test_a_repair_explains_no_other_change_of_a_finished_data_set(
    settings: Callable[..., TokenizeConfig], root: Path, tmp_path: Path
) -> None:
    config = settings(root, tmp_path / "out")
    flac(root, 7).write_bytes(b"broken")
    tokenize(config)
    flac(root, 7).with_name("7-9-0008.flac").write_bytes(b"added")
    with pytest.raises(FingerprintMismatchError, match="the corpus has changed since"):
        tokenize(config)


def test_a_share_keeps_what_another_run_has_published_meanwhile(
    settings: Callable[..., TokenizeConfig],
    tiny_corpora: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = settings(tiny_corpora, tmp_path / "out")
    encode = ItemEncoder.encode
    published: dict[str, int] = {}

    def publish_meanwhile(*arguments: Any) -> list[Sample | LedgerEntry]:
        monkeypatch.setattr(ItemEncoder, "encode", encode)
        tokenize(config)
        published.update((path.name, path.stat().st_mtime_ns) for path in config.out_dir.glob("lib*"))
        return encode(*arguments)

    monkeypatch.setattr(ItemEncoder, "encode", publish_meanwhile)
    tokenize_share(config, 0, 1)
    assert published == {path.name: path.stat().st_mtime_ns for path in config.out_dir.glob("lib*")}
    assert len(published) == 6


def test_stray_files_beside_the_codebook_are_no_part_of_the_data_set(
    settings: Callable[..., TokenizeConfig], tiny_corpora: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    out_dir = shutil.copytree(tiny_dataset, tmp_path / "out")
    (out_dir / "dataset.json").unlink()
    (out_dir / "codebook" / "notes (old).txt").write_text("x")
    tokenize(settings(tiny_corpora, out_dir))
    assert load_dataset_card(out_dir) == load_dataset_card(tiny_dataset)
