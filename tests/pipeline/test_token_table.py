"""Many token arrays at once: the same tokens and the same refusals as one at a time."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmlm.pipeline.errors import ShardCorruptError
from dmlm.pipeline.samples import Sample
from dmlm.pipeline.shards import open_shard, write_shard
from dmlm.pipeline.shards.format import TOKEN_MEMBERS, encode_npy
from dmlm.pipeline.shards.index import build_index, read_index, write_index
from dmlm.pipeline.shards.token_table import ShardTokens, TokenTable
from dmlm.pipeline.vocabulary import Vocabulary

VOCABULARY = Vocabulary(num_text=400, num_speech=16, num_image=64, bos_id=0, eos_id=0)
TOKENS = {"speech": (3, 3, 5), "image": (7,), "text": (1, 399, 2), "translation": (9, 8)}


def sample(key: str, **tokens: tuple[int, ...]) -> Sample:
    arrays = {f"{name}_tokens": np.array(ids, np.int32) for name, ids in tokens.items()}
    return Sample(key=key, source="s", split="train", **arrays)


def open_table(directory: Path, *shards: list[Sample]) -> TokenTable:
    readers = []
    for number, samples in enumerate(shards):
        name = f"x-{number:06d}"
        write_shard(directory, name, samples, VOCABULARY, task_sha256="t", num_in=len(samples))
        readers.append(open_shard(directory, name, columns=["key"]))
    return TokenTable([ShardTokens.of(reader, len(reader)) for reader in readers])


@given(rows=st.lists(st.integers(0, 8), max_size=20), member=st.sampled_from(TOKEN_MEMBERS))
def test_arrays_come_in_the_order_asked_for(
    rows: list[int], member: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    counts = [3, 0, 1, 5, 2, 0, 0, 7, 4]
    ids = [tuple((row + i) % 16 for i in range(count)) for row, count in enumerate(counts)]
    samples = [sample(f"k{row}", **{member: ids[row]}) for row in range(9)]
    table = open_table(tmp_path_factory.mktemp("shards"), samples[:4], samples[4:5], samples[5:])
    tokens, found = table.read(np.array(rows, np.int64), member)
    assert found.tolist() == [counts[row] for row in rows]
    assert tokens.tolist() == [token for row in rows for token in ids[row]]


def corrupt(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))


@pytest.mark.parametrize("member", TOKEN_MEMBERS)
@pytest.mark.parametrize("bad", [-1, 16, 64, 400])
def test_an_id_out_of_range_is_found_among_many_arrays(member: str, bad: int, tmp_path: Path) -> None:
    stop = {"speech": 16, "image": 64}.get(member, 400)
    samples = [sample(f"k{row}", **{name: (row, row) for name in TOKEN_MEMBERS}) for row in range(12)]
    write_shard(tmp_path, "x-000000", samples, VOCABULARY, task_sha256="t", num_in=12)
    reader = open_shard(tmp_path, "x-000000")
    offset = reader.index[f"{member}_offset"][7].as_py() + 128 + 4
    with (tmp_path / "x-000000.tar").open("r+b") as tar:
        tar.seek(offset)
        tar.write(np.int32(bad).tobytes())
    table = TokenTable([ShardTokens.of(open_shard(tmp_path, "x-000000"), 12)])
    if 0 <= bad < stop:
        assert table.read(np.arange(12), member)[0][15] == bad
        return
    with pytest.raises(
        ShardCorruptError, match=rf"x-000000.tar: row 7: {member}: .*\[0, {stop}\), found {bad};"
    ):
        table.read(np.arange(12)[::-1], member)
    assert len(table.read(np.array([6, 8]), member)[0]) == 4


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"(3,)", b"(4,)"),
        (b"'<i4'", b"'|O4'"),
        (b"\x93NUMPY\x01", b"\x93NUMPY\x02"),
        (b"'fortran_order': False", b"'fortran_order': True "),
    ],
    ids=["shape", "object", "version", "order"],
)
def test_any_other_header_is_refused(old: bytes, new: bytes, tmp_path: Path) -> None:
    open_table(tmp_path, [sample("a", speech=(1,)), sample("b", text=(1, 2, 3))])
    header = encode_npy(np.array([1, 2, 3], np.int32))[:128]
    corrupt(tmp_path / "x-000000.tar", header, header.replace(old, new))
    table = TokenTable([ShardTokens.of(open_shard(tmp_path, "x-000000"), 2)])
    with pytest.raises(ShardCorruptError, match="row 1: text: not an npy array"):
        table.read(np.array([1]), "text")
    assert table.read(np.array([0]), "speech")[0].tolist() == [1]


def test_a_bad_header_among_many_shards_is_named(tmp_path: Path) -> None:
    shards = [[sample(f"k{shard}{row}", text=(shard, row)) for row in range(3)] for shard in range(3)]
    open_table(tmp_path, *shards)
    offset = open_shard(tmp_path, "x-000001").index["text_offset"][2].as_py()
    with (tmp_path / "x-000001.tar").open("r+b") as tar:
        tar.seek(offset + 127)  # its last byte
        tar.write(b" ")
    readers = [open_shard(tmp_path, f"x-{number:06d}") for number in range(3)]
    table = TokenTable([ShardTokens.of(reader, 3) for reader in readers])
    with pytest.raises(ShardCorruptError, match=r"x-000001.tar: row 2: text: not an npy array"):
        table.read(np.array([8, 0, 5, 3]), "text")
    assert table.read(np.array([8, 0, 4, 3]), "text")[0].tolist() == [2, 2, 0, 0, 1, 1, 1, 0]


def test_each_shard_has_its_own_range_of_ids(tmp_path: Path) -> None:
    small, large = VOCABULARY, replace(VOCABULARY, num_speech=100)
    shards = []
    for name, vocabulary in (("a", small), ("b", large)):
        samples = [sample("k", speech=(15,)), sample("l", speech=(len(vocabulary.speech) - 1,))]
        write_shard(tmp_path, name, samples, vocabulary, task_sha256="t", num_in=2)
        shards.append(ShardTokens.of(open_shard(tmp_path, name), 2))
    table = TokenTable(shards)
    assert table.read(np.array([3, 0, 1]), "speech")[0].tolist() == [99, 15, 15]
    with (tmp_path / "a.tar").open("r+b") as tar:
        tar.seek(open_shard(tmp_path, "a").index["speech_offset"][1].as_py() + 128)
        tar.write(np.int32(16).tobytes())
    with pytest.raises(ShardCorruptError, match=r"a.tar: row 1: speech: .*\[0, 16\), found 16;"):
        table.read(np.array([3, 0, 1]), "speech")


def test_a_table_without_any_array_has_none(tmp_path: Path) -> None:
    table = open_table(tmp_path, [sample("a")])
    assert table.read(np.array([], np.int64), "text")[0].tolist() == []
    with pytest.raises(ShardCorruptError, match="row 0: text: has no text"):
        table.read(np.array([0]), "text")


def test_a_member_that_a_sample_lacks_is_an_error(tmp_path: Path) -> None:
    table = open_table(tmp_path, [sample("a", **TOKENS), sample("b", text=(1,))])
    with pytest.raises(ShardCorruptError, match="row 1: image: has no image, but its index counts some"):
        table.read(np.array([0, 1]), "image")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("text_offset", 1 << 40),
        ("text_offset", None),
        ("text_bytes", 127),
        ("text_bytes", 141),
        ("text_bytes", None),
    ],
)
def test_an_index_that_points_outside_is_refused_when_it_is_opened(
    column: str, value: int | None, tmp_path: Path
) -> None:
    open_table(tmp_path, [sample("a", **TOKENS), sample("b", **TOKENS)])
    index, footer = read_index(tmp_path / "x-000000.parquet")
    rows = index.to_pylist()
    rows[1][column] = value
    write_index(tmp_path / "x-000000.parquet", build_index(rows), footer)
    with pytest.raises(ShardCorruptError, match=r"x-000000.parquet: row 1: points where no array can lie"):
        ShardTokens.of(open_shard(tmp_path, "x-000000"), 2)


def test_only_the_columns_wanted_are_read(tmp_path: Path) -> None:
    open_table(tmp_path, [sample("a", **TOKENS)])
    names = open_shard(tmp_path, "x-000000", columns=["key"]).index.column_names
    assert names[0] == "key"
    assert "text" not in names
    everything = open_shard(tmp_path, "x-000000").index
    assert set(names) < set(everything.column_names)
    assert isinstance(everything, pa.Table)


def test_a_table_can_be_sent_to_another_process(tmp_path: Path) -> None:
    table = open_table(tmp_path, [sample("a", **TOKENS)], [sample("b", **TOKENS)])
    sent = pickle.loads(pickle.dumps(table))
    for member, ids in TOKENS.items():
        tokens, counts = sent.read(np.array([1, 0]), member)
        assert tokens.tolist() == [*ids, *ids]
        assert counts.tolist() == [len(ids)] * 2
