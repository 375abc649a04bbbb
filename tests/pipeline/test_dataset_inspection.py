import json
import re
from pathlib import Path

import numpy as np
import pytest

from dmlm.cli import run
from dmlm.pipeline.dataset_inspection import inspect_dataset
from dmlm.pipeline.dataset_page import render_dataset
from dmlm.pipeline.errors import ConfigError, ShardCorruptError
from dmlm.pipeline.samples import Sample
from dmlm.pipeline.shards import iter_samples


def test_splits_languages_and_lengths_are_those_of_the_samples(token_shards: Path) -> None:
    inspection = inspect_dataset(token_shards)
    samples = list(iter_samples(token_shards))
    assert [(split.source, split.split, split.num_samples) for split in inspection.splits] == [
        ("toy", "test", 4),
        ("toy", "train", 36),
        ("toy_pictures", "train", 16),
    ]
    units = sorted(len(sample.speech_tokens) for sample in samples if sample.speech_tokens is not None)
    assert sum(split.num_tokens.speech for split in inspection.splits) == sum(units)
    assert inspection.lengths["speech"] == (units[1], units[19], units[37], units[39])
    assert inspection.lengths["image"] == (16, 16, 16, 16)
    assert max(inspection.lengths["speech runs"]) <= 8
    assert inspection.languages == {"en to de": 32, "en": 24}
    assert inspection.sample is not None
    assert inspection.sample.key == "utterance-000"


def test_a_sample_is_found_by_its_key_in_any_shard(token_shards: Path) -> None:
    for expected in (list(iter_samples(token_shards))[place] for place in (0, 28, 29, 55)):
        sample = inspect_dataset(token_shards, expected.key).sample
        assert sample is not None
        assert sample.key == expected.key
    with pytest.raises(ConfigError, match="no sample has the key 'nobody'; the first is utterance-000"):
        inspect_dataset(token_shards, "nobody")


def test_a_folder_that_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardCorruptError, match=r"dataset\.json"):
        inspect_dataset(tmp_path)


def test_the_page_shows_texts_runs_and_the_grid_of_codes_and_escapes_them(
    write_shards, tmp_path: Path
) -> None:
    sample = Sample(
        key="a",
        source="s",
        split="train",
        text="<b>7 & 8</b>",
        speech_tokens=np.array([3, 3, 3, 5, 3], np.int32),
        image_tokens=np.arange(6, dtype=np.int32),
        text_tokens=np.array([65, 66], np.int32),
    )
    page = render_dataset(inspect_dataset(write_shards(tmp_path / "one", [sample], num_shards=1)))
    assert "&lt;b&gt;7 &amp; 8&lt;/b&gt;" in page
    assert "3×3 · 5×1 · 3×1" in page
    assert [int(code) for code in re.findall(r"<title>(\d+)</title></path>", page)] == list(range(6))
    assert "65 66" in page
    assert "script" not in page
    assert "http" not in page


def test_the_command_shows_the_card_or_one_sample_and_writes_json_and_a_page(
    token_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in token_shards.rglob("*")}
    assert run(["inspect", "--shards", str(token_shards)]) == 0
    shown = capsys.readouterr().out
    assert "toy_pictures/train" in shown
    assert "licence" in shown
    assert '"key":"utterance-000"' in shown
    results = ["--out", str(tmp_path / "q.json"), "--html", str(tmp_path / "q.html")]
    assert run(["inspect", "--shards", str(token_shards), "--key", "caption-003", *results]) == 0
    shown = capsys.readouterr().out
    assert "licence" not in shown
    assert "image, 16 ids: 15 0 1 2" in shown
    found = json.loads((tmp_path / "q.json").read_text())
    assert found["sample"]["image_id"] == "1"
    assert found["tokens"]["image"][:3] == [15, 0, 1]
    assert "caption-003" in (tmp_path / "q.html").read_text()
    assert before == {path: path.stat().st_mtime_ns for path in token_shards.rglob("*")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --shards, to look into a data set, or --codebook, to judge it; not both"),
        (["--shards", "{shards}", "--codebook", "x"], "not both"),
        (["--shards", "{shards}", "--source", "ami"], "--source belongs to --codebook"),
        (["--shards", "{shards}", "--limit", "3"], "--limit belongs to --codebook"),
        (["--codebook", "x", "--source", "ami", "--key", "a"], "--key belongs to --shards"),
        (["--codebook", "x"], "give --source"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(
    token_shards: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", *(argument.format(shards=token_shards) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err
