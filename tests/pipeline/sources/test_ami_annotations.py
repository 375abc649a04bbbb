"""Words and segments one by one; test_ami.py reads whole meetings."""

from xml.etree import ElementTree

from dmlm.pipeline.sources.ami import _intervals_of_others
from dmlm.pipeline.sources.ami_annotations import Segment, _parse_word


def test_a_word_ends_no_earlier_than_it_starts() -> None:
    element = ElementTree.fromstring('<w starttime="3.0" endtime="2.5">so</w>')
    word = _parse_word(element, 0.0)
    assert (word.start_seconds, word.end_seconds) == (3.0, 3.0)


def test_a_broken_segment_overlaps_nobody() -> None:
    whole = Segment(index=0, agent="A", start_seconds=1.0, end_seconds=2.0)
    broken = Segment(index=1, agent="A", start_seconds=5.0, end_seconds=9.0, fault="no such word")
    other = Segment(index=0, agent="B", start_seconds=0.0, end_seconds=9.0)
    assert _intervals_of_others([whole, broken, other])["B"] == [(1.0, 2.0)]
