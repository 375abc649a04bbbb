"""English texts: sentences of a small grammar, and strings of random words that no grammar can predict."""

import re
from collections.abc import Iterator

import numpy as np

from dmlm.pipeline.synthesis import words

GRAMMAR: dict[str, tuple[str, ...]] = {
    "sentence": (
        "{agent} {transitive} {thing} {where}",
        "{agent} {adverb} {transitive} {thing}",
        "{agent} {transitive} {things} {when}",
        "{agent} {intransitive} {where} {when}",
        "{when} {agent} {transitive} {thing}",
        "{name} {transitive} {thing} and {things}",
    ),
    "agent": ("{name}", "the {person}", "the {adjective} {person}", "a {adjective} {animal}"),
    "thing": ("the {object}", "a {adjective} {object}"),
    "things": ("{several} {plural}",),
    "where": ("in the {place}", "near the {place}", "behind the {place}"),
    "when": ("on {day} {day_part}", "in {month}", "before {moment}"),
    "several": (*words.DIGITS[2:], *words.NUMBERS[:-2]),
    "name": words.NAMES,
    "person": words.PEOPLE,
    "animal": words.ANIMALS,
    "object": words.OBJECTS,
    "plural": words.PLURALS,
    "place": words.PLACES,
    "adjective": words.ADJECTIVES,
    "transitive": words.TRANSITIVE_VERBS,
    "intransitive": words.INTRANSITIVE_VERBS,
    "adverb": words.ADVERBS,
    "day": words.DAYS,
    "month": words.MONTHS,
    "day_part": words.DAY_PARTS,
    "moment": words.MOMENTS,
}
"""What each symbol may become; every choice is equally likely."""

_SYMBOL = re.compile(r"\{(\w+)\}")
_A_BEFORE_VOWEL = re.compile(r"\ba(?= [aeiou])")


def make_sentence(rng: np.random.Generator) -> str:
    """A sentence of the grammar, lower case, without punctuation."""
    return _A_BEFORE_VOWEL.sub("an", _expand("sentence", rng))


def _expand(symbol: str, rng: np.random.Generator) -> str:
    choices = GRAMMAR[symbol]
    choice = choices[rng.integers(len(choices))]
    return _SYMBOL.sub(lambda match: _expand(match[1], rng), choice)


class WordStrings:
    """Draws strings of random words, as in a telephone number or a list of those present."""

    KINDS = (words.DIGITS, words.NAMES, (*words.DIGITS, *words.NAMES))

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._words = _deal(words.CONTENT_WORDS, rng)

    def draw(self) -> str:
        """Four to seven digits, names, or both; each word is drawn by itself."""
        kind = self.KINDS[self._rng.integers(len(self.KINDS))]
        return " ".join(self._rng.choice(kind, size=self._rng.integers(4, 8)))

    def draw_short(self) -> str:
        """One to three words of any kind, from a shuffled deck: all words occur equally often."""
        return " ".join(next(self._words) for _ in range(int(self._rng.integers(1, 4))))


def _deal(deck: tuple[str, ...], rng: np.random.Generator) -> Iterator[str]:
    while True:
        yield from rng.permutation(deck).tolist()
