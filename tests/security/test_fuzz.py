"""S6: spoilt files of every kind end in a DmlmError, or are read; nothing else ever escapes.

Valid files are mutated at random; 200 times each, in `make soak` for ten minutes each. What once made another
error escape is kept in tests/assets/fuzz and tried first.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import soundfile

from dmlm.pipeline.audio import load_waveform
from dmlm.pipeline.errors import DmlmError
from dmlm.pipeline.manifests import parse_corpus_manifest
from dmlm.pipeline.shards import iter_samples, load_dataset_card, open_shard, verify_dataset
from dmlm.pipeline.shards.card import CARD_NAME
from dmlm.pipeline.shards.rebuilding import rebuild_indexes
from dmlm.pipeline.storage import sha256_json
from dmlm.pipeline.vocabulary import Vocabulary

REPOSITORY = Path(__file__).parents[2]
ASSETS = REPOSITORY / "tests" / "assets" / "fuzz"
SHARD = "x-000000"
EDGES = (
    b"\0",
    b"\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\xff",
    b"\x80\0\0\0",
    b"7777777",
    b"-1",
    b"1e999",
    b"[{",
)
VALUES = (None, True, -1, 2**63, 1e308, "", "../x", "x" * 1_000, [], {}, [[]], {"a": {}})

Rng = np.random.Generator


def mutate(data: bytes, rng: Rng) -> bytes:
    """Spoils some bytes: flips, cuts, repeats, overwrites."""
    content = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        start = int(rng.integers(0, len(content) + 1))
        stop = min(len(content), start + int(rng.integers(1, 65)))
        match rng.integers(5):
            case 0 if start < len(content):
                content[start] ^= 1 << int(rng.integers(8))
            case 1:
                del content[start:stop]
            case 2:
                content[start:start] = content[start:stop] * int(rng.integers(1, 4))
            case 3:
                edge = EDGES[rng.integers(len(EDGES))]
                content[start : start + len(edge)] = edge
            case _:
                content[start:stop] = rng.bytes(stop - start)
    return bytes(content)


def mutate_json(value: Any, rng: Rng) -> Any:
    """Spoils one place of a json value."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = sorted(value)[rng.integers(len(value))]
        rest = {name: entry for name, entry in value.items() if name != key}
        match rng.integers(6):
            case 0:
                return rest
            case 1:
                return rest | {mutate(key.encode(), rng).decode("latin-1"): value[key]}
            case _:
                return rest | {key: mutate_json(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = int(rng.integers(len(value)))
        return [*value[:place], mutate_json(value[place], rng), *value[place + 1 :]]
    if isinstance(value, str) and rng.random() < 0.5:
        return mutate(value.encode(), rng).decode("latin-1")
    return VALUES[rng.integers(len(VALUES))]


class Target(Protocol):
    """A reader, and the files to spoil for it."""

    def seeds(self, dataset: Path) -> list[bytes]:
        """Valid input."""

    def spoil(self, seed: bytes, rng: Rng) -> bytes:
        """The same, spoilt."""

    def read(self, content: bytes, dataset: Path) -> object:
        """Reads it."""


class Tar:
    """ShardReader and verifier on a tar that every sum was made to fit."""

    def __init__(self, plant_tar: Callable[..., None]) -> None:
        self.plant = plant_tar

    def seeds(self, dataset: Path) -> list[bytes]:
        return [(dataset / f"{SHARD}.tar").read_bytes()]

    def spoil(self, seed: bytes, rng: Rng) -> bytes:
        return mutate(seed, rng)

    def read(self, content: bytes, dataset: Path) -> object:
        self.plant(dataset, content)
        read_all(lambda: list(islice(iter_samples(dataset), 10)))
        return verify_dataset(dataset)


class Index(Tar):
    """ShardReader on a spoilt Parquet file."""

    def seeds(self, dataset: Path) -> list[bytes]:
        return [(dataset / f"{SHARD}.parquet").read_bytes()]

    def read(self, content: bytes, dataset: Path) -> object:
        (dataset / f"{SHARD}.parquet").write_bytes(content)
        shard = open_shard(dataset, SHARD)
        return [shard.read_sample(row) for row in range(min(len(shard), 10))]


class Card:
    """The data set card, its own sum made to fit or not."""

    def seeds(self, dataset: Path) -> list[bytes]:
        return [(dataset / CARD_NAME).read_bytes()]

    def spoil(self, seed: bytes, rng: Rng) -> bytes:
        if rng.random() < 0.3:
            return mutate(seed, rng)
        body = json.loads(seed)
        del body["sha256"]
        body = mutate_json(body, rng)
        return json.dumps(body | {"sha256": sha256_json(body)} if isinstance(body, dict) else body).encode()

    def read(self, content: bytes, dataset: Path) -> object:
        (dataset / CARD_NAME).write_bytes(content)
        read_all(lambda: rebuild_indexes(dataset))
        read_all(lambda: verify_dataset(dataset))
        return load_dataset_card(dataset)


class Manifest:
    """The manifests of the corpora."""

    def seeds(self, dataset: Path) -> list[bytes]:
        folder = REPOSITORY / "data_manifests"
        return [(folder / f"{name}.yaml").read_bytes() for name in ("librispeech", "ami", "covost", "coco")]

    def spoil(self, seed: bytes, rng: Rng) -> bytes:
        return mutate(seed, rng)

    def read(self, content: bytes, dataset: Path) -> object:
        return parse_corpus_manifest(content.decode("latin-1"), "manifest")


class Audio:
    """Recordings in every encoding that is read."""

    def seeds(self, dataset: Path) -> list[bytes]:
        wave = np.sin(np.arange(4_000) / 9) / 2
        encodings = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III"}
        for kind, subtype in encodings.items():
            soundfile.write(dataset / f"seed.{kind}", wave, 16_000, subtype=subtype, format=kind.upper())
        return [(dataset / f"seed.{kind}").read_bytes() for kind in encodings]

    def spoil(self, seed: bytes, rng: Rng) -> bytes:
        # Most of it is samples; what is claimed stands at the beginning.
        head, rest = (seed[:256], seed[256:]) if rng.random() < 0.7 else (seed, b"")
        return mutate(head, rng) + rest

    def read(self, content: bytes, dataset: Path) -> object:
        path = dataset / "recording"
        path.write_bytes(content)
        return load_waveform(path)


class Sizes:
    """`vocabulary.json`."""

    def seeds(self, dataset: Path) -> list[bytes]:
        return [json.dumps(Vocabulary(400, 500, 512, 0, 0).to_json()).encode()]

    def spoil(self, seed: bytes, rng: Rng) -> bytes:
        return json.dumps(mutate_json(json.loads(seed), rng)).encode()

    def read(self, content: bytes, dataset: Path) -> object:
        return Vocabulary.from_json(json.loads(content))


def read_all(read: Callable[[], object]) -> None:
    """Reads, and lets a DmlmError pass."""
    try:
        read()
    except DmlmError:
        return


def spoilt(target: Target, name: str, dataset: Path, num_examples: int, seconds: float) -> Iterator[bytes]:
    """Inputs kept from before, then `num_examples` and more until the time is up."""
    for path in sorted((ASSETS / name).glob("*")):
        yield path.read_bytes()
    seeds, rng = target.seeds(dataset), np.random.default_rng(6)
    stop, number = time.monotonic() + seconds, 0
    while number < num_examples or time.monotonic() < stop:
        yield target.spoil(seeds[number % len(seeds)], rng)
        number += 1


@pytest.mark.parametrize("name", ["tar", "index", "card", "manifest", "audio", "vocabulary"])
def test_nothing_but_a_dmlm_error_escapes(
    name: str,
    amount: Callable[[int, int], int],
    dataset: Path,
    plant_tar: Callable[..., None],
    tmp_path: Path,
) -> None:
    targets: dict[str, Target] = {
        "tar": Tar(plant_tar),
        "index": Index(plant_tar),
        "card": Card(),
        "manifest": Manifest(),
        "audio": Audio(),
        "vocabulary": Sizes(),
    }
    target, num_read, num_refused = targets[name], 0, 0
    pristine = {path: path.read_bytes() for path in dataset.iterdir() if path.is_file()}
    seconds = float(os.environ.get("DMLM_FUZZ_SECONDS", amount(0, 600)))
    for content in spoilt(target, name, dataset, amount(200, 2_000), seconds):
        (tmp_path / "last").write_bytes(content)  # if this one escapes, it belongs into ASSETS
        try:
            target.read(content, dataset)
            num_read += 1
        except DmlmError:
            num_refused += 1
        for path, whole in pristine.items():
            path.write_bytes(whole)
    assert num_refused > num_read / 10
