"""A bounded, seeded sample of corpora: utterances, images and texts spread over everything that is there.

source items -> CorpusSample -> codebooks. Held-out splits are never touched unless they are named.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from dmlm.pipeline.errors import ConfigError, SampleError
from dmlm.pipeline.randomness import generator_for
from dmlm.pipeline.samples import Broken, ImageCaption, Skipped, SourceItem, TextLine, Utterance
from dmlm.pipeline.sources import (
    Source,
    SourceOptions,
    check_options,
    every_choice,
    open_source,
    sources_present,
)
from dmlm.pipeline.storage import sha256_json
from dmlm.pipeline.text_rules import apply_text_rule
from dmlm.pipeline.tokenizers.text import check_unicode

MAX_UTTERANCES = 20_000
"""Utterances of a source kept for each hour of speech wanted, or for less: enough if they last 0.18 s."""
MAX_IMAGES = 1_000
MAX_TEXTS = 200_000
"""Texts kept for a BPE; more does not change its merges."""

T = TypeVar("T")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceShare:
    """A source and its weight in the sample, relative to the other sources of a modality."""

    name: str
    share: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSample:
    """What was drawn from one source, in random order."""

    source: SourceShare
    splits: tuple[str, ...]
    utterances: list[Utterance]
    images: list[ImageCaption]
    """One caption of each image drawn."""
    texts: list[str]
    """After the source's text rule."""
    num_broken: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusSample:
    """What was drawn from all sources."""

    parts: tuple[SourceSample, ...]

    @property
    def num_broken(self) -> int:
        """Items whose annotation could not be read."""
        return sum(part.num_broken for part in self.parts)

    @property
    def images(self) -> list[ImageCaption]:
        """At most `MAX_IMAGES`, by the shares of the sources."""
        return _share_out([(part.source, part.images) for part in self.parts], MAX_IMAGES)

    @property
    def texts(self) -> list[str]:
        """At most `MAX_TEXTS`, by the shares of the sources."""
        return _share_out([(part.source, part.texts) for part in self.parts], MAX_TEXTS)

    @property
    def has_speech(self) -> bool:
        """Whether any source has utterances."""
        return any(part.utterances for part in self.parts)

    def speech_budgets(self, audio_seconds: float) -> list[tuple[list[Utterance], float]]:
        """Utterances of each source that has speech, and its share of `audio_seconds`; 0: no limit."""
        parts = [part for part in self.parts if part.utterances]
        total = sum(part.source.share for part in parts)
        wanted = audio_seconds or math.inf
        return [(part.utterances, wanted * part.source.share / total) for part in parts]

    @property
    def sha256(self) -> str:
        """Hash of everything drawn, without paths: tells whether two samples are of the same data."""
        return sha256_json(
            [
                [part.source.name, [u.key for u in part.utterances], [i.key for i in part.images], part.texts]
                for part in self.parts
            ]
        )


class ItemSample(Generic[T]):
    """Uniform sample of a stream of unknown length (reservoir sampling, algorithm R)."""

    def __init__(self, capacity: float, rng: np.random.Generator) -> None:
        """Keeps at most `capacity` items; it may be infinite."""
        self._capacity, self._rng = capacity, rng
        self._kept: list[T] = []
        self._num_seen = 0

    def add(self, item: T) -> None:
        """Offers an item."""
        self._num_seen += 1
        if len(self._kept) < self._capacity:
            self._kept.append(item)
        elif (slot := int(self._rng.integers(self._num_seen))) < self._capacity:
            self._kept[slot] = item

    def drawn(self) -> list[T]:
        """The items kept, in random order, so that any first part is a uniform sample too."""
        return [self._kept[index] for index in self._rng.permutation(len(self._kept))]


def draw_sample(
    sources: Sequence[SourceShare],
    root: Path,
    *,
    splits: Sequence[str] | None,
    options: SourceOptions,
    limit: int | None,
    seed: int,
    audio_seconds: float = 3_600.0,
) -> CorpusSample:
    """Draws from every source; none named: from every source under `root`, in equal shares.

    Args:
        sources: What to draw from.
        root: Folder that holds the corpora.
        splits: Splits of every source; None: those whose name starts with `train`, else all.
        options: Settings that only some corpora need; where they name no language pair or partition, all are
            drawn from.
        limit: Read only the first items of each split.
        seed: Of the drawing.
        audio_seconds: Speech that will be taken of the sample; 0: all, so every utterance is kept.

    Raises:
        ConfigError: No source, a source or split that is not there, a share that is not positive, or an
            option that no source reads.
    """
    chosen = sources or [SourceShare(name=name) for name in sources_present(root)]
    if not chosen:
        raise ConfigError(
            f"{root}: no LibriSpeech/, ami/, covost/ or coco/ in there; give --root or --source"
        )
    for source in chosen:
        if not 0 < source.share < float("inf"):
            raise ConfigError(
                f"source {source.name}: its share must be a positive number, not {source.share}"
            )
    check_options(options, [source.name for source in chosen])
    return CorpusSample(
        parts=tuple(
            _draw(source, _open_choices(source.name, root, splits, options), limit, seed, audio_seconds)
            for source in chosen
        )
    )


def _open_choices(
    name: str, root: Path, splits: Sequence[str] | None, options: SourceOptions
) -> list[Source]:
    """The source once for each language pair or partition, with those of the splits that it has."""
    whole = {choice: open_source(name, root, None, choice) for choice in every_choice(name, root, options)}
    present = sorted({split for source in whole.values() for split in source.splits})
    wanted = splits or [split for split in present if split.startswith("train")]
    if not wanted:
        _logger.warning("%s: no training split, so the codebook is fitted on %s", name, ", ".join(present))
        return list(whole.values())
    nowhere = {*wanted} - {*present}  # opening it says so
    asked = {
        choice: [split for split in wanted if split in source.splits or split in nowhere]
        for choice, source in whole.items()
    }
    return [open_source(name, root, some, choice) for choice, some in asked.items() if some]


def _draw(
    share: SourceShare, sources: Sequence[Source], limit: int | None, seed: int, audio_seconds: float
) -> SourceSample:
    num_kept = MAX_UTTERANCES * max(1.0, audio_seconds / 3_600) if audio_seconds else math.inf
    utterances = ItemSample[Utterance](num_kept, generator_for(seed, "utterances", share.name))
    images = ItemSample[ImageCaption](MAX_IMAGES, generator_for(seed, "images", share.name))
    texts = ItemSample[str](MAX_TEXTS, generator_for(seed, "texts", share.name))
    num_broken, image_id = 0, None
    for item in chain.from_iterable(source.iter_items(limit) for source in sources):
        if isinstance(item, Utterance):
            utterances.add(item)
        elif isinstance(item, ImageCaption) and item.image_id != image_id:
            image_id = item.image_id  # the captions of an image follow each other
            images.add(item)
        try:
            for text in _texts_of(item, sources[0].text_rule):
                texts.add(text)
        except SampleError as error:
            num_broken += 1
            _logger.warning("left out %s: %s", item.key, error)
    return SourceSample(
        source=share,
        splits=tuple(dict.fromkeys(split for source in sources for split in source.splits)),
        utterances=utterances.drawn(),
        images=images.drawn(),
        texts=texts.drawn(),
        num_broken=num_broken,
    )


def _texts_of(item: SourceItem, rule: str) -> Iterator[str]:
    if isinstance(item, Broken):
        raise SampleError(item.reason)
    if not isinstance(item, Skipped):
        translation = item.translation if isinstance(item, Utterance | TextLine) else None
        for raw in (item.text, translation):
            if raw and (text := apply_text_rule(rule, raw)):
                check_unicode(text)
                yield text


def _share_out(parts: Sequence[tuple[SourceShare, list[T]]], capacity: int) -> list[T]:
    """Up to `capacity` items, each source's by its share among those that have any."""
    present = [(source.share, items) for source, items in parts if items]
    total = sum(share for share, _ in present)
    return [item for share, items in present for item in items[: max(1, round(capacity * share / total))]]
