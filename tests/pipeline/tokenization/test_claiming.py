"""Whose a folder is, and what is written down about it."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dmlm.cli import run
from dmlm.pipeline.errors import ExitCode
from dmlm.pipeline.shards import verify_dataset
from dmlm.pipeline.storage import atomic_writer
from dmlm.pipeline.tokenization.claiming import claim_folder
from dmlm.pipeline.tokenization.planning import TokenizeConfig
from dmlm.pipeline.tokenization.running import tokenize


def test_who_claims_a_folder_removes_what_a_killed_run_left_and_nothing_else(tmp_path: Path) -> None:
    claim_folder(tmp_path, {"settings": {}}, {})
    (tmp_path / "x-000000.tar.01234567.tmp").touch()
    (tmp_path / "thesis.tmp").touch()
    with atomic_writer(tmp_path / "x-000001.tar", is_shared=True) as file:  # a share of a job array
        claim_folder(tmp_path, {"settings": {}}, {})
        assert {path.name for path in tmp_path.iterdir()} == {
            *("run.json", "thesis.tmp", Path(file.name).name)
        }
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "thesis.tmp", "x-000001.tar"}


def latin_1(folder: Path, name: str) -> Path:
    path = folder / os.fsdecode(name.encode("latin-1"))
    try:
        path.mkdir()
        path.rmdir()
    except OSError:
        pytest.skip("file names must be UTF-8 here")
    return path


def test_a_root_whose_name_is_not_utf_8_is_read_and_noted(
    settings: Callable[..., TokenizeConfig], tiny_corpora: Path, root: Path, tmp_path: Path
) -> None:
    moved = root.rename(latin_1(tmp_path, "été"))
    tokenize(replace(settings(tiny_corpora, tmp_path / "out", "coco"), root=moved))
    verify_dataset(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "run.json").read_bytes())["root"].endswith("\\xe9t\\xe9")


def test_a_split_whose_name_is_not_utf_8_is_refused(
    tiny_corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latin_1(tmp_path, "été.txt").write_text("Hello.\n")
    places = {"--root": tmp_path, "--codebook": tiny_corpora / "codebook", "--out": tmp_path / "out"}
    given = [str(word) for place in places.items() for word in place]
    assert run(["tokenize", "--source", "text", *given]) == ExitCode.USAGE
    assert "split \\udce9t\\udce9: the name of its file or folder is not UTF-8" in capsys.readouterr().err
