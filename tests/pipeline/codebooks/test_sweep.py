import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dmlm.cli import run
from dmlm.pipeline.codebooks.sweep import SweepConfig, sweep_codebooks
from dmlm.pipeline.errors import ConfigError


@pytest.fixture(scope="module")
def noises(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `jsonl` source of two seconds of noise in each of three recordings per split."""
    folder, rng = tmp_path_factory.mktemp("noises"), np.random.default_rng(0)
    lines = []
    for split in ("train", "dev", "test"):
        for index in range(3):
            name = f"{split}-{index}"
            soundfile.write(folder / f"{name}.wav", rng.normal(0, 0.1, 16_000), 16_000)
            lines.append({"key": name, "audio": f"{name}.wav", "text": "noise", "split": split})
    (folder / "noises.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_every_layer_and_number_of_clusters_is_measured_on_held_out_speech(noises: Path) -> None:
    config = SweepConfig(source="jsonl", root=noises, layers=(1, None), clusters=(3, 12), limit=2)
    report = sweep_codebooks(config)
    points = [(point.layer, point.quality.num_clusters) for point in report.points]
    assert points == [(1, 3), (1, 12), ("last", 3), ("last", 12)]
    assert (report.fit_splits, report.splits) == (("train",), ("dev",))
    for few, many in (report.points[:2], report.points[2:]):
        assert few.quality.num_recordings == 2
        assert few.quality.relative_error > many.quality.relative_error > 0
    assert report.points[0].quality.counts != report.points[2].quality.counts


@pytest.mark.parametrize(
    ("encoder", "layers"), [("whisper:tiny.en", [1, 2, 3, 4, "last"]), ("mfcc", ["last"])]
)
def test_layers_are_all_of_the_encoder_unless_some_are_named(
    encoder: str, layers: list[int | str], noises: Path, tmp_path: Path
) -> None:
    arguments = ["--source", "jsonl", "--root", str(noises), "--encoder", encoder, "--limit", "1"]
    out = ["--clusters", "2", "--out", str(tmp_path / "sweep")]
    assert run(["experiment", "codebook-sweep", *arguments, *out]) == 0
    content = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [point["layer"] for point in content["points"]] == layers


def test_command_writes_json_and_page(
    noises: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--source", "jsonl", "--root", str(noises), "--encoder", "mfcc", "--layers", "last"]
    out = ["--clusters", "2,5,5", "--split", "test", "--out", str(tmp_path / "sweep")]
    assert run(["experiment", "codebook-sweep", *arguments, *out]) == 0
    content = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [point["quality"]["num_clusters"] for point in content["points"]] == [2, 5]
    assert content["splits"] == ["test"]
    page = (tmp_path / "sweep" / "sweep.html").read_text()
    assert f"{content['points'][1]['quality']['unexplained_variance']:.3g}</td>" in page
    assert "K 5" in page
    assert f"{content['points'][0]['quality']['perplexity']:.1f}" in capsys.readouterr().out


def test_nothing_to_fit_on_beside_the_measured_split_is_refused(noises: Path) -> None:
    config = SweepConfig(source="jsonl", root=noises, splits=("train",), layers=(1,), clusters=(3,))
    with pytest.raises(ConfigError, match="no training split beside train"):
        sweep_codebooks(config)


def test_a_layer_that_is_not_there_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    config = SweepConfig(source="jsonl", root=tmp_path / "none", layers=(1, 99, None), clusters=(3,))
    with pytest.raises(ConfigError, match="layer 99"):
        sweep_codebooks(config)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--clusters", "10,0", "numbers from 1"), ("--clusters", "a", "numbers"), ("--layers", "0", "block")],
)
def test_bad_lists_are_named(
    option: str, value: str, message: str, noises: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--source", "jsonl", "--root", str(noises), "--out", str(tmp_path / "x"), option, value]
    assert run(["experiment", "codebook-sweep", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
