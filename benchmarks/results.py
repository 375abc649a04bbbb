"""What RESULTS.md says: rows beside their peers, and where they were measured."""

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rows import describe

PACKAGES = ("torch", "transformers", "openai-whisper", "faiss-cpu", "numpy", "scikit-learn", "webdataset")
NOT_RUN = "not run"
GIBIBYTE = 1 << 30

_HEAD = """# Benchmarks

Written by `make bench`; docs/benchmarks.md says what each row is. Medians of sides that take turns in one run
on the same data. The ratio says how many times better dmlm is than the best of its peers. A peer called
`wanted` is a figure to reach; `bare sgemm` is what torch's product of large matrices does.

| row | dmlm | peers | unit | ratio | target | reached | H100 |
|---|---|---|---|---|---|---|---|
"""


def describe_machine() -> str:
    """Processor, cores, memory and system, without what a provider added to the kernel's number."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIBIBYTE
    release = platform.release().partition("-")[0]
    return f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {release}"


def describe_versions() -> dict[str, str]:
    """Date, Python and the packages that matter, so far as they are installed."""
    versions = {"date": datetime.now(UTC).date().isoformat(), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def render_results(results: Mapping[str, Mapping[str, Any]], notes: Sequence[str] = ()) -> str:
    """RESULTS.md: a table, what else was measured, and where."""
    rows = dict(sorted(results.items()))
    parts = [_HEAD + "".join(_line(name, row) for name, row in rows.items())]
    parts += ["\n".join(_details(rows)), "\n".join(_places(rows))]
    if notes:
        parts.append("\n".join(["## Left out", "", *(f"- {note}" for note in notes)]))
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _line(name: str, row: Mapping[str, Any]) -> str:
    peers = ", ".join(f"{peer} {value:.4g}" for peer, value in row["peers"].items())
    target, ratio = row["target"], row["ratio"]
    wanted = "–" if target is None else f"≥ {target:g}"
    reached = "–" if target is None else "yes" if ratio >= target else "missed"
    cells = (name, f"{row['dmlm']:.4g}", peers, row["unit"], f"{ratio:.2f}", wanted, reached, NOT_RUN)
    return f"| {' | '.join(cells)} |\n"


def _details(rows: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    yield "## What else was measured\n"
    for name, row in rows.items():
        details = f": {describe(row['details'])}" if row["details"] else ""
        yield f"- **{name}**, {row['title']}{details}"


def _places(rows: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    """One line for each machine, day and set of versions."""
    yield "## Where\n"
    places: dict[str, list[str]] = {}
    for name, row in rows.items():
        versions = ", ".join(f"{package} {number}" for package, number in row["versions"].items())
        places.setdefault(f"{row['machine']}; {versions}", []).append(name)
    for place, names in places.items():
        yield f"- {', '.join(names)}: {place}"


def _processor() -> str:
    """Name, and on x86 family and model: a virtual machine's name may be cut to that of the maker."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    facts = {name.strip(): fact.strip() for name, _, fact in (line.partition(":") for line in lines)}
    name = facts.get("model name") or platform.processor() or platform.machine()
    return f"{name} (family {facts['cpu family']}, model {facts['model']})" if "cpu family" in facts else name
