from hypothesis import given
from hypothesis import strategies as st

from dmlm.pipeline.sources.intervals import overlap_seconds, union_of

points = st.integers(0, 40)
interval_lists = st.lists(st.tuples(points, points).map(sorted).map(tuple), max_size=12)


def test_touching_and_nested_intervals_become_one():
    assert union_of([(3.0, 4.0), (0.0, 2.0), (0.5, 1.0), (2.0, 2.5)]) == [(0.0, 2.5), (3.0, 4.0)]


@given(intervals=interval_lists, start=points, length=st.integers(1, 20))
def test_overlap_is_the_number_of_covered_seconds(intervals, start, length):
    covered = {second for a, b in intervals for second in range(a, b)}
    expected = len(covered & set(range(start, start + length)))
    assert overlap_seconds(union_of(intervals), start, start + length) == expected
