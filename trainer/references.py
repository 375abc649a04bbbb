"""What is scored: the utterances of data sets that fit a checkpoint, and what they are compared with."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from dmlm.pipeline.errors import ConfigError, FingerprintMismatchError
from dmlm.pipeline.samples import Modality, TokenArray
from dmlm.pipeline.shards import DatasetCard, ShardReader, load_dataset_card, open_shard
from dmlm.trainer.checkpoint import Checkpoint

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """One utterance to be scored."""

    key: str
    source: str
    split: str
    text: str
    """As the corpus has it."""
    text_rule: str
    text_hash: str
    language: str | None
    units: TokenArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredShard:
    """A shard and the text rule of its data set."""

    reader: ShardReader
    text_rule: str


def open_matching_shards(directories: Sequence[Path], checkpoint: Checkpoint) -> list[ScoredShard]:
    """Opens all shards of data sets made with the tokenizers that the checkpoint was trained with.

    Raises:
        ConfigError: A folder is not there, or the checkpoint knows no speech.
        FingerprintMismatchError: A data set was made with other tokenizers.
        ShardCorruptError: A data set is not finished or damaged.
    """
    shards = []
    for directory in directories:
        card = load_dataset_card(directory)
        _check_fingerprints(checkpoint, directory, card)
        shards += [
            ScoredShard(reader=open_shard(directory, record.name), text_rule=card.text_rule)
            for record in card.shards
        ]
    return shards


def choose_splits(
    shards: Sequence[ScoredShard], wanted: Sequence[str] | None, trained_splits: Sequence[str]
) -> list[str]:
    """The splits wanted; by default those held out of training, or all where none was.

    Raises:
        ConfigError: A split wanted is not there.
    """
    present = sorted({split for shard in shards for split in shard.reader.index["split"].to_pylist()})
    if wanted is not None:
        if missing := [split for split in wanted if split not in present]:
            raise ConfigError(f"no split {', '.join(missing)}: there are {', '.join(present)}")
        return list(wanted)
    held_out = [split for split in present if not _matches(split, trained_splits)]
    if not held_out:
        _logger.warning("no split was held out of training: scoring %s", ", ".join(present))
    return held_out or present


def read_references(shards: Sequence[ScoredShard], splits: Sequence[str]) -> Iterator[Reference]:
    """Yields every utterance of the splits that has speech units and text, in order."""
    names = ("key", "source", "split", "text", "text_hash", "language")
    for shard in shards:
        for row, fields in enumerate(shard.reader.index.to_pylist()):
            if fields["split"] in splits and fields["num_speech_tokens"] and fields["num_text_tokens"]:
                yield Reference(
                    **{name: fields[name] for name in names},
                    text_rule=shard.text_rule,
                    units=shard.reader.read_tokens(row, "speech"),
                )


def training_text_hashes(shards: Sequence[ScoredShard], trained_splits: Sequence[str]) -> set[str]:
    """Hashes of all texts in the splits that the checkpoint was trained on."""
    return {
        row["text_hash"]
        for shard in shards
        for row in shard.reader.index.select(["split", "text_hash"]).to_pylist()
        if _matches(row["split"], trained_splits)
    }


def _check_fingerprints(checkpoint: Checkpoint, directory: Path, card: DatasetCard) -> None:
    for modality in (Modality.SPEECH, Modality.TEXT):
        ours, theirs = checkpoint.settings.fingerprints.get(modality), card.fingerprints.get(modality)
        if ours is None:
            raise ConfigError(f"{checkpoint.path}: was trained without {modality}")
        if theirs is not None and dict(ours) != dict(theirs):
            name = next(n for n in sorted({*ours, *theirs}) if ours.get(n) != theirs.get(n))
            raise FingerprintMismatchError(
                f"{modality} tokens differ: {name} is {ours.get(name)} in {checkpoint.path} and "
                f"{theirs.get(name)} in {directory}; tokenize with the codebook of the training data"
            )


def _matches(split: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(split, pattern) for pattern in patterns)
