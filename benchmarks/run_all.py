"""Runs the benchmarks, one after the other, and keeps their rows in results.json and RESULTS.md.

A script whose peer is not installed is left out with its reason; rows measured before stay as they were,
with their own date and machine.

    python benchmarks/run_all.py [--only A,training_step] [--out benchmarks]
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results import describe_machine, describe_versions, render_results

from dmlm.pipeline.storage import write_bytes, write_json

FOLDER = Path(__file__).parent
WAITING = {"OMP_WAIT_POLICY": "passive"}
"""For scripts where a thread with nothing to do must not spin."""

Results = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A script that prints rows."""

    row: str
    """Letter that the names of its rows start with."""
    name: str
    """File in this folder, without `.py`."""
    needs: Sequence[str] = ()
    """Modules that only its peers need."""
    is_passive: bool = False
    """Whether waiting threads must not spin: several libraries have pools, or processor time counts."""


SCRIPTS = (
    Script(row="A", name="speech_tokens", is_passive=True),
    Script(row="B", name="kmeans", needs=("faiss", "sklearn"), is_passive=True),
    Script(row="C", name="shard_reading"),
    Script(row="D", name="training_step", needs=("accelerate",)),
    Script(row="D", name="loss_memory", is_passive=True),
    Script(row="D", name="step_options", is_passive=True),
    Script(row="E", name="packing"),
    Script(row="F", name="decoding"),
    Script(row="G", name="image_tokens", needs=("dall_e",)),
)


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 1 when a script failed or printed no row."""
    options = _parse(arguments)
    wanted = set(options.only.split(",")) if options.only else set()
    if unknown := wanted - {word for script in SCRIPTS for word in (script.row, script.name)}:
        raise SystemExit(f"--only: no row or script {', '.join(sorted(unknown))}")
    path = options.out / "results.json"
    results: Results = json.loads(path.read_bytes()) if path.is_file() else {}
    notes: list[str] = []
    num_failed = 0
    for script in SCRIPTS:
        if wanted and not wanted & {script.row, script.name}:
            continue
        if missing := [module for module in script.needs if importlib.util.find_spec(module) is None]:
            notes.append(
                f"{script.row}: skipped, {', '.join(missing)} not installed (see docs/benchmarks.md)"
            )
            continue
        rows, exit_code = run_script(script)
        if exit_code or not rows:
            num_failed += 1
            notes.append(f"{script.row}: {script.name}.py failed with exit code {exit_code}")
        results |= _stamped(rows)
        write_json(path, dict(sorted(results.items())))
    write_bytes(options.out / "RESULTS.md", render_results(results, notes).encode())
    print("\n".join(notes))
    return 1 if num_failed else 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="All benchmarks.")
    parser.add_argument(
        "--only", help="rows or scripts by comma, such as A,packing; the others keep what they have"
    )
    parser.add_argument("--out", type=Path, default=FOLDER)
    return parser.parse_args(arguments)


def run_script(script: Script) -> tuple[Results, int]:
    """Rows that a script printed, and its exit code; what it prints for people goes on to the terminal."""
    command = [sys.executable, str(FOLDER / f"{script.name}.py")]
    rows: Results = {}
    environment = {**os.environ, **(WAITING if script.is_passive else {})}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout or ():
            if line.startswith("{"):
                rows |= json.loads(line)
            else:
                print(line, end="", flush=True)
    return rows, process.returncode


def _stamped(rows: Mapping[str, Mapping[str, Any]]) -> Results:
    """Rows with when, where and with what they were measured."""
    stamp = {"machine": describe_machine(), "versions": describe_versions()}
    return {name: {**row, **stamp} for name, row in rows.items()}


if __name__ == "__main__":
    sys.exit(main())
