"""Shards -> the recordings that their units were made of, found again in the corpus by key."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from dmlm.pipeline.errors import ConfigError, FingerprintMismatchError
from dmlm.pipeline.randomness import generator_for
from dmlm.pipeline.samples import Modality, TokenArray, Utterance
from dmlm.pipeline.shards import ShardReader, load_dataset_card, open_shard
from dmlm.pipeline.sources import open_source, units
from dmlm.pipeline.sources.interface import read_options
from dmlm.pipeline.storage import sha256_json
from dmlm.pipeline.tokenizers import UNITS_PER_SECOND, Fingerprint, check_same_tokens
from dmlm.trainer.config import matches
from dmlm.trainer.data.dataset import check_distinct

MAX_DIFFERENCE_SECONDS: Final = 0.05
"""Between a recording and its units; more is another recording."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UnitRow:
    """Speech of a shard: its units, and what finds its recording again."""

    key: str
    units: TokenArray


def common_fingerprint(shard_dirs: Sequence[Path]) -> tuple[Fingerprint, int]:
    """Fingerprint and number of the speech units of all data sets.

    Raises:
        ConfigError: No folder is given, one holds no speech, or two hold the same data set.
        FingerprintMismatchError: Two data sets were made with different speech tokenizers.
        ShardCorruptError: A data set is not finished or damaged.
    """
    if not shard_dirs:
        raise ConfigError("no shards: give --shards DIR")
    cards = {directory: load_dataset_card(directory) for directory in shard_dirs}
    check_distinct(shard_dirs, [sha256_json(cards[directory].to_json()) for directory in shard_dirs])
    if silent := [place for place, card in cards.items() if Modality.SPEECH not in card.fingerprints]:
        raise ConfigError(f"{silent[0]}: holds no speech")
    first, *others = ((directory, card.fingerprints[Modality.SPEECH]) for directory, card in cards.items())
    for other in others:
        check_same_tokens(Modality.SPEECH, first, other)
    return first[1], max(card.vocabulary.num_speech for card in cards.values())


def draw_rows(
    shard_dirs: Sequence[Path], splits: Sequence[str], max_seconds: float, seed: int
) -> dict[Path, list[UnitRow]]:
    """Speech drawn from all data sets, up to `max_seconds` of it, by data set.

    Args:
        shard_dirs: Folders of data sets.
        splits: Globs on the splits to draw from.
        max_seconds: Of all data sets together; the last row drawn goes over it.
        seed: Of the draw.

    Raises:
        ConfigError: No speech is in these splits.
    """
    places = [place for directory in shard_dirs for place in _find_speech(directory, splits)]
    if not places:
        raise ConfigError(f"no speech in splits {', '.join(splits)} of {', '.join(map(str, shard_dirs))}")
    order = generator_for(seed, "vocoder", "rows").permutation(len(places))
    num_units = np.array([places[number].num_units for number in order])
    num_drawn = int(np.searchsorted(num_units.cumsum(), max_seconds * UNITS_PER_SECOND)) + 1
    drawn: dict[Path, list[UnitRow]] = {}
    for number in np.sort(order[:num_drawn]).tolist():
        place = places[number]
        row = UnitRow(key=place.key, units=place.shard.read_tokens(place.row, "speech"))
        drawn.setdefault(place.directory, []).append(row)
    return drawn


def find_utterances(directory: Path, root: Path, keys: Collection[str]) -> dict[str, Utterance]:
    """Utterance of each key, from the corpus that the data set was made of.

    Of one data set only: in another, the same key may be another utterance.

    Raises:
        ConfigError: The corpus is not at `root`, has no such utterance, or is one of units.
    """
    found: dict[str, Utterance] = {}
    wanted = set(keys)
    for utterance in _walk(directory, root):
        if utterance.key in wanted:
            found.setdefault(utterance.key, utterance)  # `tokenize` refuses a second
    if missing := sorted(wanted - found.keys()):
        raise ConfigError(
            f"{root}: {len(missing)} of {len(wanted)} recordings are not there, such as {missing[0]}; "
            f"{_remedy(directory)}"
        )
    return found


def check_length(row: UnitRow, num_samples: int, rate_hz: int) -> None:
    """Raises FingerprintMismatchError when a recording is not as long as its units say."""
    seconds = num_samples / rate_hz
    if abs(seconds - len(row.units) / UNITS_PER_SECOND) > MAX_DIFFERENCE_SECONDS:
        raise FingerprintMismatchError(
            f"{row.key}: {len(row.units)} units are {len(row.units) / UNITS_PER_SECOND:.2f} s, the recording "
            f"is {seconds:.2f} s: not what the units were made of; give the --root of the data set"
        )


class _Place(NamedTuple):
    directory: Path
    shard: ShardReader
    row: int
    key: str
    num_units: int


def _find_speech(directory: Path, splits: Sequence[str]) -> Iterator[_Place]:
    """Yields where there is speech in these splits."""
    columns = ("key", "split", "num_speech_tokens")
    for record in load_dataset_card(directory).shards:
        shard = open_shard(directory, record.name, columns)
        fields = (shard.index[name].to_pylist() for name in columns)
        for row, (key, split, num_units) in enumerate(zip(*fields, strict=True)):
            if num_units and matches(split, splits):
                yield _Place(directory, shard, row, key, num_units)


def _walk(directory: Path, root: Path) -> Iterator[Utterance]:
    settings = load_dataset_card(directory).settings
    if settings["source"] == units.NAME:
        raise ConfigError(
            f"{directory}: its speech came as units, without recordings that a vocoder could learn from; "
            "give --shards that `tokenize` made of recordings"
        )
    try:
        source = open_source(settings["source"], root, settings["splits"], read_options(settings))
    except ConfigError as error:
        raise ConfigError(f"{error}; {_remedy(directory)}") from error
    for item in source.iter_items(settings.get("limit")):
        if isinstance(item, Utterance):
            yield item


def _remedy(directory: Path) -> str:
    return f"give the --root that {directory} was made of (or unset DMLM_DATA)"
