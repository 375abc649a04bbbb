import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def errors_in(line: str) -> list[float]:
    return [float(number) for number in re.findall(r"\de[+-]\d+", line)]


def test_value_and_gradient_on_ranks_equal_the_float64_reference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], amount: Callable[[Any, Any], Any]
) -> None:
    ranks, accumulation = amount((["4"], ["1", "2"]), (["1", "2", "4"], ["1", "2", "3"]))
    monkeypatch.syspath_prepend(FOLDER)
    main = importlib.import_module("loss_exactness").main
    main(["--ranks", *ranks, "--accumulation", *accumulation])
    *table, comparison = capsys.readouterr().out.splitlines()
    rows = [line for line in table[2:] if line]
    # Packed rows with every accumulation, the last one with both other normalisations, and single sequences.
    assert len(rows) == len(ranks) * (len(accumulation) + 3)
    for row in rows:
        errors = errors_in(row)
        assert len(errors) == 8, row
        assert max(errors[:4]) < 1e-5, row  # float32
        assert max(errors[4:]) < 1e-12, row  # float64
    # A mean of means is another loss: far beyond float32's rounding.
    assert min(errors_in(comparison)) > 1e-4
