from dataclasses import replace
from pathlib import Path

import pytest

from dmlm.pipeline import dry_run
from dmlm.pipeline.dry_run import estimate_run
from dmlm.pipeline.shards import load_dataset_card
from dmlm.pipeline.tokenization import TokenizeConfig, tokenize

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
    assert split.num_bytes == sum(shard.tar_bytes for shard in card.shards)
    assert split.seconds > 0


def test_estimate_is_scaled_from_some_files_to_all(
    tiny_corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "FILES_PER_SPLIT", 2)
    config = config_for(IMAGES, tiny_corpora, tmp_path / "out")
    (split,) = estimate_run(config).splits
    assert (split.num_measured, split.num_files) == (2, 4)
    assert split.num_tokens.image == tokenize(config).num_tokens.image  # images are all of one size


def test_table_names_what_was_measured(tiny_corpora: Path, tmp_path: Path) -> None:
    config = replace(config_for(SPEECH, tiny_corpora, tmp_path / "out"), limit=3)
    table = estimate_run(config).table()
    assert "measured on 3 of 3 files" in table
    assert "h of audio" in table
    assert table.endswith("nothing was written")
