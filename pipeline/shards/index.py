"""The Parquet index beside each tar: one row per sample, so that nobody has to walk the tar.

Its footer says what the shard was made from, so that a finished shard is recognised after a kill.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dmlm.pipeline.errors import CorruptInputError, ShardCorruptError
from dmlm.pipeline.quarantine import LedgerEntry
from dmlm.pipeline.samples import Sample, TokenArray
from dmlm.pipeline.shards.format import TOKEN_MEMBERS, TokenCounts, encode_compact_json
from dmlm.pipeline.shards.ustar import SUFFIXES, Span
from dmlm.pipeline.storage import atomic_writer
from dmlm.pipeline.text_rules import text_hash
from dmlm.pipeline.vocabulary import Vocabulary

FOOTER_KEY: Final = b"dmlm"
MIN_SAMPLE_BYTES: Final = 1024
"""Of a tar: header and block of the json. What claims more samples is refused before it unfolds."""
FIXED_BYTES: Final = 1 << 16
"""Of an index beside its rows, decompressed as it claims; texts that rows share may unfold to more."""
_COPIED_FIELDS: Final = ("text", "language", "translation", "translation_language", "speaker", "image_id")


def _schema() -> pa.Schema:
    required = [pa.field(name, pa.string(), nullable=False) for name in ("key", "source", "split")]
    spans = [pa.field(name, pa.int64()) for suffix in SUFFIXES for name in span_columns(suffix)]
    counts = [pa.field(f"num_{name}_tokens", pa.int64(), nullable=False) for name in TOKEN_MEMBERS]
    counts.append(pa.field("num_speech_runs", pa.int64(), nullable=False))
    strings = [pa.field(name, pa.string()) for name in (*_COPIED_FIELDS, "text_hash", "translation_hash")]
    return pa.schema([*required, *spans, *counts, pa.field("duration_seconds", pa.float64()), *strings])


def span_columns(suffix: str) -> tuple[str, str]:
    """Columns that say where a member lies; both are null when the sample lacks it."""
    name = suffix.removesuffix(".npy")
    return f"{name}_offset", f"{name}_bytes"


SCHEMA: Final = _schema()


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFooter:
    """What a shard was made from, and what became of it."""

    tar_sha256: str
    tar_bytes: int
    task_sha256: str
    """Settings, tokenizers and items of the shard, see `shard_tasks`."""
    num_in: int
    audio_seconds: float
    vocabulary: Vocabulary
    """Sizes that the ids of the shard keep within."""
    ledger: tuple[LedgerEntry, ...]

    def to_json(self) -> dict[str, Any]:
        """Content of the footer."""
        return {
            "tar_sha256": self.tar_sha256,
            "tar_bytes": self.tar_bytes,
            "task_sha256": self.task_sha256,
            "num_in": self.num_in,
            "audio_seconds": self.audio_seconds,
            "vocabulary": self.vocabulary.sizes_to_json(),
            "ledger": [entry.to_json() for entry in self.ledger],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Reads a footer.

        Raises:
            CorruptInputError: A field is missing or of a wrong type.
        """
        try:
            return cls(
                tar_sha256=str(content["tar_sha256"]),
                tar_bytes=int(content["tar_bytes"]),
                task_sha256=str(content["task_sha256"]),
                num_in=int(content["num_in"]),
                audio_seconds=float(content["audio_seconds"]),
                vocabulary=parse_sizes(content["vocabulary"]),
                ledger=tuple(LedgerEntry.from_json(entry) for entry in content["ledger"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ShardCorruptError(f"footer of the index cannot be read: {error!r}") from error


def parse_sizes(content: object) -> Vocabulary:
    """Vocabulary from its sizes alone: a data set does not depend on the special tokens of a version.

    Raises:
        ShardCorruptError: A size is missing, unknown or no count.
    """
    try:
        return Vocabulary.sizes_from_json(content)
    except CorruptInputError as error:
        raise ShardCorruptError(str(error)) from None


def index_row(sample: Sample, spans: Mapping[str, Span]) -> dict[str, object]:
    """Row of a sample whose members lie at `spans` (suffix to place) of the tar."""
    row: dict[str, object] = {name: getattr(sample, name) for name in SCHEMA.names if hasattr(sample, name)}
    for suffix, span in spans.items():
        row.update(zip(span_columns(suffix), span, strict=True))
    counts = TokenCounts.of(sample)
    row.update({f"num_{name}_tokens": getattr(counts, name) for name in TOKEN_MEMBERS})
    row["num_speech_runs"] = num_runs(sample.speech_tokens)
    row["text_hash"] = text_hash(sample.text) if sample.text else None
    row["translation_hash"] = text_hash(sample.translation) if sample.translation else None
    return row


def num_runs(tokens: TokenArray | None) -> int:
    """Length of the tokens when runs of equal ones are collapsed."""
    if tokens is None or not len(tokens):
        return 0
    return 1 + int(np.count_nonzero(tokens[1:] != tokens[:-1]))


def build_index(rows: Iterable[Mapping[str, object]]) -> pa.Table:
    """Index of a shard from the rows of its samples."""
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def num_tokens_in_index(index: pa.Table) -> TokenCounts:
    """Tokens of all samples together."""
    return TokenCounts(**{name: sum(index[f"num_{name}_tokens"].to_pylist()) for name in TOKEN_MEMBERS})


def audio_seconds_in(index: pa.Table) -> float:
    """Duration of all samples together."""
    return math.fsum(seconds for seconds in index["duration_seconds"].to_pylist() if seconds is not None)


def write_index(path: Path, index: pa.Table, footer: ShardFooter) -> None:
    """Writes the Parquet file, whole or not at all."""
    table = index.replace_schema_metadata({FOOTER_KEY: encode_compact_json(footer.to_json())})
    with atomic_writer(path, is_shared=True) as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)


def read_index(path: Path, columns: Sequence[str] | None = None) -> tuple[pa.Table, ShardFooter]:
    """Reads a Parquet file, or only some of its `columns`, and its footer.

    Raises:
        ShardCorruptError: It is missing, damaged, or not an index that this version writes.
    """
    if not path.is_file():
        raise ShardCorruptError(f"{path}: missing; {advise_repair(path)}")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            schema = file.schema_arrow
            if not schema.equals(SCHEMA):
                raise ShardCorruptError("columns differ from this version's")
            footer = ShardFooter.from_json(json.loads((schema.metadata or {})[FOOTER_KEY]))
            num_rows = file.metadata.num_rows
            if num_rows * MIN_SAMPLE_BYTES > footer.tar_bytes:
                raise ShardCorruptError(f"{num_rows} samples in {footer.tar_bytes} bytes of tar")
            num_bytes = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
            if num_bytes > 2 * footer.tar_bytes + FIXED_BYTES:
                raise ShardCorruptError(f"{num_bytes} bytes, too many for a tar of {footer.tar_bytes}")
            table = file.read(columns, use_threads=False)
    except (OSError, KeyError, ValueError, RecursionError, pa.ArrowException, CorruptInputError) as error:
        raise ShardCorruptError(f"{path}: not an index of dmlm: {error}; {advise_repair(path)}") from error
    return table, footer


def advise_repair(path: Path) -> str:
    """What to do about a lost or damaged index: beside its tar, neither corpus nor encoder is needed."""
    if path.with_suffix(".tar").is_file():
        return f"run `dmlm-cli index --shards {path.parent}`, which writes it again from its tar"
    return "rerun `dmlm-cli tokenize`"
