"""Row G at toy size: it runs and its results are right; nothing is timed."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "image_tokens.py"


def test_both_sides_of_row_g_give_the_same_codes(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("dall_e", reason="needs `pip install --no-deps dall-e==0.1` and attrs, requests")
    spec = importlib.util.spec_from_file_location("image_tokens", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(["--resolution", "112", "--images", "2", "--rounds", "1", "--width", "64", "--threads", "1"])
    content, line = capsys.readouterr().out.splitlines()
    row = json.loads(content)["G"]
    assert row["same_ids"] >= 0.999
    assert row["ratio"] == pytest.approx(row["dmlm"] / row["peers"]["dall_e"])
    assert "dall_e" in line


def test_operations_of_the_true_size_are_those_of_the_paper_row() -> None:
    spec = importlib.util.spec_from_file_location("image_tokens", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module._count_operations(256, 256) == pytest.approx(272e9, rel=0.01)
