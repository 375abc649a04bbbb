"""Benchmarks at toy size: they run and their results are right; nothing is timed."""

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"
RunBenchmark = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture(autouse=True)
def keep_num_threads() -> Iterator[None]:
    """Benchmarks choose their threads; what other tests compute depends on theirs, by rounding."""
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def run_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunBenchmark:
    """Function that runs a script and gives its rows by name: `run_benchmark("x", "--rounds", "1")`."""
    monkeypatch.syspath_prepend(FOLDER)

    def run(script: str, *arguments: str) -> dict[str, dict[str, Any]]:
        importlib.import_module(script).main(list(arguments))
        lines = capsys.readouterr().out.splitlines()
        return {name: row for line in lines if line[0] == "{" for name, row in json.loads(line).items()}

    return run
