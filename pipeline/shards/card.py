"""`dataset.json`, the dataset card, published last: without it a folder is not a data set."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, Self, TypeVar, get_args, get_origin

from dmlm.pipeline.errors import ConfigError, CorruptInputError, ShardCorruptError
from dmlm.pipeline.quarantine import LedgerEntry
from dmlm.pipeline.samples import Modality
from dmlm.pipeline.shards.format import FORMAT_VERSION, TokenCounts, encode_compact_json
from dmlm.pipeline.shards.index import ShardFooter, parse_sizes
from dmlm.pipeline.storage import sha256_json, write_json
from dmlm.pipeline.tokenizers import Fingerprint
from dmlm.pipeline.vocabulary import Vocabulary

CARD_NAME: Final = "dataset.json"
LEDGER_NAME: Final = "ledger.jsonl"
CODEBOOK_NAME: Final = "codebook"

_SHARD_NAME = re.compile(r"[A-Za-z0-9_-]+-\d{6}")
_FILE_NAME = re.compile(r"[\w.-]+(/[\w.-]+)*")

_RIGHT: Final[Mapping[Any, Callable[[Any], bool]]] = {
    str: lambda value: isinstance(value, str),
    int: lambda value: type(value) is int and value >= 0,
    float: lambda value: type(value) in (int, float),
    Mapping: lambda value: isinstance(value, Mapping),
}

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """One shard, as the card knows it."""

    name: str
    """Without suffix: `NAME-000000`."""
    tar_sha256: str
    tar_bytes: int
    index_sha256: str
    task_sha256: str
    """Settings, tokenizers and items that the shard was made from."""
    num_samples: int
    num_tokens: TokenCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetTotals:
    """Sums over all shards; in = out + skipped + quarantined."""

    num_in: int
    num_out: int
    num_skipped: int
    num_quarantined: int
    audio_seconds: float
    num_tokens: TokenCounts

    @classmethod
    def of(cls, records: Iterable[ShardRecord], footers: Iterable[ShardFooter]) -> Self:
        """Adds up the shards; `num_in` is what they were given, not the sum of the rest."""
        records, footers = list(records), list(footers)
        outcomes = Counter(entry.outcome for footer in footers for entry in footer.ledger)
        return cls(
            num_in=sum(footer.num_in for footer in footers),
            num_out=sum(record.num_samples for record in records),
            num_skipped=outcomes["skipped"],
            num_quarantined=outcomes["quarantined"],
            audio_seconds=math.fsum(footer.audio_seconds for footer in footers),
            num_tokens=sum((record.num_tokens for record in records), TokenCounts()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetCard:
    """Everything that a reader must know before it trusts a token."""

    name: str
    shards: tuple[ShardRecord, ...]
    totals: DatasetTotals
    fingerprints: Mapping[Modality, Fingerprint]
    """Of each tokenizer used, with a `sha256` of the rest; text is always there."""
    text_rule: str
    vocabulary: Vocabulary
    """Sizes of the modalities (0: not used here), BOS and EOS."""
    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    licence: str
    files: Mapping[str, str]
    """sha256 of the ledger and of the files of the codebook, by relative path; the ledger is always there."""

    @property
    def num_out(self) -> int:
        """Samples of all shards."""
        return self.totals.num_out

    def to_json(self) -> dict[str, Any]:
        """Content of `dataset.json`."""
        content = {"format_version": FORMAT_VERSION, **asdict(self)}
        content["vocabulary"] = self.vocabulary.sizes_to_json()
        return content | {"sha256": sha256_json(content)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Reads `dataset.json`.

        Raises:
            CorruptInputError: Another format version, or not what `to_json` gave.
        """
        body = {name: value for name, value in content.items() if name != "sha256"}
        if body.get("format_version") != FORMAT_VERSION:
            raise ShardCorruptError(
                f"format version {body.get('format_version')}, this dmlm reads {FORMAT_VERSION}"
            )
        if content.get("sha256") != sha256_json(body):
            raise ShardCorruptError("its own sha256 does not fit: it was changed or damaged")
        _check_names(body)
        del body["format_version"]
        parsed = {
            "shards": tuple(_with_counts(ShardRecord, shard) for shard in body["shards"]),
            "totals": _with_counts(DatasetTotals, body["totals"]),
            "fingerprints": {Modality(name): dict(mark) for name, mark in body["fingerprints"].items()},
            "vocabulary": parse_sizes(body["vocabulary"]),
        }
        card = cls(**body | parsed)
        _check_types(card)
        return card


def _with_counts(kind: type[T], content: Mapping[str, Any]) -> T:
    counts = TokenCounts(**content["num_tokens"])
    record = kind(**{**content, "num_tokens": counts})
    _check_types(counts)
    _check_types(record)
    return record


def _check_types(record: Any) -> None:
    """Raises ShardCorruptError where a text, count, number or mapping is none; dataclasses do not look."""
    for part in fields(record):
        value, kind = getattr(record, part.name), get_origin(part.type) or part.type
        values = [value]
        if get_args(part.type) == (str, str) and isinstance(value, Mapping):
            values, kind = list(value.values()), str
        if kind in _RIGHT and not all(map(_RIGHT[kind], values)):
            raise ShardCorruptError(f"{part.name} is of a wrong type")


def _check_names(body: Mapping[str, Any]) -> None:
    """The sha256 guards against damage; this keeps a card that somebody made up inside its folder."""
    if not all(_SHARD_NAME.fullmatch(shard["name"]) for shard in body["shards"]):
        raise ShardCorruptError("a shard has a name that dmlm does not give")
    if not all(_FILE_NAME.fullmatch(name) and ".." not in name for name in body["files"]):
        raise ShardCorruptError("a file outside the data set")
    if LEDGER_NAME not in body["files"]:
        raise ShardCorruptError(f"its files lack {LEDGER_NAME}")


def fingerprint_sha256(fingerprint: Fingerprint) -> str:
    """sha256 of a tokenizer's fingerprint, whether it carries its own `sha256` or not."""
    return sha256_json({name: value for name, value in fingerprint.items() if name != "sha256"})


def encode_ledger(footers: Iterable[ShardFooter]) -> bytes:
    """Content of `ledger.jsonl`: the ledgers of all shards, one entry a line."""
    entries = (entry for footer in footers for entry in footer.ledger)
    return b"".join(encode_compact_json(entry.to_json()) + b"\n" for entry in entries)


def decode_ledger(content: bytes) -> list[LedgerEntry]:
    """Entries of `ledger.jsonl`.

    Raises:
        ShardCorruptError: A line is no entry.
    """
    try:
        return [LedgerEntry.from_json(json.loads(line)) for line in content.splitlines()]
    except (ValueError, TypeError) as error:
        raise ShardCorruptError(f"{LEDGER_NAME}: cannot be read: {error}") from error


def write_dataset_card(directory: Path, card: DatasetCard) -> None:
    """Publishes the card, and with it the data set."""
    write_json(directory / CARD_NAME, card.to_json())


def load_dataset_card(directory: Path) -> DatasetCard:
    """Card of a finished data set.

    Raises:
        ConfigError: There is no such folder, or it is an address or a pattern.
        ShardCorruptError: The data set is not finished, or its card is damaged.
    """
    check_dataset_folder(directory)
    path = directory / CARD_NAME
    try:
        return parse_dataset_card(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise ShardCorruptError(
            f"{directory}: not a finished data set: {CARD_NAME} is missing; rerun `dmlm-cli tokenize`"
        ) from None


def parse_dataset_card(content: bytes, where: str) -> DatasetCard:
    """Card from the bytes of `dataset.json`; raises ShardCorruptError, naming `where`, if it is damaged."""
    try:
        return DatasetCard.from_json(json.loads(content))
    except (CorruptInputError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ShardCorruptError(
            f"{where}: not a finished data set: {error}; rerun `dmlm-cli tokenize`"
        ) from error


def check_dataset_folder(directory: Path) -> None:
    """Raises ConfigError unless `directory` is a local folder: never an address, a pipe or a pattern."""
    if not directory.is_dir():
        raise ConfigError(
            f"{str(directory)!r}: no such folder; a data set is a local folder that holds {CARD_NAME} "
            "(pipes and brace patterns are not read)"
        )
