"""Shards: what is written is what is read, by dmlm and by stock webdataset, and the same bytes each time."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlm.pipeline.errors import (
    AnnotationError,
    ConfigError,
    CorruptInputError,
    SampleError,
    ShardCorruptError,
)
from dmlm.pipeline.quarantine import LedgerEntry
from dmlm.pipeline.samples import Sample
from dmlm.pipeline.shards import TokenCounts, finished_shard, open_shard, write_shard
from dmlm.pipeline.shards.format import TOKEN_MEMBERS, decode_npy, decode_sample, encode_npy
from dmlm.pipeline.shards.index import num_runs, read_index
from dmlm.pipeline.vocabulary import Vocabulary

VOCABULARY = Vocabulary(num_text=400, num_speech=16, num_image=64, bos_id=0, eos_id=0)
RANGE = {"speech": 16, "image": 64, "text": 400, "translation": 400}


def write(directory: Path, samples: list[Sample], name: str = "x-000000") -> None:
    write_shard(directory, name, samples, VOCABULARY, task_sha256="task", num_in=len(samples))


def same(left: Sample, right: Sample) -> bool:
    for name in Sample.__slots__:
        mine, theirs = getattr(left, name), getattr(right, name)
        equal = np.array_equal(mine, theirs) if isinstance(mine, np.ndarray) else mine == theirs
        if not equal or type(mine) is not type(theirs):
            return False
    return True


def tokens_below(stop: int) -> st.SearchStrategy[np.ndarray | None]:
    ids = st.lists(st.integers(0, stop - 1), max_size=40).map(lambda ids: np.array(ids, dtype=np.int32))
    return st.none() | ids


TEXT = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
SECONDS = st.none() | st.floats(0, 1e5, allow_nan=False)
SAMPLES = st.lists(
    st.builds(
        Sample,
        key=st.from_regex(r"[A-Za-z0-9_-]{1,80}", fullmatch=True),
        source=st.sampled_from(["librispeech", "coco"]),
        split=st.just("train"),
        text=TEXT,
        translation=TEXT,
        language=st.sampled_from([None, "en"]),
        translation_language=st.sampled_from([None, "it"]),
        speaker=TEXT,
        recording_id=TEXT,
        image_id=TEXT,
        duration_seconds=SECONDS,
        overlap_seconds=SECONDS,
        **{f"{name}_tokens": tokens_below(stop) for name, stop in RANGE.items()},
    ),
    max_size=5,
    unique_by=lambda sample: sample.key,
)


@settings(max_examples=60)
@given(samples=SAMPLES)
def test_samples_survive_a_shard_and_its_bytes_are_the_same_twice(
    samples: list[Sample], tmp_path_factory: pytest.TempPathFactory
) -> None:
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    write(first, samples)
    write(second, samples)
    for suffix in ("tar", "parquet"):
        assert (first / f"x-000000.{suffix}").read_bytes() == (second / f"x-000000.{suffix}").read_bytes()
    reader = open_shard(first, "x-000000")
    assert len(reader) == len(samples)
    assert all(same(reader.read_sample(row), sample) for row, sample in enumerate(samples))


def speech_sample(key: str = "a-1", units: tuple[int, ...] = (3, 3, 5), **fields: object) -> Sample:
    text = np.array([7, 8], dtype=np.int32)
    return Sample(
        key=key,
        source="librispeech",
        split="train",
        text="Già è così",
        duration_seconds=1.5,
        speech_tokens=np.array(units, dtype=np.int32),
        text_tokens=text,
        **fields,
    )


def test_stock_webdataset_reads_equal_arrays_and_json(tmp_path: Path) -> None:
    samples = [speech_sample(f"utt_{i}", tuple(range(i % 16 + 1))) for i in range(20)]
    write(tmp_path, samples)
    dataset = webdataset.WebDataset(str(tmp_path / "x-000000.tar"), shardshuffle=False).decode()
    read = list(dataset)
    assert [entry["__key__"] for entry in read] == [sample.key for sample in samples]
    for entry, sample in zip(read, samples, strict=True):
        np.testing.assert_array_equal(entry["speech.npy"], sample.speech_tokens)
        np.testing.assert_array_equal(entry["text.npy"], sample.text_tokens)
        assert entry["json"]["text"] == "Già è così"
        assert "image.npy" not in entry


def test_index_says_lengths_offsets_and_texts(tmp_path: Path) -> None:
    write(tmp_path, [speech_sample(), Sample(key="t", source="text", split="train", text="già è cosi!")])
    reader = open_shard(tmp_path, "x-000000")
    first, second = reader.index.to_pylist()
    assert (first["num_speech_tokens"], first["num_speech_runs"], first["num_text_tokens"]) == (3, 2, 2)
    assert (second["num_speech_tokens"], second["speech_offset"], second["duration_seconds"]) == (
        0,
        None,
        None,
    )
    tar = (tmp_path / "x-000000.tar").read_bytes()
    payload = tar[first["speech_offset"] : first["speech_offset"] + first["speech_bytes"]]
    np.testing.assert_array_equal(np.load(io.BytesIO(payload)), [3, 3, 5])
    content = json.loads(tar[first["json_offset"] : first["json_offset"] + first["json_bytes"]])
    assert content["text"] == first["text"] == "Già è così"


def test_tokens_are_views_of_the_file_that_nobody_can_change(tmp_path: Path) -> None:
    write(tmp_path, [speech_sample()])
    tokens = open_shard(tmp_path, "x-000000").read_tokens(0, "speech")
    assert not tokens.flags.owndata
    assert not tokens.flags.writeable
    assert tokens.dtype == np.int32


def test_reading_a_member_that_a_sample_lacks_says_so(tmp_path: Path) -> None:
    write(tmp_path, [speech_sample()])
    with pytest.raises(KeyError, match="row 0 has no image"):
        open_shard(tmp_path, "x-000000").read_tokens(0, "image")


@pytest.mark.parametrize("num_tokens", [0, 1, 9, 10, 99_999, 1_000_000])
def test_npy_members_equal_those_of_numpy(num_tokens: int) -> None:
    tokens = np.arange(num_tokens, dtype=np.int32)
    expected = io.BytesIO()
    np.save(expected, tokens)
    assert encode_npy(tokens) == expected.getvalue()
    np.testing.assert_array_equal(decode_npy(memoryview(encode_npy(tokens))), tokens)


def saved(array: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "payload",
    [
        saved(np.array([print, 1], dtype=object), allow_pickle=True),
        saved(np.arange(4, dtype=np.int64)),
        saved(np.arange(4, dtype=np.float32)),
        saved(np.arange(4, dtype=">i4")),
        saved(np.arange(4, dtype=np.int32).reshape(2, 2)),
        saved(np.arange(4, dtype=np.int32))[:-1],
        saved(np.arange(4, dtype=np.int32)) + b"\0",
        encode_npy(np.arange(4, dtype=np.int32)).replace(b"(4,)", b"(9,)"),
        encode_npy(np.arange(4, dtype=np.int32)).replace(b"\x01\x00", b"\x02\x00", 1),
        b"",
    ],
    ids=["pickle", "int64", "float", "big-endian", "2-D", "cut", "long", "shape", "version", "empty"],
)
def test_any_other_npy_is_refused(payload: bytes) -> None:
    with pytest.raises(ShardCorruptError, match="not an npy array"):
        decode_npy(memoryview(payload))


@pytest.mark.parametrize("name", TOKEN_MEMBERS)
@pytest.mark.parametrize("offset", [-1, 0])
def test_ids_out_of_range_are_not_written(name: str, offset: int, tmp_path: Path) -> None:
    bad = -1 if offset else RANGE[name]
    sample = Sample(
        key="a", source="s", split="train", **{f"{name}_tokens": np.array([0, bad], dtype=np.int32)}
    )
    with pytest.raises(CorruptInputError, match="ids must be in"):
        write(tmp_path, [sample])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", TOKEN_MEMBERS)
def test_ids_out_of_range_are_not_read(name: str, tmp_path: Path) -> None:
    write(
        tmp_path, [Sample(key="a", source="s", split="t", **{f"{name}_tokens": np.arange(3, dtype=np.int32)})]
    )
    tar = tmp_path / "x-000000.tar"
    data = tar.read_bytes()
    tar.write_bytes(data.replace(np.int32(2).tobytes(), np.int32(RANGE[name]).tobytes()))
    reader = open_shard(tmp_path, "x-000000")
    with pytest.raises(ShardCorruptError, match=r"row 0: .* ids must be in"):
        reader.read_tokens(0, name)
    with pytest.raises(ShardCorruptError, match=r"row 0: .* ids must be in"):
        reader.read_sample(0)


@pytest.mark.parametrize("key", ["../x", "a.b", "", "a/b", "k" * 81, "é"])
def test_keys_that_cannot_name_members_are_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="must be 1 to 80 letters"):
        write(tmp_path, [speech_sample(key)])


def test_text_that_is_not_unicode_or_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="UTF-8"):
        write(tmp_path, [Sample(key="a", source="s", split="t", text="\ud800")])
    with pytest.raises(SampleError, match="1 MiB"):
        write(tmp_path, [Sample(key="a", source="s", split="t", text="x" * (1 << 20))])
    assert not list(tmp_path.iterdir())


def test_finished_shard_is_recognised_by_its_footer(tmp_path: Path) -> None:
    entry = LedgerEntry(key="b", outcome="quarantined", stage="audio", reason="cut", error="AudioError")
    write_shard(
        tmp_path, "x-000000", [speech_sample()], VOCABULARY, task_sha256="t1", num_in=2, ledger=(entry,)
    )
    assert finished_shard(tmp_path, "x-000000", "t2") is None
    finished = finished_shard(tmp_path, "x-000000", "t1")
    assert finished is not None
    record, footer = finished
    assert (record.task_sha256, record.num_samples) == ("t1", 1)
    assert record.num_tokens == TokenCounts(speech=3, text=2)
    assert (footer.num_in, footer.ledger, footer.audio_seconds) == (2, (entry,), 1.5)


def test_shard_without_its_own_index_is_not_finished(tmp_path: Path) -> None:
    write(tmp_path, [speech_sample("a")], "x-000000")
    write(tmp_path, [speech_sample("b")], "x-000001")
    assert finished_shard(tmp_path, "x-000000", "task") is not None
    (tmp_path / "x-000000.parquet").write_bytes((tmp_path / "x-000001.parquet").read_bytes())
    assert finished_shard(tmp_path, "x-000000", "task") is None
    (tmp_path / "x-000001.parquet").unlink()
    assert finished_shard(tmp_path, "x-000001", "task") is None


def test_shard_whose_index_has_a_wrong_bit_is_not_finished(tmp_path: Path) -> None:
    write(tmp_path, [speech_sample(f"sample-{number}") for number in range(30)], "x-000000")
    path = tmp_path / "x-000000.parquet"
    whole, data = read_index(path)[0], path.read_bytes()
    for position in range(4, len(data) // 2, 7):  # pages; the footer is the half behind them
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        if finished_shard(tmp_path, "x-000000", "task") is not None:
            assert read_index(path)[0].equals(whole)


@pytest.mark.parametrize(
    "address",
    [
        "pipe:echo canary",
        "http://127.0.0.1/x.tar",
        "x-{000000..999999}.tar",
        "-",
        "|cat",
        "$(id)",
        "file:/etc",
    ],
)
def test_addresses_pipes_and_patterns_are_not_shards(address: str) -> None:
    with pytest.raises(ConfigError, match="a data set is a local folder"):
        open_shard(Path(address), "x-000000")


@given(st.lists(st.integers(0, 2)))
def test_runs_are_counted_as_groupby_does(ids: list[int]) -> None:
    from itertools import groupby

    assert num_runs(np.array(ids, dtype=np.int32)) == len(list(groupby(ids)))


def test_an_open_shard_holds_no_file_open(tmp_path: Path) -> None:
    write(tmp_path, [speech_sample()])
    reader = open_shard(tmp_path, "x-000000")
    names = {os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()}
    assert not any(name.startswith(str(tmp_path)) for name in names)
    assert reader.read_tokens(0, "speech").tolist() == [3, 3, 5]


def test_a_sample_whose_index_names_no_json_is_refused() -> None:
    """Found by the long form of test_fuzz.py."""
    with pytest.raises(ShardCorruptError, match="no json"):
        decode_sample(memoryview(b""), {})
