"""What is scored: samples of data sets that fit a checkpoint and a task, and what they are compared with."""

import logging
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import pyarrow.compute as pc

from dmlm.pipeline.errors import ConfigError, FingerprintMismatchError
from dmlm.pipeline.samples import Modality, Sample
from dmlm.pipeline.shards import DatasetCard, ShardReader, load_dataset_card, open_shard
from dmlm.pipeline.shards.format import MODALITY_OF
from dmlm.pipeline.storage import sha256_json
from dmlm.pipeline.text_rules import apply_text_rule
from dmlm.pipeline.tokenizers import first_difference
from dmlm.trainer.checkpoint import Checkpoint
from dmlm.trainer.config import Recipe, matches
from dmlm.trainer.data.dataset import check_distinct, first_of_each_split
from dmlm.trainer.data.tasks import TASKS

SCORED_TASKS: Final = ("asr", "s2tt", "i2t", "t2s")
TEST_SPLITS: Final = ("test*", "val2017")
"""Globs on the splits that are scored rather than tuned on; COCO's test captions are not public."""
_TEXT_MEMBERS: Final = ("text", "translation")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """One sample to be scored: what the model is given, and the texts that would be right."""

    directory: Path
    """Of the data set."""
    sample: Sample
    texts: tuple[str, ...]
    """As the corpus has them; several for an image with several captions. For t2s, what is to be said."""
    hashes: tuple[str, ...]
    """Of the texts."""
    language: str | None
    """Of the texts."""
    text_rule: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredShard:
    """A shard, and what of its data set is wanted."""

    reader: ShardReader
    text_rule: str
    dataset_sha256: str
    """As a checkpoint remembers the data sets of its training."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingTexts:
    """Texts and translations that a checkpoint was trained on, as far as its data sets were given.

    Of its own run only: what the model that it began with (`--init`) was trained on is not known.
    """

    hashes: Set[str]
    words: Set[str]
    """As `words_of` gives them."""
    is_complete: bool
    """Every data set of the run was searched."""

    def has_text_of(self, reference: Reference) -> bool | None:
        """Whether one of its texts was trained on; None: not found, but not everything was searched."""
        return not self.hashes.isdisjoint(reference.hashes) or self._not_found

    def has_words_of(self, reference: Reference) -> bool | None:
        """Whether all of its words were trained on; None: not found, but not everything was searched."""
        return self.words >= {*words_of(" ".join(reference.texts))} or self._not_found

    @property
    def _not_found(self) -> bool | None:
        return False if self.is_complete else None


def open_matching_shards(directories: Sequence[Path], checkpoint: Checkpoint, task: str) -> list[ScoredShard]:
    """Opens all shards of data sets made with the tokenizers that the checkpoint was trained with.

    Raises:
        ConfigError: A folder is not there, two hold the same data set, or the checkpoint does not know what
            the task needs.
        FingerprintMismatchError: A data set was made with other tokenizers.
        ShardCorruptError: A data set is not finished or damaged.
    """
    cards = [load_dataset_card(directory) for directory in directories]
    sha256s = [sha256_json(card.to_json()) for card in cards]
    check_distinct(directories, sha256s)
    shards = []
    for directory, card, sha256 in zip(directories, cards, sha256s, strict=True):
        _check_fingerprints(checkpoint, directory, card, task)
        shards += [
            ScoredShard(
                reader=open_shard(directory, record.name), text_rule=card.text_rule, dataset_sha256=sha256
            )
            for record in card.shards
        ]
    return shards


def choose_splits(
    shards: Sequence[ScoredShard], wanted: Sequence[str] | None, task: str, recipe: Recipe
) -> list[str]:
    """The splits wanted; by default test splits that were held out of training, and says so.

    Where no test split was held out, the others that were; all where none was.

    Raises:
        ConfigError: A split wanted is not there.
    """
    if wanted is not None:
        present = sorted({split for _, split in _find_splits(shards)})
        if missing := [split for split in wanted if split not in present]:
            raise ConfigError(f"no split {', '.join(missing)}: there are {', '.join(present)}")
        return list(wanted)
    pairs = _find_splits(shards, _counts(task)) or _find_splits(shards)
    trained = {split for source, split in pairs if recipe.trains_on(source, split)}
    held_out = sorted({split for _, split in pairs} - trained)
    if not held_out:
        _logger.warning("no split was held out of training: scoring %s", ", ".join(sorted(trained)))
        return sorted(trained)
    chosen = [split for split in held_out if matches(split, TEST_SPLITS)] or held_out
    others = [split for split in held_out if split not in chosen]
    also = f"; held out, too, and not scored: {', '.join(others)}" if others else ""
    sys.stderr.write(f"--split not given: scoring {', '.join(chosen)}{also}\n")
    return chosen


def read_references(
    shards: Sequence[ScoredShard],
    splits: Sequence[str],
    task: str,
    keys: Sequence[str] = ("*",),
    limit: int | None = None,
) -> Iterator[Reference]:
    """Yields what the splits hold for the task, in order; an image once for each language.

    Args:
        shards: Of all data sets.
        splits: Their names.
        task: One of `SCORED_TASKS`.
        keys: Globs; only samples whose key matches one of them.
        limit: Samples of each source and split of each data set, from the first; None: all.
    """
    num_found: Counter[tuple[str, ...]] = Counter()
    found: dict[tuple[str | None, ...], list[_Row]] = {}
    for row in _find_rows(shards, splits, task, keys):
        name = _what_is_scored(task, row)
        if name in found:
            found[name].append(row)
        elif limit is None or num_found[row.origin] < limit:
            num_found[row.origin] += 1
            found[name] = [row]
    for captions in found.values():
        yield _join([_read_reference(row, task) for row in captions])


def read_training_texts(shards: Sequence[ScoredShard], checkpoint: Checkpoint) -> TrainingTexts:
    """Reads what the recipe trains on; warns of what a checkpoint may have seen that is not among the shards.

    Args:
        shards: Of data sets of the training; of another, texts would count that the model never saw.
        checkpoint: What was trained.
    """
    opened = {shard.dataset_sha256 for shard in shards}
    missing = [dataset for dataset in checkpoint.settings.datasets if dataset.sha256 not in opened]
    for dataset in missing:
        _logger.warning(
            "the training data set %s (sha256 %.8s) is not searched for the references: "
            "give its folder as --train-shards",
            dataset.name,
            dataset.sha256,
        )
    recipe = checkpoint.settings.recipe
    if recipe.model.init is not None:
        _logger.warning(
            "the training began with %s: what that was trained on is not searched for the references",
            recipe.model.init,
        )
    hashes: set[str] = set()
    words: set[str] = set()
    for row in _find_trained(shards, recipe, checkpoint.settings.limit):
        for member in _TEXT_MEMBERS:
            if row[member]:
                hashes.add(row[f"{member}_hash"])
                words.update(row[member].split())  # the slow rule then sees each once
    return TrainingTexts(hashes=hashes, words={*words_of(" ".join(words))}, is_complete=not missing)


def words_of(text: str) -> list[str]:
    """Words in lower case without punctuation."""
    return apply_text_rule("plain", text).split()


def _find_trained(
    shards: Sequence[ScoredShard], recipe: Recipe, limit: int | None
) -> Iterator[Mapping[str, Any]]:
    """Yields texts of the samples that a run trained on, with their hashes; `limit` is that of the run."""
    columns = [name for member in _TEXT_MEMBERS for name in (member, f"{member}_hash")]
    trains_on = cache(recipe.trains_on)
    num_seen: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for shard in shards:
        index = shard.reader.index.select(["source", "split", *columns])
        if limit is not None:
            index = index.filter(first_of_each_split(index, limit, num_seen[shard.dataset_sha256]))
        for row in index.to_pylist():
            if trains_on(row["source"], row["split"]):
                yield row


def _counts(task: str) -> list[str]:
    """Columns of the index that are above 0 in samples of the task."""
    return [f"num_{member}_tokens" for member in TASKS[task].members]


def _find_splits(shards: Sequence[ScoredShard], counts: Sequence[str] = ()) -> set[tuple[str, str]]:
    """Source and split of the samples of which no count is 0."""
    found: set[tuple[str, str]] = set()
    for shard in shards:
        index = shard.reader.index
        for name in counts:
            index = index.filter(pc.field(name) > 0)
        rows = index.group_by(["source", "split"]).aggregate([]).to_pylist()
        found |= {(row["source"], row["split"]) for row in rows}
    return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Row:
    """A sample that is wanted, not read yet."""

    shard: ScoredShard
    number: int
    fields: Mapping[str, Any]
    """Of the index."""

    @property
    def origin(self) -> tuple[str, str, str]:
        """Data set, source and split."""
        return self.shard.dataset_sha256, self.fields["source"], self.fields["split"]


def _find_rows(
    shards: Sequence[ScoredShard], splits: Sequence[str], task: str, keys: Sequence[str]
) -> Iterator[_Row]:
    counts = _counts(task)
    for shard in shards:
        for number, fields in enumerate(shard.reader.index.to_pylist()):
            is_wanted = fields["split"] in splits and matches(fields["key"], keys)
            if is_wanted and all(fields[name] for name in counts):
                yield _Row(shard=shard, number=number, fields=fields)


def _what_is_scored(task: str, row: _Row) -> tuple[str | None, ...]:
    """Equal for the captions of one image in one language; else of the sample itself."""
    names = ("key",) if task != "i2t" or row.fields["image_id"] is None else ("image_id", "language")
    return *row.origin, *names, *(row.fields[name] for name in names)


def _read_reference(row: _Row, task: str) -> Reference:
    text = _text_member(task)
    return Reference(
        directory=row.shard.reader.tar_path.parent,
        sample=row.shard.reader.read_sample(row.number),
        texts=(row.fields[text],),
        hashes=(row.fields[f"{text}_hash"],),
        language=row.fields["translation_language" if task == "s2tt" else "language"],
        text_rule=row.shard.text_rule,
    )


def _join(captions: Sequence[Reference]) -> Reference:
    """One reference with the texts of all."""
    texts = tuple(text for caption in captions for text in caption.texts)
    return replace(captions[0], texts=texts, hashes=tuple(mark for c in captions for mark in c.hashes))


def _text_member(task: str) -> str:
    return "translation" if task == "s2tt" else "text"


def _check_fingerprints(checkpoint: Checkpoint, directory: Path, card: DatasetCard, task: str) -> None:
    for modality in {Modality.TEXT, *(MODALITY_OF[member] for member in TASKS[task].members)}:
        ours, theirs = checkpoint.settings.fingerprints.get(modality), card.fingerprints.get(modality)
        if ours is None:
            raise ConfigError(f"{checkpoint.path}: was trained without {modality}")
        if theirs is not None and (name := first_difference(ours, theirs)):
            raise FingerprintMismatchError(
                f"{modality} tokens differ: {name} is {ours.get(name)} in {checkpoint.path} and "
                f"{theirs.get(name)} in {directory}; tokenize with the codebook of the training data"
            )
