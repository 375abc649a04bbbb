"""All texts of a sample, drawn before anything is spoken or drawn.

Held-out texts are drawn first and none is drawn again, so that no held-out sentence, translation or caption
occurs in any training part of any corpus.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from dmlm.pipeline.randomness import generator_for
from dmlm.pipeline.synthesis.italian import Translation, make_translation
from dmlm.pipeline.synthesis.scenes import Scene, make_scene
from dmlm.pipeline.synthesis.sentences import WordStrings, make_sentence

NUM_TRAIN_SENTENCES = 950
NUM_TRAIN_WORD_STRINGS = 500
NUM_TRAIN_SHORT_STRINGS = 700
"""Of one to three words: a model finds out from them where in the units to listen."""
NUM_DEV_SENTENCES = NUM_DEV_WORD_STRINGS = 50
NUM_TEST_SENTENCES = NUM_TEST_WORD_STRINGS = 50
NUM_TRAIN_MEETING_SENTENCES = 60
NUM_TEST_MEETING_SENTENCES = 20
NUM_TRAIN_TRANSLATIONS = 600
NUM_DEV_TRANSLATIONS = 30
NUM_TEST_TRANSLATIONS = 50
NUM_TRAIN_SCENES = 4000
NUM_TEST_SCENES = 50

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Reading:
    """A text to be read aloud."""

    text: str
    is_word_string: bool

    @property
    def spoken(self) -> str:
        """What the voice is given to read; word strings are read as lists, with a breath between words."""
        return self.text.replace(" ", ", ") if self.is_word_string else self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitTexts:
    """What one split of every corpus says and shows."""

    readings: tuple[Reading, ...] = ()
    meeting_sentences: tuple[str, ...] = ()
    translations: tuple[Translation, ...] = ()
    scenes: tuple[Scene, ...] = ()

    def limited(self, limit: int | None) -> "SplitTexts":
        """At most `limit` of each; None: all."""
        return SplitTexts(
            readings=self.readings[:limit],
            meeting_sentences=self.meeting_sentences[:limit],
            translations=self.translations[:limit],
            scenes=self.scenes[:limit],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleTexts:
    """All texts of a sample."""

    train: SplitTexts
    dev: SplitTexts
    test: SplitTexts

    def limited(self, limit: int | None) -> "SampleTexts":
        """At most `limit` of each kind in each split; None: all."""
        return SampleTexts(
            train=self.train.limited(limit), dev=self.dev.limited(limit), test=self.test.limited(limit)
        )


def draw_texts(seed: int) -> SampleTexts:
    """All texts of a full-size sample; they depend on `seed` only."""
    texts = _UniqueTexts(seed)
    test = SplitTexts(
        readings=texts.readings("test", NUM_TEST_SENTENCES, NUM_TEST_WORD_STRINGS, num_short=0),
        meeting_sentences=texts.sentences("test-meetings", NUM_TEST_MEETING_SENTENCES),
        translations=texts.translations("test", NUM_TEST_TRANSLATIONS),
        scenes=texts.scenes("test", NUM_TEST_SCENES),
    )
    dev = SplitTexts(
        readings=texts.readings("dev", NUM_DEV_SENTENCES, NUM_DEV_WORD_STRINGS, num_short=0),
        translations=texts.translations("dev", NUM_DEV_TRANSLATIONS),
    )
    held_out = frozenset(scene.combination for scene in test.scenes)
    train = SplitTexts(
        readings=texts.readings(
            "train", NUM_TRAIN_SENTENCES, NUM_TRAIN_WORD_STRINGS, num_short=NUM_TRAIN_SHORT_STRINGS
        ),
        meeting_sentences=texts.sentences("train-meetings", NUM_TRAIN_MEETING_SENTENCES),
        translations=texts.translations("train", NUM_TRAIN_TRANSLATIONS),
        scenes=texts.scenes("train", NUM_TRAIN_SCENES, without=held_out),
    )
    return SampleTexts(train=train, dev=dev, test=test)


def normalise(text: str) -> str:
    """Lower case, without punctuation, single spaces: the form in which two texts are the same."""
    return " ".join(re.findall(r"[\w']+", text.lower()))


class _UniqueTexts:
    """Draws texts, and none that was drawn before, however often it is asked."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._taken: set[str] = set()

    def sentences(self, purpose: str, count: int) -> tuple[str, ...]:
        rng = self._generator("sentences", purpose)
        return self._draw(count, lambda: make_sentence(rng), lambda sentence: [sentence])

    def readings(
        self, split: str, num_sentences: int, num_word_strings: int, num_short: int
    ) -> tuple[Reading, ...]:
        """Sentences, word strings and short ones, evenly interleaved, so that any first part holds all."""
        strings = WordStrings(self._generator("word strings", split))
        drawn = self._draw(num_word_strings, strings.draw, lambda string: [string])
        # Short ones may recur: they are too short to be a held-out text.
        short = [strings.draw_short() for _ in range(num_short)]
        kinds = (
            [Reading(text, is_word_string=False) for text in self.sentences(split, num_sentences)],
            [Reading(text, is_word_string=True) for text in drawn],
            [Reading(text, is_word_string=True) for text in short],
        )
        placed = [(index / len(kind), reading) for kind in kinds for index, reading in enumerate(kind)]
        return tuple(reading for _, reading in sorted(placed, key=lambda pair: pair[0]))

    def translations(self, split: str, count: int) -> tuple[Translation, ...]:
        rng = self._generator("translations", split)
        return self._draw(count, lambda: make_translation(rng), lambda item: [item.english, item.italian])

    def scenes(
        self, split: str, count: int, without: frozenset[tuple[str, ...]] = frozenset()
    ) -> tuple[Scene, ...]:
        rng = self._generator("scenes", split)

        def make() -> Scene:
            while (scene := make_scene(rng)).combination in without:
                pass
            return scene

        # Scenes may look alike in training: there are not so many.
        return self._draw(count, make, lambda scene: scene.captions, may_recur=split == "train")

    def _draw(
        self,
        count: int,
        make: Callable[[], Item],
        texts_of: Callable[[Item], list[str] | tuple[str, ...]],
        *,
        may_recur: bool = False,
    ) -> tuple[Item, ...]:
        items: list[Item] = []
        while len(items) < count:
            item = make()
            texts = {normalise(text) for text in texts_of(item)}
            if self._taken.isdisjoint(texts):
                items.append(item)
                if not may_recur:
                    self._taken |= texts
        return tuple(items)

    def _generator(self, *names: str) -> np.random.Generator:
        return generator_for(self._seed, "sample", *names)
