"""AMI manual annotations (NITE XML): segments, words and speakers, read safely.

Words files hold words, punctuation and markers in the order of speech; a segment names a range of them.
"""

import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Never

from dmlm.pipeline.errors import AnnotationError

MAX_XML_BYTES = 16 << 20
"""The largest words file of AMI has about 1 MB."""

_NITE = "{http://nite.sourceforge.net/}"
_ID = f"{_NITE}id"
_HREF = re.compile(r"(?P<file>[^#]+)#id\((?P<first>[^()]+)\)(?:\.\.id\((?P<last>[^()]+)\))?")
_MARKERS = ("gap", "vocalsound", "disfmarker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A word, a punctuation mark or a marker such as `<gap>`."""

    text: str
    start_seconds: float
    end_seconds: float
    is_spoken: bool
    """Neither punctuation nor marker."""
    is_truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of one speaker's speech, as its transcriber marked it."""

    index: int
    """Position in the speaker's segments file."""
    agent: str
    """Letter of the speaker in the meeting."""
    start_seconds: float = 0.0
    end_seconds: float = 0.0
    word_ranges: tuple[tuple[str, str], ...] = ()
    """Ids of the first and the last word of each range, both included."""
    fault: str | None = None
    """Why the segment cannot be used; times that could not be read are 0 then."""


@dataclass(frozen=True, slots=True)
class Speaker:
    """A participant of a meeting."""

    name: str
    """The same in all meetings."""
    channel: str | None
    """Number of the headset that was worn."""


class AgentWords:
    """All words of one speaker in one meeting."""

    def __init__(self, words: dict[str, Word]) -> None:
        """`words` by id, in the order of speech."""
        self._words = list(words.values())
        self._positions = {word_id: position for position, word_id in enumerate(words)}

    def of_segment(self, segment: Segment) -> list[Word]:
        """Words that the segment names; none when the speaker has no words at all.

        Raises:
            AnnotationError: The segment names a word that is not there.
        """
        words: list[Word] = []
        if not self._words:
            return words
        for first, last in segment.word_ranges:
            for word_id in (first, last):
                if word_id not in self._positions:
                    raise AnnotationError(f"no word {word_id} in the words file")
            words += self._words[self._positions[first] : self._positions[last] + 1]
        return words


def read_segments(path: Path, agent: str) -> list[Segment]:
    """Segments of one speaker in the order of the file; an unreadable one carries its fault.

    Raises:
        AnnotationError: The file as a whole cannot be read.
    """
    words_name = path.name.replace(".segments.", ".words.")
    return [
        _parse_segment(element, index, agent, words_name)
        for index, element in enumerate(_read_xml(path).iter("segment"))
    ]


def read_words(path: Path) -> AgentWords:
    """Words of one speaker; none when there is no such file.

    Raises:
        AnnotationError: The file cannot be read.
    """
    words: dict[str, Word] = {}
    end_seconds = 0.0
    for element in _read_xml(path) if path.is_file() else ():
        try:
            word = _parse_word(element, end_seconds)
        except ValueError as error:
            raise AnnotationError(f"{path.name}: {element.get(_ID)}: {error}") from error
        words[element.get(_ID, "")] = word
        end_seconds = word.end_seconds
    return AgentWords(words)


def read_speakers(path: Path) -> dict[tuple[str, str], Speaker]:
    """Participants by meeting and agent, from meetings.xml; empty without that file.

    Raises:
        AnnotationError: The file cannot be read.
    """
    speakers = {}
    for meeting in _read_xml(path).iter("meeting") if path.is_file() else ():
        for speaker in meeting.iter("speaker"):
            if name := speaker.get("global_name"):
                place = meeting.get("observation", ""), speaker.get("nxt_agent", "")
                speakers[place] = Speaker(name, speaker.get("channel"))
    return speakers


def _parse_segment(element: ElementTree.Element, index: int, agent: str, words_name: str) -> Segment:
    start = end = 0.0
    word_ranges: tuple[tuple[str, str], ...] = ()
    fault = None
    try:
        start = _read_seconds(element, "transcriber_start")
        end = _read_seconds(element, "transcriber_end")
        if end <= start:
            raise ValueError(f"ends at {end} s, but starts at {start} s")
        children = element.iter(f"{_NITE}child")
        word_ranges = tuple(_parse_href(child.get("href", ""), words_name) for child in children)
    except ValueError as error:
        fault = f"segment {element.get(_ID)}: {error}"
    return Segment(
        index=index,
        agent=agent,
        start_seconds=start,
        end_seconds=end,
        word_ranges=word_ranges,
        fault=fault,
    )


def _parse_href(href: str, words_name: str) -> tuple[str, str]:
    match = _HREF.fullmatch(href)
    if match is None or match["file"] != words_name:
        raise ValueError(f"reference {href[:80]!r} does not point into {words_name}")
    return match["first"], match["last"] or match["first"]


def _parse_word(element: ElementTree.Element, previous_end_seconds: float) -> Word:
    """A word without times gets the end of the one before it."""
    start, end = (
        _read_seconds(element, name) if element.get(name) else previous_end_seconds
        for name in ("starttime", "endtime")
    )
    is_word = element.tag == "w"
    text = (element.text or "").strip() if is_word else ""
    if element.tag in _MARKERS:
        text = f"<{element.tag}>"
    return Word(
        text=text,
        start_seconds=start,
        end_seconds=max(start, end),
        is_spoken=is_word and element.get("punc") != "true",
        is_truncated=element.get("trunc") == "true",
    )


def _read_seconds(element: ElementTree.Element, name: str) -> float:
    seconds = float(element.get(name, "nan"))
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"{name} is {element.get(name)!r}")
    return seconds


class _NoDoctypeBuilder(ElementTree.TreeBuilder):
    """Refuses document types, and with them entities that expand without end."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> Never:
        raise AnnotationError(f"document type {name!r} is not accepted")


def _read_xml(path: Path) -> ElementTree.Element:
    num_bytes = path.stat().st_size
    if num_bytes > MAX_XML_BYTES:
        raise AnnotationError(f"{path.name}: {num_bytes} bytes, limit {MAX_XML_BYTES}")
    parser = ElementTree.XMLParser(target=_NoDoctypeBuilder())  # noqa: S314 - document types are refused
    try:
        parser.feed(path.read_bytes())
        root: ElementTree.Element = parser.close()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise AnnotationError(f"{path.name}: not readable XML ({error})") from error
    except AnnotationError as error:
        raise AnnotationError(f"{path.name}: {error}") from error
    return root
