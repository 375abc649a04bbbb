"""Cuts long AMI segments at gaps between words, each piece with its own words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dmlm.pipeline.errors import AnnotationError
from dmlm.pipeline.sources.ami_annotations import Word

MAX_PIECE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a segment and the words spoken in it."""

    start_seconds: float
    end_seconds: float
    words: Sequence[Word]


@dataclass(frozen=True, slots=True)
class _Gap:
    """A place to cut: at `cut_seconds`, after the first `num_words` words."""

    cut_seconds: float
    width_seconds: float
    num_words: int


def cut_segment(start_seconds: float, end_seconds: float, words: Sequence[Word]) -> list[Piece]:
    """Pieces of at most 30 s that cover the segment and share out its words.

    Each cut falls into the widest gap of the second half of the 30 s, else of the first half.

    Raises:
        AnnotationError: One word fills 30 s, so that there is no gap.
    """
    pieces = []
    while end_seconds - start_seconds > MAX_PIECE_SECONDS:
        gaps = list(_iter_gaps(start_seconds, end_seconds, words))
        if not gaps:
            raise AnnotationError(f"no gap between words in the 30 s after {start_seconds:g} s")
        half = start_seconds + MAX_PIECE_SECONDS / 2
        best = max(gaps, key=lambda gap: (gap.cut_seconds >= half, gap.width_seconds, gap.cut_seconds))
        pieces.append(Piece(start_seconds, best.cut_seconds, words[: best.num_words]))
        start_seconds, words = best.cut_seconds, words[best.num_words :]
    pieces.append(Piece(start_seconds, end_seconds, words))
    return pieces


def _iter_gaps(start_seconds: float, end_seconds: float, words: Sequence[Word]) -> Iterator[_Gap]:
    """Gaps before spoken words and behind the last one that a piece from `start_seconds` can reach."""
    limit = start_seconds + MAX_PIECE_SECONDS
    gap_start = start_seconds
    for num_words in range(len(words) + 1):
        next_word = words[num_words] if num_words < len(words) else None
        gap_end = next_word.start_seconds if next_word else end_seconds
        # Punctuation and markers stay with the word before them.
        if (next_word is None or next_word.is_spoken) and gap_end >= gap_start:
            cut = min((gap_start + gap_end) / 2, limit)
            if cut > start_seconds:
                yield _Gap(cut, min(gap_end, limit) - gap_start, num_words)
        gap_start = max(gap_start, next_word.end_seconds) if next_word else gap_start
        if gap_start > limit:
            return
