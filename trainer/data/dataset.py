"""Training data: several data sets as one table of samples, with random access to their tokens.

Cards say whether they fit together, indexes say what there is, the mapped tars give the tokens.
Opening reads the few columns that training needs; no tar is read before its first sample is wanted.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Modality
from dmlm.pipeline.shards import DatasetCard, load_dataset_card, open_shard
from dmlm.pipeline.shards.card import CODEBOOK_NAME
from dmlm.pipeline.shards.format import TOKEN_MEMBERS
from dmlm.pipeline.shards.token_table import ShardTokens, TokenTable
from dmlm.pipeline.storage import sha256_json
from dmlm.pipeline.tokenizers import Fingerprint, check_same_tokens
from dmlm.pipeline.vocabulary import Vocabulary

COLUMNS: Final = (
    *("key", "source", "split", "language", "translation_language", "image_id", "num_speech_runs"),
    *(f"num_{member}_tokens" for member in TOKEN_MEMBERS),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetIdentity:
    """What a checkpoint remembers of a data set that it was trained on."""

    name: str
    sha256: str
    """Of the card, and so of every shard."""
    text_rule: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFile:
    """The tar of a shard, and what its bytes should be."""

    path: Path
    sha256: str


class Keys:
    """Keys of all samples end to end: a string of its own for each would take several times the memory."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._text = "".join("".join(chunk.to_pylist()) for chunk in column.chunks)
        self._borders = np.cumsum(np.append(0, pc.utf8_length(column).to_numpy()), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._borders) - 1

    def __getitem__(self, row: int) -> str:
        return self.take(np.array([row]))[0]

    def take(self, rows_S: npt.NDArray[np.int64]) -> list[str]:
        """Keys of some samples."""
        starts_S, stops_S = self._borders.take(rows_S), self._borders.take(rows_S + 1)
        places = zip(starts_S.tolist(), stops_S.tolist(), strict=True)
        return [self._text[start:stop] for start, stop in places]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingData:
    """Samples of all data sets, numbered through."""

    index: pa.Table
    """One row per sample: the columns of COLUMNS."""
    tokens: TokenTable
    """Tokens of the same samples."""
    files: tuple[ShardFile, ...]
    """Where they lie."""
    dataset_sizes: tuple[int, ...]
    """Samples of each data set."""
    within_limit_N: npt.NDArray[np.bool_] | None
    """Which samples count; None: all. The others lie before the last one that counts in their shard."""
    vocabulary: Vocabulary
    fingerprints: Mapping[Modality, Fingerprint]
    identities: tuple[DatasetIdentity, ...]
    codebook_dirs: Mapping[Modality, Path]

    @cached_property
    def keys(self) -> Keys:
        """Of all samples."""
        return Keys(self.index["key"])


def open_training_data(directories: Sequence[Path], limit: int | None = None) -> TrainingData:
    """Opens data sets that were made with the same tokenizers.

    Args:
        directories: Folders of finished data sets.
        limit: Samples of each source and split of each data set that count, from the first; None: all.

    Raises:
        ConfigError: No folder is given, one is not there, or two hold the same data set.
        FingerprintMismatchError: Two data sets were made with different tokenizers.
        ShardCorruptError: A data set is not finished or damaged.
    """
    if not directories:
        raise ConfigError("no shards: give --shards DIR")
    cards = [load_dataset_card(directory) for directory in directories]
    identities = tuple(_identity(card) for card in cards)
    check_distinct(directories, [identity.sha256 for identity in identities])
    owners = _owners(directories, cards)
    datasets = [
        _open_dataset(directory, card, limit) for directory, card in zip(directories, cards, strict=True)
    ]
    if not any(dataset.tables for dataset in datasets):
        raise ConfigError(f"no samples in {', '.join(map(str, directories))}")
    return TrainingData(
        index=pa.concat_tables([table for dataset in datasets for table in dataset.tables]),
        tokens=TokenTable([shard for dataset in datasets for shard in dataset.tokens]),
        files=tuple(file for dataset in datasets for file in dataset.files),
        dataset_sizes=tuple(sum(map(len, dataset.tables)) for dataset in datasets),
        within_limit_N=None if limit is None else np.concatenate([m for d in datasets for m in d.masks]),
        vocabulary=_merge_vocabularies([card.vocabulary for card in cards]),
        fingerprints={modality: cards[owner].fingerprints[modality] for modality, owner in owners.items()},
        identities=identities,
        codebook_dirs={
            modality: directories[owner] / CODEBOOK_NAME / modality for modality, owner in owners.items()
        },
    )


def check_distinct(directories: Sequence[Path], sha256s: Sequence[str]) -> None:
    """Raises ConfigError where two folders hold the same data set: its samples would count twice."""
    found: dict[str, Path] = {}
    for directory, sha256 in zip(directories, sha256s, strict=True):
        if sha256 in found:
            raise ConfigError(f"{directory}: the same data set as {found[sha256]}; give it once")
        found[sha256] = directory


@dataclass(frozen=True, slots=True, eq=False)
class _OpenedDataset:
    """What is kept of a data set's shards; the readers hold more than is wanted."""

    tables: list[pa.Table] = field(default_factory=list)
    tokens: list[ShardTokens] = field(default_factory=list)
    files: list[ShardFile] = field(default_factory=list)
    masks: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    """Samples within the limit, where there is one."""


def _open_dataset(directory: Path, card: DatasetCard, limit: int | None) -> _OpenedDataset:
    opened, num_seen = _OpenedDataset(), Counter[tuple[str, str]]()
    for record in card.shards:
        shard = open_shard(directory, record.name, COLUMNS)
        index = shard.index.select(COLUMNS).replace_schema_metadata(None)
        if limit is not None:
            within_limit_N = first_of_each_split(index, limit, num_seen)
            index = index.slice(0, int(np.flatnonzero(within_limit_N).max(initial=-1)) + 1)
            opened.masks.append(within_limit_N[: len(index)])
        if len(index):
            opened.tokens.append(ShardTokens.of(shard, len(index)))
            opened.tables.append(index)
            opened.files.append(ShardFile(path=shard.tar_path, sha256=record.tar_sha256))
    return opened


def first_of_each_split(
    index: pa.Table, limit: int, num_seen: Counter[tuple[str, str]]
) -> npt.NDArray[np.bool_]:
    """Whether each sample is among the first of its source and split.

    Args:
        index: Of one shard: `source` and `split` of its samples.
        limit: Samples of each source and split that are wanted.
        num_seen: Counts over the shards of a data set.
    """
    is_kept = []
    for source_and_split in zip(index["source"].to_pylist(), index["split"].to_pylist(), strict=True):
        num_seen[source_and_split] += 1
        is_kept.append(num_seen[source_and_split] <= limit)
    return np.array(is_kept, np.bool_)


def _owners(directories: Sequence[Path], cards: Sequence[DatasetCard]) -> dict[Modality, int]:
    """Number of the first data set that has each modality, after checking that the others agree."""
    owners: dict[Modality, int] = {}
    for number, card in enumerate(cards):
        for modality, fingerprint in card.fingerprints.items():
            owner = owners.setdefault(modality, number)
            first = (directories[owner], cards[owner].fingerprints[modality])
            check_same_tokens(modality, first, (directories[number], fingerprint))
    return owners


def _merge_vocabularies(vocabularies: Sequence[Vocabulary]) -> Vocabulary:
    first = vocabularies[0]
    return Vocabulary(
        num_text=first.num_text,
        num_speech=max(vocabulary.num_speech for vocabulary in vocabularies),
        num_image=max(vocabulary.num_image for vocabulary in vocabularies),
        bos_id=first.bos_id,
        eos_id=first.eos_id,
    )


def _identity(card: DatasetCard) -> DatasetIdentity:
    return DatasetIdentity(name=card.name, sha256=sha256_json(card.to_json()), text_rule=card.text_rule)
