"""The walk through a tar accepts what the writer writes, and nothing else at all."""

import io
import tarfile
from collections.abc import Callable

import numpy as np
import pytest

from dmlm.pipeline.errors import ShardCorruptError
from dmlm.pipeline.shards.format import encode_npy
from dmlm.pipeline.shards.ustar import BLOCK_BYTES, END_OF_TAR, padding_of, tar_header, walk_samples

NPY = encode_npy(np.arange(200, dtype=np.int32))
Member = tuple[str, bytes]


def tar_of(members: list[Member]) -> bytes:
    parts = [tar_header(name, len(data)) + data + bytes(padding_of(len(data))) for name, data in members]
    return b"".join(parts) + END_OF_TAR


def sample(key: str) -> list[Member]:
    return [(f"{key}.json", b"{}"), (f"{key}.speech.npy", NPY), (f"{key}.text.npy", NPY)]


GOOD = tar_of([member for number in range(4) for member in sample(f"k{number}")])


def walk(tar: bytes) -> list[str]:
    return [key for key, _ in walk_samples(memoryview(tar))]


def test_good_tar_gives_its_samples_and_python_reads_it_too() -> None:
    assert walk(GOOD) == ["k0", "k1", "k2", "k3"]
    with tarfile.open(fileobj=io.BytesIO(GOOD)) as tar:
        for key, spans in walk_samples(memoryview(GOOD)):
            for suffix, span in spans.items():
                file = tar.extractfile(f"{key}.{suffix}")
                assert file is not None
                assert file.read() == bytes(span.of(memoryview(GOOD)))
    assert walk(END_OF_TAR) == []


def test_tar_cut_anywhere_is_refused() -> None:
    for length in [*range(0, len(GOOD), BLOCK_BYTES), *range(1, len(GOOD), 37), len(GOOD) - 1]:
        with pytest.raises(ShardCorruptError):
            walk(GOOD[:length])


def test_flipped_bit_outside_the_payloads_is_refused() -> None:
    tar = memoryview(GOOD)
    payload = np.zeros(len(GOOD), dtype=bool)
    for _, spans in walk_samples(tar):
        for span in spans.values():
            payload[span.offset : span.offset + span.size] = True
    outside = np.flatnonzero(~payload)
    rng = np.random.default_rng(0)
    for position in rng.choice(outside, 500, replace=False):
        flipped = bytearray(GOOD)
        flipped[position] ^= 1 << int(rng.integers(8))
        with pytest.raises(ShardCorruptError):
            walk(bytes(flipped))


def with_info(name: str = "k9.json", data: bytes = b"", **fields: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=fields.pop("format", tarfile.USTAR_FORMAT)) as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        for field, value in fields.items():
            setattr(info, field, value)
        tar.addfile(info, io.BytesIO(data))
    content = buffer.getvalue().rstrip(b"\0")
    return content + bytes(padding_of(len(content))) + END_OF_TAR


def bomb() -> bytes:
    return tar_header("k.json", 2**33 - 1) + END_OF_TAR


def numbered(suffixes: list[str]) -> bytes:
    return tar_of([(f"k.{suffix}", b"{}" if suffix == "json" else NPY) for suffix in suffixes])


CATALOGUE: dict[str, Callable[[], bytes]] = {
    "empty file": lambda: b"",
    "parent path": lambda: with_info("../x.json"),
    "absolute path": lambda: with_info("/etc/x.json"),
    "folder": lambda: with_info("k.json", type=tarfile.DIRTYPE),
    "symlink": lambda: with_info(type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "hard link": lambda: with_info(type=tarfile.LNKTYPE, linkname="k0.json"),
    "device": lambda: with_info(type=tarfile.CHRTYPE),
    "fifo": lambda: with_info(type=tarfile.FIFOTYPE),
    "sparse": lambda: with_info(type=tarfile.GNUTYPE_SPARSE),
    "old regular type": lambda: with_info(type=tarfile.AREGTYPE),
    "gnu header": lambda: with_info(format=tarfile.GNU_FORMAT),
    "gnu long name": lambda: with_info("k" * (1 << 20) + ".json", format=tarfile.GNU_FORMAT),
    "pax override": lambda: with_info(pax_headers={"size": "1"}, format=tarfile.PAX_FORMAT),
    "time": lambda: with_info(mtime=1),
    "owner": lambda: with_info(uname="me"),
    "executable": lambda: with_info(mode=0o755),
    "pickle": lambda: with_info("k.pkl", b"cos\nsystem\n"),
    "pth": lambda: with_info("k.pth", b"x"),
    "pyd": lambda: with_info("k.pyd", b"x"),
    "key with a dot": lambda: with_info("k.1.json", b"{}"),
    "key too long": lambda: with_info("k" * 81 + ".json", b"{}"),
    "key not ascii": lambda: with_info("é.json", b"{}"),
    "nested tar": lambda: with_info("k.tar", GOOD),
    "size over the file": bomb,
    "json over 1 MiB": lambda: tar_of([("k.json", bytes((1 << 20) + 1))]),
    "member over 16 MiB": lambda: tar_of([("k.json", b"{}"), ("k.text.npy", bytes((16 << 20) + 1))]),
    "sample over 32 MiB": lambda: tar_of(
        [("k.json", b"{}"), *((f"k.{name}.npy", bytes(12 << 20)) for name in ("speech", "image", "text"))]
    ),
    "key twice": lambda: tar_of([*sample("k"), *sample("j"), *sample("k")]),
    "interleaved keys": lambda: tar_of([pair[i] for i in range(3) for pair in (sample("a"), sample("b"))]),
    "member twice": lambda: numbered(["json", "text.npy", "text.npy"]),
    "no json": lambda: numbered(["speech.npy"]),
    "json last": lambda: numbered(["speech.npy", "json"]),
    "order": lambda: numbered(["json", "text.npy", "speech.npy"]),
    "concatenated": lambda: GOOD + GOOD,
    "record padding": lambda: GOOD + bytes(BLOCK_BYTES),
    "bytes behind the end": lambda: GOOD + b"x" * BLOCK_BYTES,
    "no end": lambda: GOOD[: -len(END_OF_TAR)],
    "half an end": lambda: GOOD[:-BLOCK_BYTES],
    "dirty padding": lambda: tar_header("k.json", 2) + b"{}" + b"x" * 510 + END_OF_TAR,
    "compressed": lambda: b"\x1f\x8b" + GOOD[2:],
}


def test_catalogue_differs_from_an_accepted_tar_in_one_thing_only() -> None:
    assert walk(with_info("k.json", b"{}")) == ["k"]
    assert walk(numbered(["json", "speech.npy", "text.npy"])) == ["k"]
    assert walk(tar_header("k.json", 2) + b"{}" + bytes(510) + END_OF_TAR) == ["k"]


@pytest.mark.parametrize("case", CATALOGUE)
def test_whatever_the_writer_does_not_write_is_refused(case: str) -> None:
    with pytest.raises(ShardCorruptError):
        walk(CATALOGUE[case]())
