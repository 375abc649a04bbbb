"""Members of a tar are data, never paths: whatever they are called, nothing is written anywhere."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dmlm.pipeline.errors import ShardCorruptError
from dmlm.pipeline.shards import iter_samples, verify_dataset
from dmlm.pipeline.shards.format import encode_npy
from dmlm.pipeline.shards.ustar import END_OF_TAR, padding_of, tar_header

MIB = 1 << 20
ONE_ID = encode_npy(np.zeros(1, np.int32))
GNU, PAX, USTAR = tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT

NAMES = (
    *(
        "../x.json",
        "../../x.json",
        "a/../../x.json",
        "./x.json",
        "/x.json",
        "//x.json",
        "..",
        ".",
        "~/x.json",
    ),
    *("C:\\x.json", "..\\x.json", "$(touch x).json", "`touch x`.json", "|touch x.json", "-x/.json", ".json"),
    *("x.json/", "x\n.json", "x.tar", "%2e%2e/x.json", "a/x.json"),
)
TYPES = {
    "symlink": tarfile.SYMTYPE,
    "hard link": tarfile.LNKTYPE,
    "character device": tarfile.CHRTYPE,
    "block device": tarfile.BLKTYPE,
    "fifo": tarfile.FIFOTYPE,
    "folder": tarfile.DIRTYPE,
    "contiguous": tarfile.CONTTYPE,
    "sparse": tarfile.GNUTYPE_SPARSE,
    "unknown": b"9",
}


def tar_of(name: str, data: bytes = b"{}", tar_format: int = USTAR, **fields: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        for field, value in fields.items():
            setattr(info, field, value)
        tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def sample_of_three(number: int) -> bytes:
    key = f"k{number}"
    head = f'{{"key":"{key}","source":"s","split":"train"}}'.encode()
    payloads = {"json": head, "speech.npy": ONE_ID, "text.npy": ONE_ID}
    return b"".join(
        tar_header(f"{key}.{suffix}", len(payload)) + payload + bytes(padding_of(len(payload)))
        for suffix, payload in payloads.items()
    )


CASES: dict[str, Callable[[], bytes]] = {
    **{f"name {name!r}": lambda name=name: tar_of(name) for name in NAMES},
    **{
        f"type {name}": lambda kind=kind: tar_of("k0.json", b"", type=kind, linkname="../../x")
        for name, kind in TYPES.items()
    },
    "gnu name of 1 MB": lambda: tar_of("k" * MIB + ".json", tar_format=GNU),
    "gnu link of 1 MB": lambda: tar_of(
        "k0.json", b"", GNU, type=tarfile.SYMTYPE, linkname="../" * (MIB // 3)
    ),
    "pax size": lambda: tar_of("k0.json", tar_format=PAX, pax_headers={"size": "99999999999"}),
    "pax path": lambda: tar_of("k0.json", tar_format=PAX, pax_headers={"path": "../x.json"}),
    "pax sparse": lambda: tar_of("k0.json", tar_format=PAX, pax_headers={"GNU.sparse.major": "1"}),
    "size of 8 GiB": lambda: tar_header("k0.json", 2**33 - 1) + END_OF_TAR,
    "negative size": lambda: (tar_header("k0.json", 0)[:124] + b"\xff" * 12 + bytes(376)) + END_OF_TAR,
    "nested tar": lambda: tar_of("k0.tar", tar_of("k0.json")),
}


def listing(folder: Path) -> list[tuple[str, int]]:
    return sorted(
        (str(path.relative_to(folder)), path.lstat().st_size) for path in folder.rglob("*") if path.is_file()
    )


def assert_refused_and_nothing_written(dataset: Path, folder: Path) -> None:
    before = listing(folder)
    for read in (lambda: verify_dataset(dataset), lambda: list(iter_samples(dataset))):
        with pytest.raises(ShardCorruptError):
            read()
    assert listing(folder) == before
    assert not os.path.lexists("/x.json")


@pytest.mark.parametrize("case", CASES)
def test_hostile_member_is_refused_and_writes_nothing(
    case: str,
    dataset: Path,
    plant_tar: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant_tar(dataset, CASES[case]())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert_refused_and_nothing_written(dataset, tmp_path)


def test_a_million_members_that_nothing_vouches_for_are_refused(
    amount: Callable[[int, int], int], dataset: Path, plant_tar: Callable[..., None], tmp_path: Path
) -> None:
    num_samples = -(-amount(5_000, 1_000_000) // 3)
    plant_tar(dataset, b"".join(map(sample_of_three, range(num_samples))) + END_OF_TAR)
    assert_refused_and_nothing_written(dataset, tmp_path)
