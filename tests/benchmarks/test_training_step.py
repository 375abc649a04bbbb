import importlib
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SIZES = {"steps": 3, "sequences": 4, "width": 16, "layers": 1, "vocabulary": 64, "max-length": 256}


def test_all_sides_of_row_d_take_the_same_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("accelerate", reason="the Trainer needs it: pip install 'dmlm[bench]'")
    monkeypatch.syspath_prepend(FOLDER)
    benchmark = importlib.import_module("training_step")
    sizes = [word for name, value in SIZES.items() for word in (f"--{name}", str(value))]
    losses = {}
    for side in benchmark.SIDES:
        benchmark.main([*sizes, "--threads", "1", "--side", side])
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert result["seconds"] > 0
        losses[side] = result["losses"]
    for side in losses:
        assert losses[side] == pytest.approx(losses["dmlm"], abs=2e-4), side
