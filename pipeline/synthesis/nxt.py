"""Annotations in the NITE XML of AMI's manual annotations 1.6.2: words, segments, meetings."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dmlm.pipeline.storage import write_bytes

ENCODING = "iso-8859-1"
AGENTS = "ABCD"
ROLES = ("PM", "ME", "UI", "ID")


@dataclass(frozen=True, slots=True)
class Token:
    """An element of a words file, as in `<vocalsound type="laugh"/>` or `<w punc="true">.</w>`."""

    element: str
    start_seconds: float
    end_seconds: float
    text: str = ""
    attribute: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """What one agent says in one go."""

    agent: str
    start_seconds: float
    end_seconds: float
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """A meeting, its speakers in the order of the agents, and its segments by time."""

    meeting_id: str
    is_training: bool
    duration_seconds: float
    speaker_names: tuple[str, ...]
    segments: tuple[Segment, ...]


def write_annotations(folder: Path, meetings: Iterable[Meeting]) -> None:
    """Writes words/, segments/ and corpusResources/meetings.xml into `folder`."""
    meetings = tuple(meetings)
    for meeting in meetings:
        for agent in AGENTS:
            _write_agent(folder, meeting, agent)
    body = [line for number, meeting in enumerate(meetings, 1) for line in _meeting(number, meeting)]
    _write(folder / "corpusResources" / "meetings.xml", "meet.00", body)


def _write_agent(folder: Path, meeting: Meeting, agent: str) -> None:
    name = f"{meeting.meeting_id}.{agent}"
    words: list[str] = []
    segments: list[str] = []
    for number, segment in enumerate(meeting.segments):
        if segment.agent != agent:
            continue
        first, last = len(words), len(words) + len(segment.tokens) - 1
        words += [_token(f"{name}.words{first + i}", token) for i, token in enumerate(segment.tokens)]
        segments += _segment(f"{meeting.meeting_id}.sync.{number + 1}", name, segment, first, last)
    _write(folder / "words" / f"{name}.words.xml", f"{name}.words", words)
    _write(folder / "segments" / f"{name}.segments.xml", f"{name}.segs", segments)


def _token(token_id: str, token: Token) -> str:
    times = f'starttime="{token.start_seconds:.3f}" endtime="{token.end_seconds:.3f}"'
    opening = " ".join(filter(None, (f'<{token.element} nite:id="{token_id}" {times}', token.attribute)))
    if token.element != "w":
        return f"{opening}/>"
    return f"{opening}>{html.escape(token.text)}</w>"


def _segment(segment_id: str, name: str, segment: Segment, first: int, last: int) -> Sequence[str]:
    span = "..".join(f"id({name}.words{index})" for index in sorted({first, last}))
    channel = AGENTS.index(segment.agent)
    return (
        f'<segment nite:id="{segment_id}" channel="{channel}" '
        f'transcriber_start="{segment.start_seconds:.3f}" transcriber_end="{segment.end_seconds:.3f}">',
        f'   <nite:child href="{name}.words.xml#{span}"/>',
        "</segment>",
    )


def _meeting(number: int, meeting: Meeting) -> Sequence[str]:
    seen = 'visibility="seen" seen_type="training"' if meeting.is_training else 'visibility="unseen"'
    name = meeting.meeting_id
    speakers = (
        f'   <speaker nite:id="{name}_{channel + 1}" channel="{channel}" nxt_agent="{agent}" '
        f'camera="Closeup{channel + 1}" global_name="{speaker}" role="{role}"/>'
        for channel, (agent, speaker, role) in enumerate(
            zip(AGENTS, meeting.speaker_names, ROLES, strict=True)
        )
    )
    return (
        f'<meeting nite:id="meet_{number}" type="scenario" observation="{name}" name="synthetic meeting" '
        f'dateOnly="" startTime="" description="not a meeting of AMI" '
        f'duration="{int(meeting.duration_seconds)}" {seen} k10="1" k5="1">',
        *speakers,
        "</meeting>",
    )


def _write(path: Path, root_id: str, body: Sequence[str]) -> None:
    lines = (
        '<?xml version="1.0" encoding="ISO-8859-1" standalone="yes"?>',
        f'<nite:root nite:id="{root_id}" xmlns:nite="http://nite.sourceforge.net/">',
        *(f"   {line}" for line in body),
        "</nite:root>",
    )
    write_bytes(path, ("\n".join(lines) + "\n").encode(ENCODING, "xmlcharrefreplace"))
