"""Pieces of texts to be read aloud: a few words in a row as they stand, or single words in any order.

A model that is given whole sentences learns them by heart before it learns to listen. What comes next in a
short piece, or in words without order, only the sound can tell.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from dmlm.pipeline.randomness import generator_for
from dmlm.pipeline.synthesis.readings import transcript

WORDS_PER_SECOND = 2.3
"""Of the English voice over all its speakers, as pieces."""
MAX_WORDS_IN_ORDER, MAX_LOOSE_WORDS = 12, 5
SHARE_IN_ORDER = 0.6
RARITY = 0.4
"""Power of a word's count that it is drawn with as a loose word: rare ones come often, frequent ones too."""

Words = Sequence[str]


def draw_pieces(texts: Sequence[Sequence[str]], hours: float, seed: int) -> list[str]:
    """Enough pieces to be spoken in about `hours`; every text, a list of lines, gives as many."""
    rng = generator_for(seed, "sample", "pieces")
    sources = [_Text([_words(line) for line in lines], rng) for lines in texts]
    pieces: list[str] = []
    num_words = 0
    while num_words < hours * 3600 * WORDS_PER_SECOND:
        for source in sources:
            piece = source.draw()
            pieces.append(" ".join(piece))
            num_words += len(piece)
    return pieces


class _Text:
    """Draws pieces of one text."""

    def __init__(self, lines: Sequence[Words], rng: np.random.Generator) -> None:
        self._lines, self._rng = lines, rng
        counts = Counter(word for line in lines for word in line)
        shares = np.array(list(counts.values())) ** RARITY
        self._loose_words = _draw_forever(list(counts), shares / shares.sum(), rng)

    def draw(self) -> Words:
        rng = self._rng
        if rng.random() >= SHARE_IN_ORDER:
            return list(islice(self._loose_words, int(rng.integers(1, MAX_LOOSE_WORDS + 1))))
        line = self._lines[int(rng.integers(len(self._lines)))]
        num_words = min(len(line), int(rng.integers(1, MAX_WORDS_IN_ORDER + 1)))
        start = int(rng.integers(len(line) - num_words + 1))
        return line[start : start + num_words]


def _words(line: str) -> Words:
    """The words; in a line of capitals they are no abbreviations. A dash between them is none."""
    return [word for word in (line.lower() if line.isupper() else line).split() if transcript(word)]


def _draw_forever(words: Words, shares: npt.NDArray[np.float64], rng: np.random.Generator) -> Iterator[str]:
    while True:
        yield from (words[i] for i in rng.choice(len(words), size=1024, p=shares))
