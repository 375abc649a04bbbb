"""What units are worth, measured on arrays: usage, runs, errors, letters. No encoder, no files.

units [F] of each recording -> counts, perplexity, run lengths, letter match. docs/codebooks.md says what each
measure means and what it does not. Suffixes: F frame, D width, K cluster, L letter, C column.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from dmlm.pipeline.samples import TokenArray, Waveform

Counts = npt.NDArray[np.int64]

LOUD_BELOW_PEAK_DB = 40.0
"""Frames that are quieter than the loudest by more than this are not speech."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterMatch:
    """How much units say about the letters of the text, and how much they would by chance."""

    num_recordings: int
    """Those that have text and speech."""
    num_frames: int
    purity: float
    """Share of frames whose letter is the most frequent one of their unit."""
    purity_by_chance: float
    """The same with letters exchanged between recordings."""
    information: float
    """Mutual information of unit and letter over the entropy of the letters."""
    information_by_chance: float


def count_units(recordings: Sequence[TokenArray], num_clusters: int) -> Counts:
    """Frames per unit [K]."""
    return sum(
        (np.bincount(units_F, minlength=num_clusters) for units_F in recordings),
        np.zeros(num_clusters, np.int64),
    )


def perplexity(counts: Counts) -> float:
    """exp(entropy) of the shares: as many units used equally would be as hard to guess; 0 of nothing."""
    total = counts.sum()
    return float(np.exp(_entropy(counts))) if total else 0.0


def run_lengths(units_F: TokenArray) -> Counts:
    """Length of each run of equal units, in order."""
    if not len(units_F):
        return np.zeros(0, np.int64)
    starts = np.flatnonzero(np.concatenate([[True], units_F[1:] != units_F[:-1]]))
    return np.diff(starts, append=len(units_F))


def count_run_lengths(recordings: Sequence[TokenArray]) -> Counts:
    """Number of runs by their length, from 0 up to the longest; runs end with their recording."""
    lengths = [run_lengths(units_F) for units_F in recordings]
    return np.bincount(np.concatenate([np.zeros(0, np.int64), *lengths]))


def agreement(first: Sequence[TokenArray], second: Sequence[TokenArray]) -> float:
    """Share of frames that have the same unit in both; 0 of nothing."""
    num_same = sum(int((a_F == b_F).sum()) for a_F, b_F in zip(first, second, strict=True))
    return num_same / max(1, sum(map(len, first)))


def loud_span(waveform: Waveform, num_frames: int) -> slice:
    """Frames from the first loud one to the last, of `num_frames` that divide the recording evenly."""
    if not num_frames or not waveform.any():
        return slice(0, 0)
    edges = np.linspace(0, len(waveform), num_frames + 1).astype(np.int64)[:-1]
    energy_F = np.add.reduceat(np.square(waveform, dtype=np.float64), edges)
    loud = np.flatnonzero(energy_F >= energy_F.max() * 10 ** (-LOUD_BELOW_PEAK_DB / 10))
    return slice(int(loud[0]), int(loud[-1]) + 1)


def letters_of(text: str) -> str:
    """Letters alone, in lower case, composed; spaces, digits and punctuation are left out."""
    return "".join(filter(str.isalpha, unicodedata.normalize("NFC", text).casefold()))


def spread_letters(letters: str, num_frames: int) -> list[str]:
    """The letter of each frame when all letters last equally long."""
    return [letters[frame * len(letters) // num_frames] for frame in range(num_frames)]


def exchange_letters(letters: Sequence[str]) -> list[str]:
    """As many letters for each recording, from elsewhere: all letters in a ring, turned by half.

    Every letter keeps its count and about its duration, so that chance differs by the units alone.
    """
    ring = "".join(letters)
    turned = ring[len(ring) // 2 :] + ring[: len(ring) // 2]
    stops = list(accumulate(map(len, letters)))
    return [turned[stop - len(text) : stop] for text, stop in zip(letters, stops, strict=True)]


def match_letters(recordings: Sequence[TokenArray], letters: Sequence[str], num_clusters: int) -> LetterMatch:
    """Compares units with letters spread evenly over the frames of each recording.

    Args:
        recordings: Units of the spoken part of each recording.
        letters: Letters of each recording; none may be empty.
        num_clusters: K.
    """
    true_KL = _count_pairs(recordings, letters, num_clusters)
    exchanged_KL = _count_pairs(recordings, exchange_letters(letters), num_clusters)
    return LetterMatch(
        num_recordings=len(recordings),
        num_frames=int(true_KL.sum()),
        purity=purity(true_KL),
        purity_by_chance=purity(exchanged_KL),
        information=information_share(true_KL),
        information_by_chance=information_share(exchanged_KL),
    )


def purity(counts_KL: Counts) -> float:
    """Share of frames whose letter is the most frequent one of their unit; 0 of nothing."""
    return float(counts_KL.max(axis=1, initial=0).sum() / max(1, counts_KL.sum()))


def information_share(counts_KL: Counts) -> float:
    """I(unit; letter) / H(letter), from 0 (nothing) to 1 (the unit tells the letter)."""
    letter_entropy = _entropy(counts_KL.sum(axis=0))
    if not letter_entropy:
        return 0.0
    shared = letter_entropy + _entropy(counts_KL.sum(axis=1)) - _entropy(counts_KL.ravel())
    return shared / letter_entropy


def _count_pairs(recordings: Sequence[TokenArray], letters: Sequence[str], num_clusters: int) -> Counts:
    """Frames by unit and letter [K, L]."""
    columns = {letter: column for column, letter in enumerate(sorted(set("".join(letters))))}
    counts_KL = np.zeros((num_clusters, len(columns)), np.int64)
    for units_F, text in zip(recordings, letters, strict=True):
        letters_F = [columns[letter] for letter in spread_letters(text, len(units_F))]
        np.add.at(counts_KL, (units_F, np.array(letters_F, np.int64)), 1)
    return counts_KL


def _entropy(counts: Counts) -> float:
    """Entropy of the shares, in nats; 0 of nothing."""
    shares = counts[counts > 0] / max(1, counts.sum())
    return float(-(shares * np.log(shares)).sum())
