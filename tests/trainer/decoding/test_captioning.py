"""Images that are told apart by their colour, and a model that has learnt their captions by heart."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmlm.cli import run
from dmlm.pipeline.codebooks.building import BuildCodebookConfig, SourceShare, build_codebook
from dmlm.pipeline.errors import ConfigError, ImageError
from dmlm.pipeline.tokenization.planning import TokenizeConfig
from dmlm.pipeline.tokenization.running import tokenize
from dmlm.trainer.config import (
    BatchConfig,
    MixEntry,
    ModelConfig,
    OptimizerConfig,
    Recipe,
    SequenceConfig,
    TrainConfig,
)
from dmlm.trainer.decoding import DecodingConfig
from dmlm.trainer.decoding.captioning import caption
from dmlm.trainer.loop import train
from dmlm.trainer.scoring.evaluation import EvaluateConfig, evaluate

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 30), "blue": (20, 30, 210), "white": (250, 250, 250)}


@dataclass(frozen=True, kw_only=True)
class PaintedRun:
    images: Path
    shards: Path
    run: Path


@pytest.fixture(scope="module")
def painted_run(tmp_path_factory: pytest.TempPathFactory) -> PaintedRun:
    root = tmp_path_factory.mktemp("painted")
    folder = _write_coco(root)
    build_codebook(
        BuildCodebookConfig(
            root=root,
            out_dir=root / "codebook",
            sources=(SourceShare(name="coco", share=1.0),),
            text_tokenizer="bpe:256",
            image_resolution=16,
            num_image_clusters=4,
            device="cpu",
        )
    )
    tokenize(
        TokenizeConfig(
            source="coco",
            root=root,
            codebook_dir=root / "codebook",
            out_dir=root / "shards",
            device="cpu",
        )
    )
    recipe = Recipe(
        name="tiny",
        num_steps=80,
        splits=("train*",),
        mix=(MixEntry(task="i2t", weight=1.0),),
        model=ModelConfig(num_layers=2, width=64, num_heads=2, dropout=0.0),
        sequence=SequenceConfig(max_length=512),
        batch=BatchConfig(max_tokens=512),
        optimizer=OptimizerConfig(learning_rate=4e-3, num_warmup_steps=10),
    )
    train(TrainConfig(shards=(root / "shards",), recipe=recipe, out_dir=root / "run", device="cpu"))
    return PaintedRun(images=folder, shards=root / "shards", run=root / "run")


def _write_coco(root: Path) -> Path:
    folder = root / "coco" / "train2017"
    folder.mkdir(parents=True)
    images, captions = [], []
    for number, (name, colour) in enumerate(COLOURS.items(), start=1):
        file_name = f"{number:012d}.jpg"
        Image.fromarray(np.full((40, 40, 3), colour, np.uint8)).save(folder / file_name, quality=95)
        images.append({"id": number, "file_name": file_name, "height": 40, "width": 40})
        captions += [
            {"id": number * 10 + i, "image_id": number, "caption": f"It is {name}."} for i in range(2)
        ]
    (root / "coco" / "annotations").mkdir()
    content = json.dumps({"images": images, "annotations": captions})
    (root / "coco" / "annotations" / "captions_train2017.json").write_text(content)
    return folder


def test_files_get_the_captions_learnt_and_bad_ones_a_reason(painted_run: PaintedRun, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    png = tmp_path / "green.png"
    Image.fromarray(np.full((64, 48, 3), COLOURS["green"], np.uint8)).save(png)
    files = [painted_run.images / "000000000003.jpg", broken, png]
    captions = list(caption(painted_run.run, files, device="cpu"))
    assert [found.path for found in captions] == files
    assert [found.text for found in captions] == ["It is blue.", "", "It is green."]
    assert isinstance(captions[1].error, ImageError)
    assert captions[0].error is captions[2].error is None


def test_how_many_images_go_together_does_not_change_what_is_drawn(
    painted_run: PaintedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [painted_run.images / "000000000003.jpg"] * 3
    sampling = DecodingConfig(temperature=4.0, seed=1, max_new_tokens=12)
    drawn = []
    for files_at_once in (32, 1):
        monkeypatch.setattr("dmlm.trainer.decoding.captioning.FILES_AT_ONCE", files_at_once)
        drawn.append([found.text for found in caption(painted_run.run, files, "cpu", decoding=sampling)])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 3


def test_command_prints_a_line_for_each_image(painted_run: PaintedRun, capsys) -> None:
    files = [str(path) for path in sorted(painted_run.images.iterdir())[:2]]
    assert run(["caption", "--checkpoint", str(painted_run.run), "--device", "cpu", *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{files[0]}\tIt is red.", f"{files[1]}\tIt is green."]
    command = ["caption", "--checkpoint", str(painted_run.run), "--device", "cpu", "--max-new-tokens", "2"]
    assert run([*command, files[0]]) == 0
    assert f"{files[0]}: the text was cut" in capsys.readouterr().err


def test_every_image_is_scored_once_against_all_its_captions(
    painted_run: PaintedRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = evaluate(
        EvaluateConfig(
            checkpoint=painted_run.run,
            shards=(painted_run.shards,),
            task="i2t",
            out_path=tmp_path / "i2t.json",
            device="cpu",
        )
    )
    assert report.metrics.num_samples == 4
    assert report.metrics.values["rouge_l"] == pytest.approx(100)
    assert report.neighbour.values["rouge_l"] == pytest.approx(200 / 3)
    assert "CIDEr over 4 images" in caplog.text
    assert all(utterance.is_in_training for utterance in report.utterances)
    result = json.loads((tmp_path / "i2t.json").read_text())
    assert "tok:dmlm-ptb-2" in result["metrics"]["cider_signature"]
    assert result["speed"]["real_time_factor"] is None
    lines = (tmp_path / "i2t.json.samples.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["references"] == ["It is red.", "It is red."]


def test_model_without_images_cannot_caption(spoken_run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without images"):
        list(caption(spoken_run.run, [tmp_path / "a.png"], device="cpu"))
