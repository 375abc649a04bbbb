"""S8: neither the environment nor the user or the place of a file gets into what dmlm writes for others."""

import getpass
import json
from pathlib import Path

import pytest

from dmlm.cli import run
from dmlm.pipeline.errors import ExitCode

SECRET = "canary-5e3d1c"
OF_THIS_MACHINE = ("run.json",)
"""Says where the corpus lay, for whoever runs the command again; no part of the data set."""


def test_no_secret_no_home_and_no_path_is_written(
    token_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home-of-canary"
    home.mkdir()
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "WANDB_API_KEY", "USER", "LOGNAME"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("HOME", str(home))
    assert getpass.getuser() == SECRET
    (home / "train.txt").write_text("one line\nanother\n")
    recipe = {
        "name": "tiny",
        "num_steps": 1,
        "mix": [{"task": "asr", "weight": 1}],
        "model": {"num_layers": 1, "width": 8, "num_heads": 1},
        "sequence": {"max_length": 64},
        "batch": {"max_tokens": 64},
    }
    (home / "tiny.yaml").write_text(json.dumps(recipe))
    commands = (
        [
            "tokenize",
            "--source",
            "text",
            "--root",
            home,
            "--text-tokenizer",
            "bpe:256",
            "--out",
            tmp_path / "out",
        ],
        ["train", "--shards", token_shards, "--recipe", home / "tiny.yaml", "--out", tmp_path / "run"],
        ["export", "--checkpoint", tmp_path / "run", "--out", tmp_path / "exported"],
    )
    for command in commands:
        assert run(list(map(str, command))) == ExitCode.OK, capfd.readouterr().err
    output = capfd.readouterr()
    assert SECRET not in output.out + output.err
    written = [path for name in ("out", "run", "exported") for path in (tmp_path / name).rglob("*")]
    assert len(written) > 20
    for path in written:
        if path.is_file() and path.name not in OF_THIS_MACHINE:
            content = path.read_bytes()
            for leak in (SECRET, str(home), str(tmp_path)):
                assert leak.encode() not in content, f"{leak} in {path}"
