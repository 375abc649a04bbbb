"""`tokenize --reuse DIR`: what became of each file is looked up in a finished data set, not encoded again.

A shard is looked up as a whole or not at all, and only in one of the very same items: the tokens of a file
depend, by rounding, on the files beside it. Text is cheap and always made anew.
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dmlm.pipeline.errors import AudioError, ImageError, SampleError, ShardCorruptError
from dmlm.pipeline.samples import ImageCaption, Modality
from dmlm.pipeline.shards import (
    ShardReader,
    ShardRecord,
    TokenMember,
    finished_shard,
    load_dataset_card,
    open_shard,
)
from dmlm.pipeline.tokenization.file_encoding import Encoded, Outcome
from dmlm.pipeline.tokenization.item_encoding import NOTHING_KNOWN, ItemEncoder, KnownOutcomes
from dmlm.pipeline.tokenization.output_folder import check_same_items
from dmlm.pipeline.tokenization.quarantined_files import has_changed_files
from dmlm.pipeline.tokenization.shard_tasks import Recipe, ShardTask

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierDataset:
    """A finished data set of the same items, some of whose tokenizers are the same."""

    directory: Path
    modalities: frozenset[Modality]
    """Those whose tokens can be taken over."""
    records: Mapping[str, ShardRecord]
    """Its shards, by name."""
    sampling_rate_hz: int
    """Of the speech tokenizer; 0 without speech."""

    def look_up(self, task: ShardTask) -> KnownOutcomes:
        """What became of the files of `task`, as far as that can be told.

        Raises:
            ShardCorruptError: The earlier shard is missing or damaged.
        """
        record = self.records[task.name]
        found = finished_shard(self.directory, task.name, record.task_sha256)
        if found is None or found.record != record:
            raise ShardCorruptError(
                f"{self.directory}: {task.name} is missing or damaged; see `dmlm-cli verify`, "
                "or leave out --reuse"
            )
        if has_changed_files(task, found.footer.ledger):
            return NOTHING_KNOWN
        shard = _EarlierShard(open_shard(self.directory, task.name), self.sampling_rate_hz)
        return KnownOutcomes(
            speech=shard.speech(task) if Modality.SPEECH in self.modalities else None,
            images=shard.images(task) if Modality.IMAGE in self.modalities else None,
        )


def open_earlier_dataset(
    directory: Path, encoder: ItemEncoder, recipe: Recipe, tasks: Collection[ShardTask]
) -> EarlierDataset:
    """Opens the data set to take tokens from.

    Raises:
        ConfigError: There is no such folder.
        FingerprintMismatchError: It was made from other items, files or settings than these tasks.
        ShardCorruptError: It is not finished.
    """
    card = load_dataset_card(directory)
    check_same_items(directory, card, recipe, tasks)
    encoded = {Modality.SPEECH: encoder.speech, Modality.IMAGE: encoder.image}
    wanted = {modality for modality, tokenizer in encoded.items() if tokenizer is not None}
    same = {name for name in wanted if card.fingerprints.get(name) == recipe["fingerprints"][name]}
    taken = f"{' and '.join(sorted(same))} tokens" if same else "nothing, its tokenizers are others,"
    _logger.warning("taking over %s from %s", taken, directory)
    return EarlierDataset(
        directory=directory,
        modalities=frozenset(same),
        records={record.name: record for record in card.shards},
        sampling_rate_hz=encoder.speech.sampling_rate_hz if encoder.speech else 0,
    )


@dataclass(frozen=True)
class _EarlierShard:
    reader: ShardReader
    sampling_rate_hz: int

    @cached_property
    def _rows(self) -> Mapping[str, int]:
        return {key: row for row, key in enumerate(self.reader.index["key"].to_pylist())}

    @cached_property
    def _failures(self) -> Mapping[str, tuple[str | None, str]]:
        return {entry.key: (entry.error, entry.reason) for entry in self.reader.footer.ledger}

    @cached_property
    def _seconds(self) -> list[float | None]:
        return list(self.reader.index["duration_seconds"].to_pylist())

    def speech(self, task: ShardTask) -> dict[str, Outcome] | None:
        """By key; None when it cannot be told of all."""
        outcomes = {item.key: self._outcome(item.key, "speech", AudioError) for item in task.utterances}
        known = {key: outcome for key, outcome in outcomes.items() if outcome is not None}
        return known if len(known) == len(outcomes) else None

    def images(self, task: ShardTask) -> dict[Path, Outcome] | None:
        """By file, from any of its captions; None when it cannot be told of all."""
        captions = [item for item in task.items if isinstance(item, ImageCaption)]
        outcomes: dict[Path, Outcome] = {}
        for item in captions:
            if (outcome := self._outcome(item.key, "image", ImageError)) is not None:
                outcomes.setdefault(item.image_path, outcome)
        return outcomes if len(outcomes) == len(task.image_paths) else None

    def _outcome(self, key: str, member: TokenMember, error_type: type[SampleError]) -> Outcome | None:
        """None when the item failed for another reason than its file: its tokens were not kept."""
        if (row := self._rows.get(key)) is not None:
            # The length of an image is asked by nobody and kept nowhere.
            num_samples = round((self._seconds[row] or 0) * self.sampling_rate_hz)
            return Encoded(self.reader.read_tokens(row, member), num_samples)
        error, reason = self._failures.get(key, (None, ""))
        return error_type(reason) if error == error_type.__name__ else None
