import math
from collections import Counter
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmlm.pipeline.codebooks.quality import (
    agreement,
    count_run_lengths,
    count_units,
    exchange_letters,
    information_share,
    letters_of,
    loud_span,
    match_letters,
    perplexity,
    purity,
    run_lengths,
    spread_letters,
)
from dmlm.pipeline.samples import TokenArray

K = 6
unit_lists = st.lists(st.lists(st.integers(0, K - 1), max_size=30), max_size=6)
spoken = st.lists(
    st.tuples(st.lists(st.integers(0, K - 1), max_size=20), st.text("abc", min_size=1, max_size=8)),
    min_size=2,
    max_size=6,
)


def arrays(lists: list[list[int]]) -> list[TokenArray]:
    return [np.array(units, np.int32) for units in lists]


def slow_entropy(counts: Counter[object]) -> float:
    total = counts.total()
    return -sum(n / total * math.log(n / total) for n in counts.values())


@given(unit_lists)
def test_usage_equals_a_slow_count(lists: list[list[int]]) -> None:
    slow = Counter(unit for units in lists for unit in units)
    counts = count_units(arrays(lists), K)
    assert counts.tolist() == [slow[unit] for unit in range(K)]
    expected = math.exp(slow_entropy(slow)) if slow else 0.0  # type: ignore[arg-type]
    assert perplexity(counts) == pytest.approx(expected)


def test_perplexity_is_the_number_of_units_used_equally() -> None:
    assert perplexity(np.array([5, 5, 0, 5, 5, 0])) == pytest.approx(4)


@given(unit_lists)
def test_runs_equal_those_of_groupby(lists: list[list[int]]) -> None:
    slow = [[len(list(run)) for _, run in groupby(units)] for units in lists]
    assert [run_lengths(units_F).tolist() for units_F in arrays(lists)] == slow
    counts = Counter(length for lengths in slow for length in lengths)
    assert dict(enumerate(count_run_lengths(arrays(lists)))) == {
        length: counts[length] for length in range(max(counts, default=-1) + 1)
    }


def test_agreement_counts_frames_not_recordings() -> None:
    first, second = arrays([[1, 2, 3], [4]]), arrays([[1, 2, 0], [5]])
    assert agreement(first, second) == 0.5
    assert agreement([], []) == 0


def test_loud_span_leaves_out_silence_at_both_ends() -> None:
    frame = np.ones(320, np.float32)
    waveform = np.concatenate([0.001 * frame, 0.5 * frame, 0.001 * frame, frame, 0.02 * frame, 0 * frame])
    assert loud_span(waveform, 6) == slice(1, 5)
    assert loud_span(np.zeros(3200, np.float32), 10) == slice(0, 0)
    assert loud_span(waveform, 0) == slice(0, 0)


def test_letters_are_composed_lower_case_and_nothing_else() -> None:
    assert letters_of("It's 4 É\u0301tés, E\u0301!") == "its" + "é\u0301tés".replace("\u0301", "") + "é"


@given(st.text("abcdef", min_size=1, max_size=12), st.integers(0, 40))
def test_spread_letters_last_equally_long_in_order(letters: str, num_frames: int) -> None:
    spread = spread_letters(letters, num_frames)
    assert len(spread) == num_frames
    slow = [letters[math.floor(frame / num_frames * len(letters) + 1e-9)] for frame in range(num_frames)]
    assert spread == slow


@given(st.lists(st.text("abcd", min_size=1, max_size=9), min_size=2, max_size=6))
def test_exchanged_letters_keep_their_counts_and_the_lengths_of_texts(letters: list[str]) -> None:
    exchanged = exchange_letters(letters)
    assert list(map(len, exchanged)) == list(map(len, letters))
    assert Counter("".join(exchanged)) == Counter("".join(letters))


def test_exchanged_letters_come_from_elsewhere() -> None:
    assert exchange_letters(["abc", "def", "gh"]) == ["efg", "hab", "cd"]


@given(spoken)
def test_letter_match_equals_slow_sums_over_frames(recordings: list[tuple[list[int], str]]) -> None:
    units, letters = [units for units, _ in recordings], [text for _, text in recordings]
    match = match_letters(arrays(units), letters, K)
    assert (match.purity, match.information) == pytest.approx(slow_match(units, letters), abs=1e-12)
    exchanged = slow_match(units, exchange_letters(letters))
    assert (match.purity_by_chance, match.information_by_chance) == pytest.approx(exchanged, abs=1e-12)
    assert (match.num_recordings, match.num_frames) == (len(units), sum(map(len, units)))


def slow_match(lists: list[list[int]], letters: list[str]) -> tuple[float, float]:
    pairs = [
        pair
        for units, text in zip(lists, letters, strict=True)
        for pair in zip(units, spread_letters(text, len(units)), strict=True)
    ]
    if not pairs:
        return 0.0, 0.0
    joint, by_unit = Counter(pairs), Counter(unit for unit, _ in pairs)
    by_letter = Counter(letter for _, letter in pairs)
    best = sum(max(joint[unit, letter] for letter in by_letter) for unit in by_unit)
    information = sum(
        n / len(pairs) * math.log(n * len(pairs) / (by_unit[unit] * by_letter[letter]))
        for (unit, letter), n in joint.items()
    )
    entropy = slow_entropy(by_letter)  # type: ignore[arg-type]
    return best / len(pairs), information / entropy if entropy else 0.0


def test_units_that_tell_the_letter_have_all_the_information_and_random_ones_none() -> None:
    perfect = np.diag([3, 5, 2])
    assert (purity(perfect), information_share(perfect)) == pytest.approx((1, 1))
    independent = np.outer([1, 2, 3], [2, 4])
    assert purity(independent) == pytest.approx(4 / 6)
    assert information_share(independent) == pytest.approx(0, abs=1e-12)


def test_chance_is_what_units_without_meaning_reach() -> None:
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcd"), 10)) for _ in range(60)]
    telling = [np.repeat(["abcd".index(letter) for letter in text], 3).astype(np.int32) for text in texts]
    random = [rng.integers(0, 4, 30).astype(np.int32) for _ in texts]
    good, bad = match_letters(telling, texts, 4), match_letters(random, texts, 4)
    assert good.purity == good.information == pytest.approx(1)
    assert good.purity_by_chance < 0.4
    assert bad.information == pytest.approx(bad.information_by_chance, abs=0.01)
