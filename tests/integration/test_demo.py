"""The whole road, small: every stage on a few samples, then once more without doing anything again."""

import json
from pathlib import Path

import pytest
from PIL import Image

from dmlm.trainer.demo import run_demo


@pytest.mark.slow
def test_demo_runs_from_nothing_to_a_word_error_rate_and_is_quick_the_second_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        run_demo(tmp_path, seed=3, limit=10, num_steps=3)
    output = capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_bytes())
    assert results["asr"]["num_utterances"] == 10
    assert set(results["asr"]["halves"]) == {"sentences", "word strings"}
    assert set(results["tokenize"]) == {"librispeech", "ami", "covost", "coco"}
    assert all(
        report["num_out"] > 0 and report["num_quarantined"] == 0 for report in results["tokenize"].values()
    )
    assert "all 3 steps were done before" in output
    assert "was there already, nothing to do" in output
    assert Image.open(tmp_path / "images.png").size[0] > 8 * 64
    assert len((tmp_path / "asr.json.samples.jsonl").read_text().splitlines()) == 10
