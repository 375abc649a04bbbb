import importlib
import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

FOLDER = Path(__file__).parents[2] / "benchmarks"
SIZES = {"steps": 3, "sequences": 4, "width": 16, "layers": 1, "vocabulary": 64, "max-length": 256}


def test_all_sides_of_row_d_take_the_same_steps_and_make_its_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("accelerate", reason="the Trainer needs it: pip install 'dmlm[bench]'")
    monkeypatch.syspath_prepend(FOLDER)
    benchmark = importlib.import_module("training_step")
    sizes = [word for name, value in SIZES.items() for word in (f"--{name}", str(value))]
    runs = {}
    for side in benchmark.SIDES:
        benchmark.main([*sizes, "--threads", "1", "--side", side])
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        runs[side] = [benchmark.Side(**result | {"peak_bytes": 1})]  # in one process there is one peak
        assert result["seconds"] > 0
        assert result["losses"] == pytest.approx(runs["dmlm"][0].losses, abs=2e-4), side
    benchmark._report(runs, benchmark.parse(sizes))
    benchmark._report_products("D-sgemm", runs["dmlm"], benchmark.parse(sizes))
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line[0] == "{"]
    names = [name for row in rows for name in row]
    assert names == ["D-longest", "D-max", "D-flattened", "D-memory", "D-sgemm"]


def test_operations_are_those_that_torch_counts_in_a_step_but_for_what_is_masked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    benchmark = importlib.import_module("training_step")
    model = benchmark.build_model(benchmark.parse(["--width", "64", "--layers", "2", "--vocabulary", "96"]))
    model.set_attn_implementation("eager")
    length = 24
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(length)[None]).logits.sum().backward()
    counts = {str(name): number for name, number in counter.get_flop_counts()["Global"].items()}
    of_weights, of_attention = benchmark._count_operations(model, [length])
    assert of_weights == counts["aten.mm"]
    # Of length x length pairs those above the diagonal are masked.
    assert of_attention == counts["aten.bmm"] * (length + 1) / (2 * length)
