"""`verify` finds whatever differs between card, index and tar, and says where."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dmlm.pipeline.errors import ConfigError, ShardCorruptError
from dmlm.pipeline.quarantine import LedgerEntry
from dmlm.pipeline.samples import Modality, Sample
from dmlm.pipeline.shards import (
    DatasetCard,
    DatasetTotals,
    iter_samples,
    load_dataset_card,
    verify_dataset,
    write_dataset_card,
    write_shard,
)
from dmlm.pipeline.shards.card import LEDGER_NAME, encode_ledger, fingerprint_sha256
from dmlm.pipeline.shards.index import read_index, write_index
from dmlm.pipeline.storage import sha256_file
from dmlm.pipeline.vocabulary import Vocabulary

VOCABULARY = Vocabulary(num_text=400, num_speech=16, num_image=0, bos_id=0, eos_id=0)
TEXT_MARK = {"tokenizer": "bytes"}
SKIPPED = LedgerEntry(key="s", outcome="skipped", stage="source", reason="no audio")
BAD = LedgerEntry(key="b", outcome="quarantined", stage="audio", reason="cut", error="AudioError")


def make_samples(shard: int, num_samples: int = 4) -> list[Sample]:
    rng = np.random.default_rng(shard)
    return [
        Sample(
            key=f"s{shard}-{number}",
            source="librispeech",
            split="train",
            text=f"word {number}",
            duration_seconds=0.1 * (number + 1),
            speech_tokens=rng.integers(0, 16, 30).astype(np.int32),
            text_tokens=rng.integers(0, 400, 7).astype(np.int32),
        )
        for number in range(num_samples)
    ]


def publish(directory: Path, shards: list[list[Sample]], vocabulary: Vocabulary = VOCABULARY) -> None:
    written = [
        write_shard(
            directory,
            f"x-{number:06d}",
            samples,
            vocabulary,
            task_sha256=f"task {number}",
            num_in=len(samples) + 2,
            ledger=(SKIPPED, BAD),
        )
        for number, samples in enumerate(shards)
    ]
    footers = [shard.footer for shard in written]
    (directory / LEDGER_NAME).write_bytes(encode_ledger(footers))
    (directory / "codebook").mkdir(exist_ok=True)
    (directory / "codebook" / "tokenizer.json").write_text("{}")
    records = tuple(shard.record for shard in written)
    card = DatasetCard(
        name="x",
        shards=records,
        totals=DatasetTotals.of(records, footers),
        fingerprints={Modality.TEXT: TEXT_MARK | {"sha256": fingerprint_sha256(TEXT_MARK)}},
        text_rule="lower",
        vocabulary=vocabulary,
        versions={"dmlm": "0"},
        settings={"limit": None},
        licence="CC0",
        files={name: sha256_file(directory / name) for name in (LEDGER_NAME, "codebook/tokenizer.json")},
    )
    write_dataset_card(directory, card)


def resign(directory: Path, **changes: object) -> None:
    """Rewrites the card so that every checksum fits the files as they are now: only content can tell."""
    card = load_dataset_card(directory)
    shards = tuple(
        dataclasses.replace(
            shard,
            tar_sha256=sha256_file(directory / f"{shard.name}.tar"),
            index_sha256=sha256_file(directory / f"{shard.name}.parquet"),
        )
        for shard in card.shards
    )
    write_dataset_card(directory, dataclasses.replace(card, **{"shards": shards, **changes}))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    publish(directory, [make_samples(shard) for shard in range(3)])
    return directory


@pytest.fixture
def dataset(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "x")


def test_whole_data_set_is_described(whole: Path) -> None:
    report = verify_dataset(whole)
    assert (report.num_shards, report.num_samples) == (3, 12)
    assert (report.num_tokens.speech, report.num_tokens.text) == (360, 84)
    assert report.num_bytes == sum(path.stat().st_size for path in whole.glob("*.tar"))
    totals = load_dataset_card(whole).totals
    assert (totals.num_in, totals.num_out, totals.num_skipped, totals.num_quarantined) == (18, 12, 3, 3)
    keys = [sample.key for sample in iter_samples(whole)]
    assert keys == [f"s{shard}-{number}" for shard in range(3) for number in range(4)]


def test_message_names_the_shard_both_sums_and_what_to_do(dataset: Path) -> None:
    path = dataset / "x-000001.tar"
    path.write_bytes(path.read_bytes()[:-512])
    expected, got = load_dataset_card(dataset).shards[1].tar_sha256, sha256_file(path)
    with pytest.raises(ShardCorruptError) as error:
        verify_dataset(dataset)
    for part in ("x-000001.tar: sha256 mismatch", expected[:12], got[:12], "rerun `dmlm-cli tokenize`"):
        assert part in str(error.value)


def test_any_flipped_bit_of_any_file_is_found(dataset: Path) -> None:
    rng = np.random.default_rng(1)
    files = sorted(path for path in dataset.rglob("*") if path.is_file())
    for number in range(120):
        path = files[number % len(files)]
        data = path.read_bytes()
        flipped = bytearray(data)
        flipped[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with pytest.raises(ShardCorruptError):
            verify_dataset(dataset)
        path.write_bytes(data)
    verify_dataset(dataset)


def test_card_cut_anywhere_is_no_data_set(dataset: Path) -> None:
    path = dataset / "dataset.json"
    data = path.read_bytes()
    for length in [*range(0, len(data) - 1, 23), len(data) - 2]:
        path.write_bytes(data[:length])
        with pytest.raises(ShardCorruptError, match="not a finished data set"):
            load_dataset_card(dataset)


def test_folder_without_a_card_is_no_data_set(dataset: Path) -> None:
    (dataset / "dataset.json").unlink()
    with pytest.raises(ShardCorruptError, match=r"not a finished data set: dataset\.json is missing"):
        verify_dataset(dataset)
    with pytest.raises(ConfigError, match="no such folder"):
        verify_dataset(dataset / "nothing")


def swap_shards(directory: Path) -> None:
    first, second = directory / "x-000000.tar", directory / "x-000001.tar"
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


def edit_index(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        path = directory / "x-000001.parquet"
        table, footer = read_index(path)
        write_index(path, change(table), footer)

    return edit


def edit_footer(**changes: object) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        path = directory / "x-000001.parquet"
        table, footer = read_index(path)
        write_index(path, table, dataclasses.replace(footer, **changes))

    return edit


def set_column(name: str, value: object) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        position = table.schema.get_field_index(name)
        field = table.schema.field(name)
        values = [value, *table[name].to_pylist()[1:]]
        return table.set_column(position, field, pa.array(values, field.type))

    return change


def rewrite_shard(samples: list[Sample], vocabulary: Vocabulary = VOCABULARY) -> Callable[[Path], None]:
    def rewrite(directory: Path) -> None:
        write_shard(
            directory,
            "x-000001",
            samples,
            vocabulary,
            task_sha256="task 1",
            num_in=len(samples) + 2,
            ledger=(SKIPPED, BAD),
        )

    return rewrite


def widen_ids(directory: Path) -> None:
    wide = dataclasses.replace(VOCABULARY, num_speech=99)
    sample = dataclasses.replace(make_samples(1, 1)[0], speech_tokens=np.full(30, 50, dtype=np.int32))
    rewrite_shard([sample, *make_samples(1)[1:]], wide)(directory)
    edit_footer(vocabulary=VOCABULARY)(directory)


def rename_in_json(directory: Path) -> None:
    """The names of the members keep the key."""
    tar = directory / "x-000001.tar"
    tar.write_bytes(tar.read_bytes().replace(b'"key":"s1-0"', b'"key":"s1-9"'))
    edit_index(set_column("key", "s1-9"))(directory)
    edit_footer(tar_sha256=sha256_file(tar))(directory)


def empty_ledger(directory: Path) -> None:
    (directory / LEDGER_NAME).write_bytes(b"")
    card = load_dataset_card(directory)
    resign(directory, files={**card.files, LEDGER_NAME: sha256_file(directory / LEDGER_NAME)})


def other_fingerprint(directory: Path) -> None:
    resign(directory, fingerprints={Modality.TEXT: {"tokenizer": "words", "sha256": "0"}})


def fewer_samples(directory: Path) -> None:
    totals = load_dataset_card(directory).totals
    resign(directory, totals=dataclasses.replace(totals, num_out=11, num_in=17))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (swap_shards, "x-000000"),
        (edit_index(set_column("speech_offset", 512)), "x-000001.parquet: its rows differ"),
        (edit_index(set_column("num_text_tokens", 8)), "x-000001.parquet: its rows differ"),
        (edit_index(set_column("text", "other words")), "x-000001.parquet: its rows differ"),
        (edit_index(lambda table: table.slice(1)), "x-000001.parquet: its rows differ"),
        (edit_index(lambda table: table.drop_columns(["split"])), "columns differ"),
        (edit_index(lambda table: pa.concat_tables([table] * 1000)), r"000 samples in \d+ bytes of tar"),
        (rewrite_shard(make_samples(1, 3)), "says"),
        (rewrite_shard(make_samples(0)), "key occurs twice"),
        (widen_ids, r"ids must be in \[0, 16\)"),
        (rename_in_json, "differs from its json"),
        (edit_footer(num_in=7), "items: says 7, found 6"),
        (
            edit_footer(vocabulary=dataclasses.replace(VOCABULARY, num_speech=17)),
            "belongs to another data set",
        ),
        (empty_ledger, "ledger.jsonl: differs"),
        (other_fingerprint, "text fingerprint"),
        (fewer_samples, "totals"),
        (lambda directory: (directory / "x-000002.tar").unlink(), "x-000002.tar is missing"),
        (lambda directory: shutil.copy(directory / "x-000002.tar", directory / "x-000003.tar"), "remove it"),
        (lambda directory: (directory / "codebook" / "tokenizer.json").unlink(), "tokenizer.json: missing"),
    ],
)
def test_damage_is_found_even_when_every_checksum_was_made_to_fit(
    damage: Callable[[Path], None], message: str, dataset: Path
) -> None:
    damage(dataset)
    if len(list(dataset.glob("*.tar"))) == 3:
        resign(dataset)
    with pytest.raises(ShardCorruptError, match=message):
        verify_dataset(dataset)


@pytest.mark.parametrize("name", ["../../etc/passwd-000000", "x-1"])
def test_card_cannot_name_files_outside_its_folder(name: str, dataset: Path) -> None:
    card = load_dataset_card(dataset)
    shards = (dataclasses.replace(card.shards[0], name=name), *card.shards[1:])
    write_dataset_card(dataset, dataclasses.replace(card, shards=shards))
    with pytest.raises(ShardCorruptError, match="name"):
        load_dataset_card(dataset)
    write_dataset_card(dataset, dataclasses.replace(card, files={"../../etc/passwd": "0"}))
    with pytest.raises(ShardCorruptError, match="outside"):
        load_dataset_card(dataset)


def test_card_of_another_format_version_is_refused_by_name(dataset: Path) -> None:
    path = dataset / "dataset.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"format_version": 2}))
    with pytest.raises(ShardCorruptError, match="format version 2, this dmlm reads 1"):
        load_dataset_card(dataset)
