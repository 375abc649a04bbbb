"""The whole road, small: every stage on a few samples, then once more without making anything again."""

import json
from pathlib import Path

import pytest
from PIL import Image

from dmlm.pipeline.errors import ConfigError
from dmlm.trainer.demo import DemoConfig, run_demo
from dmlm.trainer.vocoder import waveforms


def test_a_recipe_that_is_none_ends_the_demo_before_its_first_stage(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no recipe 'demofull'"):
        run_demo(DemoConfig(out_dir=tmp_path / "demo", recipe="demofull"))
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_demo_runs_from_nothing_to_scores_of_four_tasks_and_makes_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Griffin-Lim: an untrained model does not end, and HiFi-GAN would take its time over that.
    monkeypatch.setattr(waveforms, "find_packaged", lambda entry: None)
    for _ in range(2):
        run_demo(
            DemoConfig(out_dir=tmp_path, seed=3, limit=10, num_steps=3, num_vocoder_steps=2, num_spoken=1)
        )
    output = capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_bytes())
    num_samples = {task: results[task]["num_samples"] for task in ("asr", "s2tt", "i2t", "t2s")}
    assert num_samples == {"asr": 10, "s2tt": 10, "i2t": 10, "t2s": 1}
    assert set(results["asr_halves"]) == {"sentences", "word strings"}
    assert results["t2s"]["controls"]["recordings"]["wer"] < 0.5
    assert set(results["tokenize"]) == {"librispeech", "ami", "covost", "coco"}
    assert all(
        report["num_out"] > 0 and report["num_quarantined"] == 0 for report in results["tokenize"].values()
    )
    assert "all 3 steps were done before" in output
    assert f"{tmp_path / 'vocoder'} was there already, nothing to do" in output
    for line in (
        "ASR: WER",
        "S2TT: BLEU",
        "I2T: CIDEr",
        "T2S: WER of what Whisper hears",
        "  of the true units",
    ):
        assert line in output
    assert [path.name for path in (tmp_path / "t2s.json.speech").iterdir()] == ["0001.wav"]
    assert Image.open(tmp_path / "images.png").size[0] > 8 * 64
    assert len((tmp_path / "asr.json.samples.jsonl").read_text().splitlines()) == 10
