"""The runner: rows of all scripts end up in results.json and RESULTS.md, whatever fails or is missing."""

import importlib
import json
import platform
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
GOOD = "print('{\"%s\": %s}')\nprint('for people')"


def row(dmlm: float, target: float | None = 2.0) -> dict[str, Any]:
    return {
        "title": "things",
        "dmlm": dmlm,
        "peers": {"slow": 4.0, "slower": 1.0},
        "unit": "things/s",
        "ratio": dmlm / 4.0,
        "target": target,
        "smaller_is_better": False,
        "details": {"same_ids": 0.5},
    }


@pytest.fixture
def run_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The runner with a folder of its own and the scripts A (reaches its target), B (misses it), and Z."""
    monkeypatch.syspath_prepend(FOLDER)
    module = importlib.import_module("run_all")
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    scripts = [module.Script(row=letter, name=letter.lower()) for letter in "AB"]
    monkeypatch.setattr(
        module, "SCRIPTS", (*scripts, module.Script(row="Z", name="z", needs=("no_such_peer",)))
    )
    (tmp_path / "a.py").write_text(GOOD % ("A", json.dumps(row(8.0))))
    (tmp_path / "b.py").write_text(GOOD % ("B", json.dumps(row(7.8))))
    return module


def test_results_hold_every_row_with_its_peers_ratio_and_target(run_all, tmp_path: Path) -> None:
    assert run_all.main(["--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_bytes())
    assert list(results) == ["A", "B"]
    assert results["A"].items() >= row(8.0).items()
    assert {"date", "python", "torch", "numpy"} <= results["A"]["versions"].keys()


def test_the_table_says_which_targets_are_missed_and_leaves_the_gpu_empty(run_all, tmp_path: Path) -> None:
    run_all.main(["--out", str(tmp_path)])
    lines = (tmp_path / "RESULTS.md").read_text().splitlines()
    assert "| A | 8 | slow 4, slower 1 | things/s | 2.00 | ≥ 2 | yes | not run |" in lines
    assert "| B | 7.8 | slow 4, slower 1 | things/s | 1.95 | ≥ 2 | missed | not run |" in lines
    assert "- **A**, things: same ids 0.5" in lines
    assert "- Z: skipped, no_such_peer not installed (see docs/benchmarks.md)" in lines


@pytest.mark.parametrize("only", ["B", "b"])
def test_rows_that_are_not_run_again_stay_as_they_were(run_all, tmp_path: Path, only: str) -> None:
    run_all.main(["--out", str(tmp_path)])
    before = json.loads((tmp_path / "results.json").read_bytes())
    (tmp_path / "b.py").write_text(GOOD % ("B", json.dumps(row(80.0, target=None))))
    run_all.main(["--out", str(tmp_path), "--only", only])
    after = json.loads((tmp_path / "results.json").read_bytes())
    assert after["A"] == before["A"]
    assert (after["B"]["dmlm"], after["B"]["target"]) == (80.0, None)
    assert "| 20.00 | – | – | not run |" in (tmp_path / "RESULTS.md").read_text()


def test_a_machine_is_told_without_what_its_provider_calls_the_kernel(run_all) -> None:
    machine = run_all.describe_machine()
    assert re.fullmatch(rf".+, \d+ cores, \d+ GiB, {platform.system()} [\d.]+", machine)


def test_an_unknown_row_is_refused_before_anything_runs(run_all, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no row or script x$"):
        run_all.main(["--out", str(tmp_path), "--only", "A,x"])
    assert not (tmp_path / "results.json").exists()


def test_only_a_passive_script_tells_its_threads_not_to_spin(
    run_all, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    (tmp_path / "a.py").write_text("import json, os; print(json.dumps({os.getenv('OMP_WAIT_POLICY'): {}}))")
    script = run_all.Script(row="A", name="a")
    assert run_all.run_script(script) == ({"null": {}}, 0)
    assert run_all.run_script(replace(script, is_passive=True)) == ({"passive": {}}, 0)


@pytest.mark.parametrize("content", ["raise SystemExit(3)", "print('no row')"])
def test_a_script_without_rows_fails_the_run_and_costs_no_other_row(
    run_all, tmp_path: Path, content: str
) -> None:
    (tmp_path / "a.py").write_text(content)
    assert run_all.main(["--out", str(tmp_path)]) == 1
    assert list(json.loads((tmp_path / "results.json").read_bytes())) == ["B"]
    assert "A: a.py failed" in (tmp_path / "RESULTS.md").read_text()


def test_every_script_that_prints_rows_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    scripts = {script.name for script in importlib.import_module("run_all").SCRIPTS}
    printing = {path.stem for path in FOLDER.glob("*.py") if "Row(" in path.read_text()}
    assert scripts == printing
