"""`translate` with a model that has learnt the translations of a few recordings by heart."""

import json
from dataclasses import replace
from pathlib import Path

from dmlm.cli import run
from dmlm.pipeline.tokenization.planning import TokenizeConfig
from dmlm.pipeline.tokenization.running import tokenize
from dmlm.trainer.config import MixEntry, TrainConfig
from dmlm.trainer.loop import train

TRANSLATIONS = ("rot", "sieben gruene Voegel", "alte Schiffe fahren heim", "blaue Tueren bleiben zu")


def test_command_prints_the_translations_learnt(spoken_run, tmp_path: Path, capsys) -> None:
    files = [str(spoken_run.audio_path("train-tiny", number)) for number in range(4)]
    lines = [
        {"audio": file, "text": "", "language": "en", "translation": text, "translation_language": "de"}
        for file, text in zip(files, TRANSLATIONS, strict=True)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    shards = tmp_path / "shards"
    tokenize(
        TokenizeConfig(
            source="jsonl", root=tmp_path, codebook_dir=spoken_run.codebook, out_dir=shards, device="cpu"
        )
    )
    recipe = replace(spoken_run.recipe, mix=(MixEntry(task="s2tt", weight=1.0),))
    train(TrainConfig(shards=(shards,), recipe=recipe, out_dir=tmp_path / "run", device="cpu"))
    capsys.readouterr()
    arguments = ["--checkpoint", str(tmp_path / "run"), "--device", "cpu"]
    for language in (["--to", "de"], []):
        assert run(["translate", *arguments, *language, files[2], files[1]]) == 0
        printed = capsys.readouterr().out.splitlines()
        assert printed == [f"{files[2]}\t{TRANSLATIONS[2]}", f"{files[1]}\t{TRANSLATIONS[1]}"]
    assert run(["translate", *arguments, "--to", "xx", files[2]]) == 2
    assert "was not trained on s2tt in the language xx; choose one of de" in capsys.readouterr().err
