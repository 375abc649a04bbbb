"""`index` writes lost indexes again, and believes no tar that the card does not vouch for."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dmlm.cli import run
from dmlm.pipeline.errors import ExitCode, ShardCorruptError
from dmlm.pipeline.shards import (
    load_dataset_card,
    open_shard,
    rebuilding,
    verify_dataset,
    write_dataset_card,
)
from dmlm.pipeline.shards.index import read_index, write_index
from dmlm.pipeline.shards.rebuilding import rebuild_indexes
from dmlm.pipeline.storage import sha256_file
from dmlm.pipeline.tokenization.planning import TokenizeConfig
from dmlm.pipeline.tokenization.running import tokenize

Content = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def dataset(root: Path, settings: Callable[..., TokenizeConfig], tmp_path: Path) -> Path:
    """Four shards of an image each; one image is broken."""
    (root / "coco" / "train2017" / "000000000002.jpg").write_bytes(b"x")
    tokenize(settings(root, tmp_path / "out", "coco"))
    return tmp_path / "out"


def index_paths(dataset: Path) -> list[Path]:
    return [dataset / f"{record.name}.parquet" for record in load_dataset_card(dataset).shards]


@pytest.mark.parametrize("damage", ["missing", "cut", "another"])
@pytest.mark.parametrize("number", range(4))
def test_a_lost_index_comes_back_byte_for_byte(
    dataset: Path, content: Content, number: int, damage: str
) -> None:
    before = content(dataset)
    path = index_paths(dataset)[number]
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(
            path.read_bytes()[:-9]
            if damage == "cut"
            else index_paths(dataset)[0 if number else 1].read_bytes()
        )
    assert rebuild_indexes(dataset).num_rebuilt == 1
    assert content(dataset) == before


def test_all_indexes_can_be_made_again(dataset: Path) -> None:
    totals = load_dataset_card(dataset).totals
    for path in index_paths(dataset):
        path.unlink()
    assert rebuild_indexes(dataset).num_rebuilt == 4
    verify_dataset(dataset)
    assert load_dataset_card(dataset).totals == totals


def test_shards_whose_ledgers_index_put_into_one_are_made_again(
    dataset: Path, content: Content, root: Path, settings: Callable[..., TokenizeConfig]
) -> None:
    before = content(dataset)
    for path in index_paths(dataset):
        path.unlink()
    rebuild_indexes(dataset)
    tar = index_paths(dataset)[1].with_suffix(".tar")
    tar.write_bytes(tar.read_bytes()[:-1])
    report = tokenize(settings(root, dataset, "coco"))
    assert (report.num_in, report.num_quarantined) == (12, 3)
    assert content(dataset) == before


def test_an_index_that_cannot_be_read_is_lost_even_where_the_card_vouches_for_it(dataset: Path) -> None:
    path = index_paths(dataset)[1]
    table, footer = read_index(path)
    write_index(path, table.drop_columns(["split"]), footer)
    card = load_dataset_card(dataset)
    shards = [replace(r, index_sha256=sha256_file(dataset / f"{r.name}.parquet")) for r in card.shards]
    write_dataset_card(dataset, replace(card, shards=tuple(shards)))
    assert rebuild_indexes(dataset).num_rebuilt == 1
    assert read_index(path)[0].equals(table)


@pytest.mark.parametrize("size", [None, 0, -9], ids=["missing", "empty", "cut"])
def test_who_meets_a_lost_index_names_the_command_that_writes_it_again(
    dataset: Path, size: int | None
) -> None:
    path = index_paths(dataset)[1]
    data = path.read_bytes()
    path.unlink()
    if size is not None:
        path.write_bytes(data[:size])
    for read in (verify_dataset, lambda directory: open_shard(directory, path.stem)):
        with pytest.raises(
            ShardCorruptError, match=rf"{path.name}.*; run `dmlm-cli index --shards {dataset}`"
        ):
            read(dataset)
    path.with_suffix(".tar").unlink()  # there is nothing to write it from
    for read in (verify_dataset, lambda directory: open_shard(directory, path.stem)):
        with pytest.raises(ShardCorruptError, match="rerun `dmlm-cli tokenize`"):
            read(dataset)


def test_a_whole_data_set_stays_as_it_is(dataset: Path, content: Content) -> None:
    before = content(dataset)
    assert rebuild_indexes(dataset).num_rebuilt == 0
    assert content(dataset) == before


@pytest.mark.parametrize("size", [0, 511, 512, -512, -1])
def test_a_cut_tar_is_refused_and_nothing_is_written(dataset: Path, content: Content, size: int) -> None:
    path = index_paths(dataset)[2]
    tar = path.with_suffix(".tar")
    tar.write_bytes(tar.read_bytes()[:size])
    path.unlink()
    before = content(dataset)
    with pytest.raises(ShardCorruptError, match=rf"{tar.name}: sha256 mismatch"):
        rebuild_indexes(dataset)
    assert content(dataset) == before


def test_the_command_names_what_it_did_and_refuses_what_is_no_data_set(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index_paths(dataset)[0].unlink()
    assert run(["index", "--shards", str(dataset)]) == ExitCode.OK
    assert "coco: 1 of 4 indexes written again" in capsys.readouterr().out
    (dataset / "dataset.json").unlink()
    assert run(["index", "--shards", str(dataset)]) == ExitCode.CORRUPT_INPUT
    assert "not a finished data set" in capsys.readouterr().err


def test_killed_between_ledger_and_card_it_is_finished_by_the_next_run(
    tiny_corpora: Path,
    settings: Callable[..., TokenizeConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "mine").mkdir()
    lines = [{"text": "Hello."}, {"text": "Hello."}, {"audio": "none.wav"}] * 3
    (tmp_path / "mine" / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = settings(tiny_corpora, tmp_path / "out", "jsonl")
    tokenize(replace(config, root=tmp_path / "mine"))
    for path in index_paths(config.out_dir)[::2]:  # the first takes the ledger of the last, too
        path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(rebuilding, "write_dataset_card", kill)
        with pytest.raises(KeyboardInterrupt):
            rebuild_indexes(config.out_dir)
    assert rebuild_indexes(config.out_dir).num_rebuilt == 2
    assert verify_dataset(config.out_dir).num_samples == 6


def kill(*arguments: object) -> None:
    raise KeyboardInterrupt


def test_a_ledger_that_no_index_explains_is_refused(dataset: Path) -> None:
    (dataset / "ledger.jsonl").write_bytes(b"")
    with pytest.raises(ShardCorruptError, match=r"ledger.jsonl: sha256 mismatch"):
        rebuild_indexes(dataset)


def test_indexes_are_not_made_again_from_a_changed_ledger(dataset: Path) -> None:
    ledger = dataset / "ledger.jsonl"
    first, *others = map(json.loads, ledger.read_text().splitlines())
    lines = [first | {"reason": "another"}, *others]
    ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for path in index_paths(dataset):
        path.unlink()
    with pytest.raises(ShardCorruptError, match=r"ledger.jsonl: sha256 mismatch"):
        rebuild_indexes(dataset)
