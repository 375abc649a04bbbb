from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmlm.pipeline.errors import AnnotationError
from dmlm.pipeline.sources.ami_annotations import Word
from dmlm.pipeline.sources.ami_cutting import MAX_PIECE_SECONDS, cut_segment


def spoken(start, end, text="word"):
    return Word(text=text, start_seconds=start, end_seconds=end, is_spoken=True, is_truncated=False)


def mark(time):
    return Word(text=".", start_seconds=time, end_seconds=time, is_spoken=False, is_truncated=False)


def bounds(pieces):
    return [(piece.start_seconds, piece.end_seconds) for piece in pieces]


@pytest.mark.parametrize("end", [30.0, 12.0])
def test_segment_of_up_to_thirty_seconds_stays_whole(end):
    words = [spoken(0.0, 1.0)]
    (piece,) = cut_segment(0.0, end, words)
    assert (piece.end_seconds, piece.words) == (end, words)


def test_cut_falls_into_the_widest_gap_of_the_second_half():
    words = [spoken(0, 5), spoken(9, 18), spoken(18.5, 24), spoken(26, 29), spoken(29.5, 40)]
    first, second = cut_segment(0.0, 40.0, words)
    assert bounds([first, second]) == [(0.0, 25.0), (25.0, 40.0)]
    assert list(first.words) == words[:3]


def test_first_half_is_used_when_the_second_has_no_gap():
    words = [spoken(0, 5), spoken(7, 32), spoken(33, 40)]
    assert bounds(cut_segment(0.0, 40.0, words)) == [(0.0, 6.0), (6.0, 32.5), (32.5, 40.0)]


def test_words_that_touch_can_be_parted_but_not_a_word_from_its_full_stop():
    words = [spoken(0, 20), spoken(20, 29), mark(29), spoken(29, 40)]
    first, second = cut_segment(0.0, 40.0, words)
    assert first.end_seconds == 29
    assert list(second.words) == words[3:]


def test_no_cut_falls_into_a_word_that_outlasts_the_next_one() -> None:
    words = [spoken(0, 24), spoken(10, 11), spoken(25, 26), spoken(34, 35)]
    first, *_ = cut_segment(0.0, 40.0, words)
    assert first.end_seconds > 24


def test_gap_is_as_wide_as_what_lies_within_thirty_seconds() -> None:
    words = [spoken(0, 18), spoken(22, 29), spoken(50, 51)]
    first, *_ = cut_segment(0.0, 52.0, words)
    assert first.end_seconds == 20  # in a gap of 4 s; of the one of 21 s only 1 s is within reach


def test_segment_without_words_is_cut_every_thirty_seconds():
    assert bounds(cut_segment(5.0, 70.0, [])) == [(5.0, 35.0), (35.0, 52.5), (52.5, 70.0)]


def test_word_of_more_than_thirty_seconds_is_refused_by_name():
    with pytest.raises(AnnotationError, match="no gap between words in the 30 s after 3 s"):
        cut_segment(3.0, 40.0, [spoken(3.0, 39.0)])


times = st.lists(st.tuples(st.floats(0, 4, width=16), st.floats(0, 6, width=16), st.booleans()), max_size=60)


@given(times=times, tail=st.floats(0, 50, width=16))
def test_pieces_cover_the_segment_and_share_out_all_words_in_order(times, tail):
    words, clock = [], 0.0
    for pause, length, is_mark in times:
        start = clock + pause
        clock = start if is_mark else start + length
        words.append(mark(start) if is_mark else spoken(start, clock, f"w{len(words)}"))
    end = clock + tail + 0.5
    pieces = cut_segment(0.0, end, words)
    assert [word for piece in pieces for word in piece.words] == words
    assert pieces[0].start_seconds == 0.0
    assert pieces[-1].end_seconds == end
    assert all(a.end_seconds == b.start_seconds for a, b in pairwise(pieces))
    for piece in pieces:
        assert 0 < piece.end_seconds - piece.start_seconds <= MAX_PIECE_SECONDS + 1e-9
        assert all(
            piece.start_seconds <= word.start_seconds <= word.end_seconds <= piece.end_seconds
            for word in piece.words
            if word.is_spoken
        )
