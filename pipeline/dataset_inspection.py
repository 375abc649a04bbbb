"""`inspect --shards`: what is in a data set, from its card and its indexes, and one of its samples."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Sample
from dmlm.pipeline.shards import DatasetCard, TokenCounts, load_dataset_card, open_shard
from dmlm.pipeline.shards.format import TOKEN_MEMBERS, encode_members, token_members
from dmlm.pipeline.tokenizers import Fingerprint

QUANTILES: Final = (0.05, 0.5, 0.95, 1.0)
NUM_SHOWN: Final = 24
"""Ids of each kind of the first sample; of a sample that was asked for, all."""
_COUNTS: Final[Mapping[str, str]] = {name: f"num_{name}_tokens" for name in TOKEN_MEMBERS}
_LENGTHS: Final[Mapping[str, str]] = {**_COUNTS, "speech runs": "num_speech_runs"}
_COLUMNS: Final = ("source", "split", "language", "translation_language", "duration_seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitSummary:
    """What a split of a source holds."""

    source: str
    split: str
    num_samples: int
    audio_seconds: float
    num_tokens: TokenCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInspection:
    """What is in a data set."""

    name: str
    """Of its folder."""
    card: DatasetCard
    splits: tuple[SplitSummary, ...]
    languages: Mapping[str, int]
    """Samples by language, or pair of languages."""
    lengths: Mapping[str, tuple[int, ...]]
    """Tokens of a sample at each of `QUANTILES`, of the samples that have any."""
    sample: Sample | None
    """The one asked for, else the first; None: there is none at all."""
    is_asked_for: bool

    def table(self) -> str:
        """Some lines for people; of a sample that was asked for, only the sample."""
        ids = list(describe_sample(self.sample, None if self.is_asked_for else NUM_SHOWN))
        return "\n".join(ids if self.is_asked_for else [*self._describe(), "", "the first sample:", *ids])

    def to_json(self) -> dict[str, Any]:
        """The same in full, for other programs."""
        sample = self.sample and json.loads(encode_members(self.sample)[0][1])
        return {
            "name": self.name,
            "licence": self.card.licence,
            "totals": asdict(self.card.totals),
            "splits": [asdict(split) for split in self.splits],
            "languages": dict(self.languages),
            "quantiles": list(QUANTILES),
            "lengths": {name: list(lengths) for name, lengths in self.lengths.items()},
            "text_rule": self.card.text_rule,
            "tokenizers": {modality: dict(mark) for modality, mark in self.card.fingerprints.items()},
            "sample": sample,
            "tokens": {n: ids.tolist() for n, ids in token_members(self.sample)} if self.sample else {},
        }

    def rows(self) -> Iterator[tuple[str, str]]:
        """Name and value of what the card and the indexes say."""
        totals = self.card.totals
        yield "licence", self.card.licence
        yield (
            "samples",
            f"in {totals.num_in} = out {totals.num_out} + skipped {totals.num_skipped} + "
            f"quarantined {totals.num_quarantined}",
        )
        for split in self.splits:
            hours = f"{split.audio_seconds / 3600:.2f} h, " if split.audio_seconds else ""
            counts = split.num_tokens.describe()
            yield f"{split.source}/{split.split}", f"{split.num_samples} samples, {hours}{counts}"
        yield "languages", ", ".join(f"{name} {count}" for name, count in self.languages.items())
        for name, lengths in self.lengths.items():
            values = (f"{share:.0%} up to {n}" for share, n in zip(QUANTILES, lengths, strict=True))
            yield f"{name} a sample", ", ".join(values)
        yield "text rule", self.card.text_rule
        for modality, fingerprint in self.card.fingerprints.items():
            yield f"{modality} tokenizer", describe_fingerprint(fingerprint)

    def _describe(self) -> list[str]:
        rows = list(self.rows())
        width = max(len(name) for name, _ in rows)
        return [f"{self.name}: {self.card.name}", *(f"  {name:{width}}  {value}" for name, value in rows)]


def inspect_dataset(directory: Path, key: str | None = None) -> DatasetInspection:
    """Reads card and indexes of a data set, and one sample: that of `key`, else the first.

    Raises:
        ConfigError: There is no such folder, or no sample of that key.
        ShardCorruptError: The data set is not finished or damaged; only what is read is looked at.
    """
    card = load_dataset_card(directory)
    columns = [*_COLUMNS, *_LENGTHS.values()]
    index = pa.concat_tables(
        open_shard(directory, record.name, columns).index.select(columns).replace_schema_metadata(None)
        for record in card.shards
    )
    return DatasetInspection(
        name=directory.name,
        card=card,
        splits=tuple(_split_summaries(index)),
        languages=_count_languages(index),
        lengths=_lengths(index),
        sample=_read_sample(directory, card, key),
        is_asked_for=key is not None,
    )


def describe_sample(sample: Sample | None, num_shown: int | None) -> Iterator[str]:
    """Lines of its json and its ids, the first `num_shown` of each kind; None: all."""
    if sample is None:
        yield "there is none"
        return
    yield encode_members(sample)[0][1].decode()
    for name, ids in token_members(sample):
        more = " …" if num_shown is not None and len(ids) > num_shown else ""
        yield f"{name}, {len(ids)} ids: {' '.join(map(str, ids[:num_shown].tolist()))}{more}"


def describe_fingerprint(fingerprint: Fingerprint) -> str:
    """All of it in a line; sums are cut to what tells them apart."""
    return ", ".join(
        f"{name} {str(value)[:12] if name.endswith('sha256') else value}"
        for name, value in fingerprint.items()
    )


def _split_summaries(index: pa.Table) -> Iterator[SplitSummary]:
    sums = [(column, "sum") for column in ("duration_seconds", *_COUNTS.values())]
    groups = index.group_by(["source", "split"], use_threads=False).aggregate([([], "count_all"), *sums])
    for row in groups.sort_by([("source", "ascending"), ("split", "ascending")]).to_pylist():
        yield SplitSummary(
            source=row["source"],
            split=row["split"],
            num_samples=row["count_all"],
            audio_seconds=row["duration_seconds_sum"] or 0.0,
            num_tokens=TokenCounts(**{name: row[f"{column}_sum"] for name, column in _COUNTS.items()}),
        )


def _count_languages(index: pa.Table) -> dict[str, int]:
    groups = index.group_by(["language", "translation_language"]).aggregate([([], "count_all")]).to_pylist()
    counts = {}
    for row in sorted(groups, key=lambda row: -row["count_all"]):
        translated = f" to {row['translation_language']}" if row["translation_language"] else ""
        counts[f"{row['language'] or 'none'}{translated}"] = row["count_all"]
    return counts


def _lengths(index: pa.Table) -> dict[str, tuple[int, ...]]:
    lengths = {}
    for name, column in _LENGTHS.items():
        counts_N = index[column].to_numpy()
        if (present_N := counts_N[counts_N > 0]).size:
            lengths[name] = tuple(np.quantile(present_N, QUANTILES, method="inverted_cdf").tolist())
    return lengths


def _read_sample(directory: Path, card: DatasetCard, key: str | None) -> Sample | None:
    for record in card.shards:
        keys = open_shard(directory, record.name, ["key"]).index["key"].to_pylist()
        if keys and (key is None or key in keys):
            return open_shard(directory, record.name).read_sample(keys.index(key) if key else 0)
    if key is None:
        return None
    first = _read_sample(directory, card, None)
    example = f"; the first is {first.key}" if first else ""
    raise ConfigError(f"{directory}: no sample has the key {key!r}{example}")
