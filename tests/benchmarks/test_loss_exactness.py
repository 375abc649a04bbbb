import importlib
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_value_and_gradient_on_two_ranks_equal_the_float64_reference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    importlib.import_module("loss_exactness").main(["--ranks", "2", "--accumulation", "1", "3"])
    *table, comparison = capsys.readouterr().out.splitlines()
    errors = [[float(number) for number in re.findall(r"\de[+-]\d+", line)] for line in table[2:5]]
    assert [len(numbers) for numbers in errors] == [8, 8, 8]
    for numbers in errors:
        assert max(numbers[:4]) < 1e-5  # float32
        assert max(numbers[4:]) < 1e-12  # float64
    # A mean of means is another loss: far beyond float32's rounding.
    assert min(float(number) for number in re.findall(r"\de[+-]\d+", comparison)) > 1e-4
