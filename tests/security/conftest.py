"""A data set to put hostile files into, a canary, and what it costs to read a file."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from dmlm.pipeline.samples import Sample
from dmlm.pipeline.shards import load_dataset_card, write_dataset_card, write_shard
from dmlm.pipeline.shards.card import fingerprint_sha256
from dmlm.pipeline.shards.index import build_index, read_index, write_index
from dmlm.pipeline.storage import sha256_file
from dmlm.pipeline.tokenization.output_folder import publish
from dmlm.pipeline.vocabulary import Vocabulary

VOCABULARY = Vocabulary(num_text=400, num_speech=16, num_image=0, bos_id=0, eos_id=0)
SHARD = "x-000000"


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    """The test that pickles it fails if it was unpickled anywhere."""
    made = Canary(tmp_path / "canary")
    yield made
    assert not made.path.exists()


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A small, whole data set of one shard."""
    directory = tmp_path / "dataset"
    units, words = np.arange(16, dtype=np.int32), np.array([7, 8], dtype=np.int32)
    samples = [
        Sample(key=f"k{number}", source="s", split="train", speech_tokens=units, text_tokens=words)
        for number in range(3)
    ]
    shard = write_shard(directory, SHARD, samples, VOCABULARY, task_sha256="task", num_in=3)
    mark = {"tokenizer": "bytes"}
    fingerprints = {"text": mark | {"sha256": fingerprint_sha256(mark)}}
    recipe = {"fingerprints": fingerprints, "text_rule": "lower", "settings": {}}
    publish(directory, "x", [shard], recipe, VOCABULARY, "CC0", codebook_files=())
    return directory


PlantTar = Callable[..., None]


@pytest.fixture(scope="session")
def plant_tar() -> PlantTar:
    """Function that puts another tar, and other rows of its index, into a data set and signs it anew.

    Every checksum fits then, as it would in a data set that somebody made on purpose.
    """

    def plant(directory: Path, tar: bytes, rows: list[dict[str, object]] | None = None) -> None:
        tar_path, index_path = directory / f"{SHARD}.tar", directory / f"{SHARD}.parquet"
        tar_path.write_bytes(tar)
        index, footer = read_index(index_path)
        sums = {"tar_sha256": sha256_file(tar_path), "tar_bytes": len(tar)}
        index = index if rows is None else build_index(rows)
        write_index(index_path, index, dataclasses.replace(footer, **sums))
        card = load_dataset_card(directory)
        record = dataclasses.replace(card.shards[0], **sums, index_sha256=sha256_file(index_path))
        write_dataset_card(directory, dataclasses.replace(card, shards=(record,)))

    return plant


PROBE = """
import json, sys, time
from importlib import import_module
from pathlib import Path

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))

def read(path):
    start = time.perf_counter()
    try:
        outcome = f"read {getattr(function(path), 'shape', '')}"
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
    return outcome, time.perf_counter() - start

module, name, harmless, *paths = sys.argv[1:]
function = getattr(import_module(module), name)
read(Path(harmless))
before = status("VmRSS")
print(json.dumps([(*read(Path(path)), status("VmHWM") - before) for path in paths]))
"""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of reading one file."""

    outcome: str
    """Shape of what was read, or the error."""
    seconds: float
    num_bytes: int
    """What the process has grown by at most, up to the end of this file."""


MeasureCosts = Callable[[Callable[[Path], object], Path, Sequence[Path]], list[Cost]]


@pytest.fixture(scope="session")
def measure_costs() -> MeasureCosts:
    """Function that reads files in a process of their own: `measure_costs(read, harmless_file, files)`."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("peak memory is read from /proc")

    def measure(read: Callable[[Path], object], harmless: Path, files: Sequence[Path]) -> list[Cost]:
        arguments = [read.__module__, read.__name__, str(harmless), *map(str, files)]
        done = subprocess.run(
            [sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, timeout=120, check=True
        )
        return [Cost(*entry) for entry in json.loads(done.stdout.splitlines()[-1])]

    return measure
