"""R3, R4: every cut and every flipped bit of a data set is found, and so are tars that are mixed up."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dmlm.pipeline.errors import ShardCorruptError
from dmlm.pipeline.shards import (
    iter_samples,
    load_dataset_card,
    open_shard,
    verify_dataset,
    write_dataset_card,
)
from dmlm.pipeline.shards.card import LEDGER_NAME
from dmlm.pipeline.shards.rebuilding import rebuild_indexes
from dmlm.pipeline.shards.ustar import END_OF_TAR

SHARD = "x-000000"
BLOCK_BYTES = 512


def files_of(dataset: Path) -> list[Path]:
    return sorted(path for path in dataset.rglob("*") if path.is_file())


def assert_found(dataset: Path, path: Path, content: bytes, what: str) -> None:
    """Writes `content` in place of a file, expects the verifier to refuse it, and puts the file back."""
    whole = path.read_bytes()
    path.write_bytes(content)
    try:
        verify_dataset(dataset)
        pytest.fail(f"{path.name}: {what} was not found")
    except ShardCorruptError:
        pass
    finally:
        path.write_bytes(whole)


def places_to_cut(num_bytes: int, num_random: int, every: int) -> Iterator[int]:
    yield from range(0, num_bytes, every)
    yield from np.random.default_rng(num_random).integers(0, num_bytes, num_random).tolist()


def test_every_cut_of_a_tar_and_its_index_is_found(amount: Callable[[int, int], int], dataset: Path) -> None:
    for suffix in ("tar", "parquet"):
        path = dataset / f"{SHARD}.{suffix}"
        whole = path.read_bytes()
        for length in places_to_cut(len(whole), amount(30, 1_000), BLOCK_BYTES):
            assert_found(dataset, path, whole[:length], f"cut at {length}")
    tar = dataset / f"{SHARD}.tar"
    tar.write_bytes(tar.read_bytes()[:-BLOCK_BYTES])
    with pytest.raises(ShardCorruptError, match="its index says"):  # before a token is read
        open_shard(dataset, SHARD)


def test_every_cut_of_the_card_means_no_data_set(amount: Callable[[int, int], int], dataset: Path) -> None:
    path = dataset / "dataset.json"
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, amount(29, 1)):  # without its last newline it is whole
        path.write_bytes(whole[:length])
        with pytest.raises(ShardCorruptError, match="not a finished data set"):
            load_dataset_card(dataset)


def test_card_that_does_not_vouch_for_the_ledger_is_refused(dataset: Path) -> None:
    write_dataset_card(dataset, replace(load_dataset_card(dataset), files={}))
    (dataset / LEDGER_NAME).unlink()
    for read in (verify_dataset, rebuild_indexes):
        with pytest.raises(ShardCorruptError, match=r"its files lack ledger\.jsonl"):
            read(dataset)


def test_every_flipped_bit_is_found(amount: Callable[[int, int], int], dataset: Path) -> None:
    rng = np.random.default_rng(3)
    files = [path for path in files_of(dataset) if path.stat().st_size]
    sizes = np.array([path.stat().st_size for path in files])
    num_flips = amount(200, 10_000)
    # Half of them spread over bytes, half over files, so that the small ones are not left out.
    chosen = [
        *rng.choice(len(files), num_flips // 2, p=sizes / sizes.sum()),
        *rng.integers(0, len(files), num_flips // 2),
    ]
    for number in chosen:
        flipped = bytearray(files[number].read_bytes())
        place, bit = int(rng.integers(len(flipped))), int(rng.integers(8))
        flipped[place] ^= 1 << bit
        assert_found(dataset, files[number], flipped, f"bit {bit} of byte {place}")
    verify_dataset(dataset)


def members_of(tar: bytes) -> list[bytes]:
    """The members of a tar, each with its header and padding."""
    body, members = tar.removesuffix(END_OF_TAR), []
    while body:
        size = int(body[124:135], 8)
        end = BLOCK_BYTES * (1 + -(-size // BLOCK_BYTES))
        members.append(body[:end])
        body = body[end:]
    return members


def twice(members: list[bytes]) -> bytes:
    return b"".join([*members, *members[:3]]) + END_OF_TAR


def interleaved(members: list[bytes]) -> bytes:
    first, second = members[:3], members[3:6]
    return b"".join(member for pair in zip(first, second, strict=True) for member in pair) + END_OF_TAR


def concatenated(members: list[bytes]) -> bytes:
    half = len(members) // 2
    return b"".join(members[:half]) + END_OF_TAR + b"".join(members[half:]) + END_OF_TAR


MIXTURES: dict[str, Callable[[list[bytes]], bytes]] = {
    "a sample twice": twice,
    "two samples interleaved": interleaved,
    "two tars in one": concatenated,
    "a member missing": lambda members: b"".join(members[1:]) + END_OF_TAR,
    "members in another order": lambda members: b"".join([members[1], members[0], *members[2:]]) + END_OF_TAR,
    "no end": b"".join,
    "only an end": lambda _: END_OF_TAR,
    "nothing": lambda _: b"",
}


@pytest.mark.parametrize("case", MIXTURES)
def test_tars_that_are_mixed_up_are_refused_though_every_sum_fits(
    case: str, dataset: Path, plant_tar: Callable[..., None]
) -> None:
    members = members_of((dataset / f"{SHARD}.tar").read_bytes())
    plant_tar(dataset, MIXTURES[case](members))
    with pytest.raises(ShardCorruptError):
        verify_dataset(dataset)
    if case in ("nothing", "only an end"):
        with pytest.raises(ShardCorruptError):
            list(iter_samples(dataset))
