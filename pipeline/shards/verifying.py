"""Every byte and every id of a data set, against its card and its index."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dmlm.pipeline.errors import CorruptInputError, ShardCorruptError
from dmlm.pipeline.shards.card import (
    CARD_NAME,
    LEDGER_NAME,
    DatasetCard,
    DatasetTotals,
    ShardRecord,
    encode_ledger,
    fingerprint_sha256,
    load_dataset_card,
)
from dmlm.pipeline.shards.format import TokenCounts, check_sample_ids, count_ids, decode_sample
from dmlm.pipeline.shards.index import (
    ShardFooter,
    advise_repair,
    build_index,
    index_row,
    num_tokens_in_index,
    read_index,
)
from dmlm.pipeline.shards.reading import map_file
from dmlm.pipeline.shards.ustar import walk_samples
from dmlm.pipeline.storage import sha256_file
from dmlm.pipeline.vocabulary import Vocabulary

_ADVICE: Final = (
    "rerun `dmlm-cli tokenize` with the same settings: it keeps what is whole and writes the rest again"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What was found whole."""

    name: str
    num_shards: int
    num_samples: int
    num_bytes: int
    """Of all tars."""
    num_tokens: TokenCounts

    def summary(self) -> str:
        """One line for people."""
        return (
            f"{self.name}: whole; {self.num_shards} shards, {self.num_samples} samples, "
            f"{self.num_bytes / 1e6:.1f} MB, {self.num_tokens.describe()}"
        )


def verify_dataset(directory: Path) -> VerifyReport:
    """Reads a whole data set and says what it holds.

    Hashes every file, walks every tar, compares the index with what the walk finds, checks ranges, keys,
    counts and in = out + skipped + quarantined.

    Raises:
        ConfigError: There is no such folder.
        ShardCorruptError: Something differs; the message names the file and both values.
    """
    card = load_dataset_card(directory)
    _check_fingerprints(card)
    _check_no_strays(directory, card)
    for relative, sha256 in card.files.items():
        check_sha256(directory / relative, sha256)
    keys: set[str] = set()
    footers = [_verify_shard(directory, record, card, keys) for record in card.shards]
    _check_totals(card, footers)
    _check_ledger(directory, footers)
    return VerifyReport(
        name=card.name,
        num_shards=len(card.shards),
        num_samples=card.totals.num_out,
        num_bytes=sum(record.tar_bytes for record in card.shards),
        num_tokens=card.totals.num_tokens,
    )


def _verify_shard(directory: Path, record: ShardRecord, card: DatasetCard, keys: set[str]) -> ShardFooter:
    tar_path, index_path = directory / f"{record.name}.tar", directory / f"{record.name}.parquet"
    check_sha256(tar_path, record.tar_sha256)
    check_sha256(index_path, record.index_sha256)
    index, footer = read_index(index_path)
    if footer.vocabulary != card.vocabulary or footer.tar_sha256 != record.tar_sha256:
        raise ShardCorruptError(f"{index_path.name}: belongs to another data set; {_ADVICE}")
    walked = build_index(walk_rows(tar_path, card.vocabulary, keys))
    if not index.equals(walked):
        raise ShardCorruptError(f"{index_path.name}: its rows differ from what the tar holds; {_ADVICE}")
    found = (len(walked), num_tokens_in_index(walked))
    _check_equal(tar_path.name, "samples and tokens", (record.num_samples, record.num_tokens), found)
    _check_equal(index_path.name, "items", footer.num_in, len(walked) + len(footer.ledger))
    return footer


def walk_rows(tar_path: Path, vocabulary: Vocabulary, keys: set[str]) -> Iterator[dict[str, object]]:
    """Index rows as the tar itself gives them; adds the keys found to `keys`."""
    tar, num_ids = map_file(tar_path), count_ids(vocabulary)
    try:
        for key, spans in walk_samples(tar):
            sample = decode_sample(tar, spans)
            if sample.key != key or key in keys:
                raise ShardCorruptError(f"{key}: key occurs twice or differs from its json")
            keys.add(key)
            check_sample_ids(sample, num_ids)
            yield index_row(sample, spans)
    except CorruptInputError as error:
        raise ShardCorruptError(f"{tar_path.name}: {error}; {_ADVICE}") from error


def _check_totals(card: DatasetCard, footers: list[ShardFooter]) -> None:
    totals = DatasetTotals.of(card.shards, footers)
    _check_equal(CARD_NAME, "totals", card.totals, totals)
    accounted = totals.num_out + totals.num_skipped + totals.num_quarantined
    _check_equal(CARD_NAME, "in = out + skipped + quarantined", totals.num_in, accounted)


def _check_ledger(directory: Path, footers: list[ShardFooter]) -> None:
    if (directory / LEDGER_NAME).read_bytes() != encode_ledger(footers):
        raise ShardCorruptError(f"{LEDGER_NAME}: differs from the ledgers of the shards; {_ADVICE}")


def _check_fingerprints(card: DatasetCard) -> None:
    for modality, fingerprint in card.fingerprints.items():
        _check_equal(
            CARD_NAME, f"{modality} fingerprint", fingerprint.get("sha256"), fingerprint_sha256(fingerprint)
        )


def _check_no_strays(directory: Path, card: DatasetCard) -> None:
    expected = {f"{record.name}{suffix}" for record in card.shards for suffix in (".tar", ".parquet")}
    found = {path.name for path in directory.iterdir() if path.suffix in (".tar", ".parquet")}
    if missing := sorted(expected - found):
        advice = _advise(directory / missing[0])
        raise ShardCorruptError(f"{directory}: {missing[0]} is missing ({len(missing)} in all); {advice}")
    if strays := sorted(found - expected):
        raise ShardCorruptError(
            f"{directory}: {strays[0]} is not in {CARD_NAME} ({len(strays)} in all); remove it"
        )


def check_sha256(path: Path, expected: str) -> None:
    """Raises ShardCorruptError, naming both sums, unless a file is there and is the one expected."""
    if not path.is_file():
        raise ShardCorruptError(f"{path.name}: missing; {_advise(path)}")
    if (found := sha256_file(path)) != expected:
        raise ShardCorruptError(
            f"{path.name}: sha256 mismatch (expected {expected[:12]}…, got {found[:12]}…); {_advise(path)}"
        )


def _advise(path: Path) -> str:
    return advise_repair(path) if path.suffix == ".parquet" else _ADVICE


def _check_equal(where: str, what: str, expected: object, found: object) -> None:
    if expected != found:
        raise ShardCorruptError(f"{where}: {what}: says {expected}, found {found}; {_ADVICE}")
