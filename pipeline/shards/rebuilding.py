"""The indexes of a data set, made again from its tars.

The card says what each tar must be; a tar that is not is refused. What a lost index knew beside its tar is in
the ledger: the entries that no other index has. Where several are lost, the first takes them all.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dmlm.pipeline.errors import ShardCorruptError
from dmlm.pipeline.quarantine import LedgerEntry
from dmlm.pipeline.shards.card import (
    LEDGER_NAME,
    DatasetCard,
    DatasetTotals,
    ShardRecord,
    decode_ledger,
    encode_ledger,
    load_dataset_card,
    write_dataset_card,
)
from dmlm.pipeline.shards.index import ShardFooter, audio_seconds_in, build_index, read_index, write_index
from dmlm.pipeline.shards.verifying import check_sha256, verify_dataset, walk_rows
from dmlm.pipeline.storage import has_sha256, sha256_file, write_bytes
from dmlm.pipeline.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildReport:
    """What was done."""

    name: str
    num_shards: int
    num_rebuilt: int
    """Indexes that were written again."""

    def summary(self) -> str:
        """One line for people."""
        return f"{self.name}: {self.num_rebuilt} of {self.num_shards} indexes written again"


def rebuild_indexes(directory: Path) -> RebuildReport:
    """Writes the indexes again that are missing or damaged, and checks the whole data set then.

    Raises:
        ConfigError: There is no such folder.
        ShardCorruptError: The card is missing or damaged; a tar or the ledger is not what the card says.
    """
    card = load_dataset_card(directory)
    whole = [_whole_footer(directory, record) for record in card.shards]
    num_lost = whole.count(None)
    footers = _left_by_a_kill(directory, card) or _make_lost(directory, card, whole)
    if num_lost:
        _republish(directory, card, footers)
    verify_dataset(directory)
    return RebuildReport(name=card.name, num_shards=len(card.shards), num_rebuilt=num_lost)


def _left_by_a_kill(directory: Path, card: DatasetCard) -> list[ShardFooter] | None:
    """Footers where a run was killed between ledger and card, so that only the card is left to write."""
    if has_sha256(directory / LEDGER_NAME, card.files[LEDGER_NAME]):
        return None
    try:
        footers = [read_index(directory / f"{record.name}.parquet", columns=[])[1] for record in card.shards]
        ledger = (directory / LEDGER_NAME).read_bytes()
    except (ShardCorruptError, FileNotFoundError):
        return None
    if ledger != encode_ledger(footers) or DatasetTotals.of(card.shards, footers) != card.totals:
        return None
    for record, footer in zip(card.shards, footers, strict=True):
        check_sha256(directory / f"{record.name}.tar", record.tar_sha256)
        if footer.tar_sha256 != record.tar_sha256:
            return None
    return footers


def _make_lost(directory: Path, card: DatasetCard, whole: Sequence[ShardFooter | None]) -> list[ShardFooter]:
    """Footers of all shards, the lost ones written."""
    check_sha256(directory / LEDGER_NAME, card.files[LEDGER_NAME])
    left = _entries_left(directory, whole)
    footers = []
    for record, footer in zip(card.shards, whole, strict=True):
        if footer is None:
            footer, left = _write_index(directory, record, card.vocabulary, tuple(left)), []
        footers.append(footer)
    return footers


def _whole_footer(directory: Path, record: ShardRecord) -> ShardFooter | None:
    """Footer of an index; None when its file is not what the card says, or cannot be read."""
    path = directory / f"{record.name}.parquet"
    if not has_sha256(path, record.index_sha256):
        return None
    try:
        return read_index(path, columns=[])[1]
    except ShardCorruptError:
        return None


def _entries_left(directory: Path, footers: Iterable[ShardFooter | None]) -> list[LedgerEntry]:
    """What the ledger holds beside the ledgers of these shards."""
    entries = decode_ledger((directory / LEDGER_NAME).read_bytes())
    for footer in footers:
        for entry in footer.ledger if footer else ():
            if entry not in entries:
                raise ShardCorruptError(f"{LEDGER_NAME}: lacks {entry.key}; rerun `dmlm-cli tokenize`")
            entries.remove(entry)
    return entries


def _write_index(
    directory: Path, record: ShardRecord, vocabulary: Vocabulary, ledger: tuple[LedgerEntry, ...]
) -> ShardFooter:
    tar_path = directory / f"{record.name}.tar"
    check_sha256(tar_path, record.tar_sha256)
    index = build_index(walk_rows(tar_path, vocabulary, set()))
    footer = ShardFooter(
        tar_sha256=record.tar_sha256,
        tar_bytes=record.tar_bytes,
        task_sha256=record.task_sha256,
        num_in=len(index) + len(ledger),
        audio_seconds=audio_seconds_in(index),
        vocabulary=vocabulary,
        ledger=ledger,
    )
    write_index(directory / f"{record.name}.parquet", index, footer)
    return footer


def _republish(directory: Path, card: DatasetCard, footers: Iterable[ShardFooter]) -> None:
    """Ledger and card as they fit the indexes now: another version of pyarrow may write other bytes."""
    write_bytes(directory / LEDGER_NAME, encode_ledger(footers))
    shards = tuple(
        replace(record, index_sha256=sha256_file(directory / f"{record.name}.parquet"))
        for record in card.shards
    )
    files = {**card.files, LEDGER_NAME: sha256_file(directory / LEDGER_NAME)}
    write_dataset_card(directory, replace(card, shards=shards, files=files))
