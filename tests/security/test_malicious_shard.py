"""A shard that somebody made up, every checksum fitting, runs nothing and is refused."""

import io
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dmlm.pipeline.errors import ShardCorruptError
from dmlm.pipeline.shards import iter_samples, open_shard, verify_dataset
from dmlm.pipeline.shards.format import encode_npy
from dmlm.pipeline.shards.ustar import END_OF_TAR, MAX_JSON_BYTES, padding_of, tar_header

JSON = b'{"key":"k0","source":"s","split":"train"}'
EVIL_MODULE = b"import pathlib; pathlib.Path(__file__).with_name('canary').mkdir()\n"


def member(name: str, payload: bytes) -> bytes:
    return tar_header(name, len(payload)) + payload + bytes(padding_of(len(payload)))


def object_array(canary: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([canary], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def zipped_array(canary: object) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, np.array([canary], dtype=object))
    return buffer.getvalue()


def shaped(shape: str, descr: str = "'<i4'") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


SUFFIXES = ("pkl", "pyd", "pth", "pt", "py", "npz", "pickle", "json.gz", "cls", "safetensors")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_members_that_others_would_decode_are_refused_unread(
    suffix: str, dataset: Path, plant_tar: Callable[..., None], canary: object
) -> None:
    payload = EVIL_MODULE if suffix == "py" else pickle.dumps(canary)
    plant_tar(dataset, member("k0.json", JSON) + member(f"k0.{suffix}", payload) + END_OF_TAR)
    modules = set(sys.modules)
    with pytest.raises(ShardCorruptError, match="not a tar header that dmlm writes"):
        verify_dataset(dataset)
    assert "k0" not in {name.rpartition(".")[2] for name in set(sys.modules) - modules}


PAYLOADS: dict[str, Callable[[object], bytes]] = {
    "pickle": pickle.dumps,
    "array of objects": object_array,
    "zip of arrays": zipped_array,
    "type that unpickles": lambda canary: shaped("(1,)", "'|O'") + pickle.dumps(canary),
    "type that is code": lambda _: shaped("(1,)", "__import__('os').mkdir('canary')"),
    "shape of 2**62": lambda _: shaped("(4611686018427387904,)") + bytes(64),
    "shape below zero": lambda _: shaped("(-1,)") + bytes(64),
    "header of 64 KiB": lambda _: shaped("(1,)" + " " * 60_000) + bytes(4),
    "ids out of range": lambda _: encode_npy(np.array([16], dtype=np.int32)),
}


@pytest.mark.parametrize("case", PAYLOADS)
def test_arrays_that_are_no_tokens_are_refused_by_every_reader(
    case: str, dataset: Path, plant_tar: Callable[..., None], canary: object
) -> None:
    payload = PAYLOADS[case](canary)
    head = member("k0.json", JSON)
    row = {"key": "k0", "source": "s", "split": "train", "json_offset": 512, "json_bytes": len(JSON)}
    place = {"speech_offset": len(head) + 512, "speech_bytes": len(payload), "num_speech_tokens": 1}
    counts = {f"num_{name}_tokens": 0 for name in ("image", "text", "translation")}
    rows = [row | counts | place | {"num_speech_runs": 1}]
    plant_tar(dataset, head + member("k0.speech.npy", payload) + END_OF_TAR, rows)
    for read in (
        lambda: verify_dataset(dataset),
        lambda: list(iter_samples(dataset)),
        lambda: open_shard(dataset, "x-000000").read_tokens(0, "speech"),
    ):
        with pytest.raises(ShardCorruptError):
            read()


DOCUMENTS = {
    "pickle": pickle.dumps({"key": "k0"}),
    "nested": b'{"key":"k0","source":"s","split":"train","text":' + b"[" * 33 + b"]" * 33 + b"}",
    "nested to the limit": b"[" * MAX_JSON_BYTES,
    "number of a million digits": b'{"key":"k0","source":"s","split":"train","duration_seconds":'
    + b"9" * 1_000_000
    + b"}",
    "object as text": b'{"key":"k0","source":"s","split":"train","text":{"__class__":"x"}}',
    "unknown field": b'{"key":"k0","source":"s","split":"train","__reduce__":"x"}',
    "NaN": b'{"key":"k0","source":"s","split":"train","duration_seconds":NaN}',
    "another key": JSON.replace(b"k0", b"k1"),
}


@pytest.mark.parametrize("case", DOCUMENTS)
def test_json_that_is_no_sample_is_refused(case: str, dataset: Path, plant_tar: Callable[..., None]) -> None:
    plant_tar(dataset, member("k0.json", DOCUMENTS[case]) + END_OF_TAR)
    with pytest.raises(ShardCorruptError):
        verify_dataset(dataset)


def test_tar_without_a_fault_is_whole_when_it_is_planted(
    dataset: Path, plant_tar: Callable[..., None]
) -> None:
    """What all these cases have in common is not what is refused."""
    plant_tar(dataset, (dataset / "x-000000.tar").read_bytes())
    assert verify_dataset(dataset).num_samples == len(list(iter_samples(dataset))) == 3
