"""`tokenize` into a folder that is not new: kept, repaired, or refused, but never mixed."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dmlm.pipeline.errors import ConfigError, FingerprintMismatchError, ShardCorruptError
from dmlm.pipeline.shards import verify_dataset
from dmlm.pipeline.tokenization import TokenizeConfig, tokenize


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


def test_finished_data_set_of_a_corpus_that_has_changed_is_left_alone(
    settings: Callable[..., TokenizeConfig],
    content: Callable[[Path], dict[str, bytes]],
    root: Path,
    tiny_dataset: Path,
    tmp_path: Path,
) -> None:
    out_dir = shutil.copytree(tiny_dataset, tmp_path / "out")
    flac(root, 7).unlink()
    with pytest.raises(FingerprintMismatchError, match="the corpus has changed since"):
        tokenize(settings(root, out_dir))
    assert content(out_dir) == content(tiny_dataset)
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
