import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_both_sides_of_row_g_give_the_same_codes(run_benchmark) -> None:
    pytest.importorskip("dall_e", reason="needs `pip install --no-deps dall-e==0.1` and attrs, requests")
    sizes = ("--resolution", "112", "--images", "2", "--width", "64")
    row = run_benchmark("image_tokens", *sizes, "--rounds", "1", "--threads", "1")["G-112"]
    assert row["details"]["same_ids"] >= 0.999
    assert row["ratio"] == pytest.approx(row["dmlm"] / row["peers"]["dall_e"])


def test_operations_of_the_true_size_are_those_of_the_paper_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    count_operations = importlib.import_module("image_tokens")._count_operations
    assert count_operations(256, 256) == pytest.approx(272e9, rel=0.01)
