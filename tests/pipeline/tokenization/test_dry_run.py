import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dmlm.pipeline.shards import load_dataset_card
from dmlm.pipeline.tokenization import dry_run
from dmlm.pipeline.tokenization.dry_run import DryRunReport, estimate_run
from dmlm.pipeline.tokenization.planning import TokenizeConfig
from dmlm.pipeline.tokenization.running import tokenize

SPEECH, IMAGES = "librispeech", "coco"


def config_for(source: str, corpora: Path, out_dir: Path) -> TokenizeConfig:
    return TokenizeConfig(source=source, root=corpora, codebook_dir=corpora / "codebook", out_dir=out_dir)


@pytest.mark.parametrize("source", [SPEECH, IMAGES])
def test_estimate_from_all_files_is_what_the_run_gives(
    source: str, tiny_corpora: Path, tmp_path: Path
) -> None:
    config = config_for(source, tiny_corpora, tmp_path / "out")
    (split,) = estimate_run(config).splits
    assert not (tmp_path / "out").exists()
    report = tokenize(config)
    card = load_dataset_card(tmp_path / "out")
    assert split.num_tokens == report.num_tokens
    assert split.audio_seconds == pytest.approx(report.audio_seconds)
    tar_bytes = sum(shard.tar_bytes for shard in card.shards)
    index_bytes = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.parquet"))
    assert split.num_bytes == pytest.approx(tar_bytes + index_bytes, abs=index_bytes // 10)
    assert split.seconds > 0


def test_estimate_is_scaled_from_some_files_to_all(
    tiny_corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "INPUTS_PER_SPLIT", 2)
    config = config_for(IMAGES, tiny_corpora, tmp_path / "out")
    (split,) = estimate_run(config).splits
    assert (split.num_measured, split.num_inputs) == (2, 4)
    assert split.num_tokens.image == tokenize(config).num_tokens.image  # images are all of one size


def test_indexes_count_once_a_shard_and_once_a_sample(
    tiny_corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "INPUTS_PER_SPLIT", 2)
    config = replace(config_for(IMAGES, tiny_corpora, tmp_path / "out"), samples_per_shard=3)
    (split,) = estimate_run(config).splits
    tokenize(config)
    files = [path for kind in ("tar", "parquet") for path in (tmp_path / "out").glob(f"*.{kind}")]
    assert len(files) == 8
    assert split.num_bytes == pytest.approx(sum(path.stat().st_size for path in files), rel=0.03)


def test_last_line_adds_up_what_all_splits_give(tiny_corpora: Path, tmp_path: Path) -> None:
    (split,) = estimate_run(config_for(SPEECH, tiny_corpora, tmp_path / "out")).splits
    counts, seconds = split.num_tokens, split.audio_seconds
    *_, line, _ = DryRunReport(splits=(split, split)).table().splitlines()
    assert line.startswith(f"all: {2 * seconds / 3600:.1f} h of audio, {2 * counts.speech} speech tokens, ")
    assert f"{2 * counts.text} text tokens, {2 * split.num_bytes / 1e6:.1f} MB" in line


@pytest.mark.parametrize("work", [estimate_run, tokenize])
def test_part_of_a_published_split_is_named_unless_it_was_asked_for(
    work: Callable[[TokenizeConfig], object],
    tiny_corpora: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    work(replace(config_for(IMAGES, tiny_corpora, tmp_path / "few"), limit=5))
    assert "published" not in caplog.text
    work(config_for(IMAGES, tiny_corpora, tmp_path / "out"))
    assert "coco train2017: 12 samples found, 591753 published: less than the whole split" in caplog.messages


def test_files_that_cannot_be_used_are_counted_and_the_first_reason_is_named(
    tiny_corpora: Path, tmp_path: Path
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.wav").write_bytes(b"junk")
    lines = [{"key": f"k{n}", "audio": f"{n}.wav", "text": "x", "split": "train"} for n in range(3)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = replace(config_for("jsonl", tiny_corpora, tmp_path / "out"), root=tmp_path)
    estimate, unusable, _ = estimate_run(config).table().splitlines()
    assert estimate.startswith("train: no tokens, ")
    assert unusable.startswith("train: 3 of 3 samples measured could not be used: ")
    assert not unusable.endswith(": ")


def test_table_names_what_was_measured(tiny_corpora: Path, tmp_path: Path) -> None:
    config = replace(config_for(SPEECH, tiny_corpora, tmp_path / "out"), limit=3)
    table = estimate_run(config).table()
    assert "measured on 3 of 3 inputs" in table
    assert "h of audio" in table
    assert table.endswith("nothing was written")
