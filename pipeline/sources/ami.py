"""AMI meetings: amicorpus/MEETING/audio/MEETING.*.wav and the manual annotations 1.6.2.

Recordings are `ihm-mix`, the mix of the headsets, `ihm`, the headset of who speaks, or `sdm`, the first
microphone of the first array. One item per transcribed segment. A segment that ends after its recording, or
that was not recorded, is skipped; one without words is speech-only; one over 30 s is cut at word gaps (keys
end in -0, -1 …).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dmlm.pipeline.audio import recording_seconds
from dmlm.pipeline.errors import AnnotationError, AudioError, CorruptInputError, SampleError
from dmlm.pipeline.manifests import load_manifest
from dmlm.pipeline.samples import Broken, Skipped, SourceItem, Utterance
from dmlm.pipeline.sources.ami_annotations import (
    AgentWords,
    Segment,
    Speaker,
    read_segments,
    read_speakers,
    read_words,
)
from dmlm.pipeline.sources.ami_cutting import Piece, cut_segment
from dmlm.pipeline.sources.interface import SourceOptions
from dmlm.pipeline.sources.intervals import Interval, overlap_seconds, union_of
from dmlm.pipeline.text_rules import apply_text_rule

NAME = "ami"
ANNOTATIONS = "ami_public_manual_1.6.2"
EXPECTED = f"{ANNOTATIONS}/{{segments,words}}/*.xml and amicorpus/MEETING/audio/MEETING.*.wav"

_SEGMENTS = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9])\.segments\.xml")
_RECORDING = re.compile(r"([A-Za-z0-9_-]+)\.[A-Za-z0-9-]+\.wav")
_MICROPHONES = {"ihm-mix": "Mix-Headset", "ihm": "Headset-{channel}", "sdm": "Array1-01"}

Speakers = dict[tuple[str, str], Speaker]
"""By meeting and agent."""


@dataclass(frozen=True, slots=True)
class _Recording:
    """Audio of a meeting or a speaker; None seconds: there is none; a fault breaks all its segments."""

    path: Path
    seconds: float | None = None
    fault: AudioError | None = None


@dataclass(slots=True)
class _Meeting:
    """One meeting while it is read."""

    name: str
    split: str
    corpus_dir: Path
    options: SourceOptions
    speakers: Speakers
    segments: list[Segment] = field(default_factory=list)
    faults: list[Broken] = field(default_factory=list)
    words: dict[str, AgentWords | AnnotationError] = field(default_factory=dict)
    """By agent, read when first needed."""
    recordings: dict[Path, _Recording] = field(default_factory=dict)

    @property
    def annotations_dir(self) -> Path:
        """Folder of the manual annotations."""
        return self.corpus_dir / ANNOTATIONS

    def speaker_of(self, agent: str) -> Speaker:
        """Who the agent is; somebody of this meeting only, when meetings.xml does not say."""
        return self.speakers.get((self.name, agent), Speaker(f"{self.name}-{agent}", None))

    def recording_of(self, agent: str) -> _Recording:
        """What the chosen microphone recorded of the agent, probed once."""
        microphone = _MICROPHONES[self.options.microphone].format(channel=self.speaker_of(agent).channel)
        path = self.corpus_dir / "amicorpus" / self.name / "audio" / f"{self.name}.{microphone}.wav"
        if path not in self.recordings:
            self.recordings[path] = _probe_recording(path)
        return self.recordings[path]

    def words_of(self, segment: Segment) -> AgentWords:
        """Words of the segment's speaker; an unreadable file fails each segment anew."""
        agent = segment.agent
        if agent not in self.words:
            try:
                self.words[agent] = read_words(
                    self.annotations_dir / "words" / f"{self.name}.{agent}.words.xml"
                )
            except AnnotationError as error:
                self.words[agent] = error
        words = self.words[agent]
        if isinstance(words, AnnotationError):
            raise words
        return words


def is_present(corpus_dir: Path) -> bool:
    """Whether the annotations are there."""
    return any((corpus_dir / ANNOTATIONS / "segments").glob("*.segments.xml"))


def find_splits(corpus_dir: Path, options: SourceOptions) -> tuple[str, ...]:
    """Parts of the official partition that any annotated or recorded meeting belongs to, sorted."""
    return tuple(sorted(set(_partition(corpus_dir, options).values())))


def iter_split(corpus_dir: Path, split: str, options: SourceOptions) -> Iterator[SourceItem]:
    """Yields the segments of a split, sorted by meeting, start and agent.

    Raises:
        CorruptInputError: meetings.xml, which names the speakers, cannot be read.
    """
    annotations_dir = corpus_dir / ANNOTATIONS
    try:
        speakers = read_speakers(annotations_dir / "corpusResources" / "meetings.xml")
    except AnnotationError as error:
        raise CorruptInputError(f"{annotations_dir}: {error}; unpack the annotations again") from error
    for name, part in sorted(_partition(corpus_dir, options).items()):
        if part == split:
            yield from _iter_meeting(_Meeting(name, split, corpus_dir, options, speakers))


def _iter_meeting(meeting: _Meeting) -> Iterator[SourceItem]:
    _read_all_segments(meeting)
    if not meeting.segments and not meeting.faults:
        yield Skipped(
            key=meeting.name,
            source=NAME,
            split=meeting.split,
            reason="meeting without segments",
            recording_id=meeting.name,
        )
    yield from meeting.faults
    busy = _intervals_of_others(meeting.segments)
    for segment in sorted(meeting.segments, key=lambda s: (s.start_seconds, s.agent, s.index)):
        yield from _iter_pieces(meeting, segment, busy[segment.agent])


def _iter_pieces(meeting: _Meeting, segment: Segment, busy: list[Interval]) -> Iterator[SourceItem]:
    key = f"{meeting.name}-{segment.agent}-{segment.index:06d}"
    recording = meeting.recording_of(segment.agent)
    if reason := _skip_reason(meeting.options, recording, segment):
        yield Skipped(key=key, source=NAME, split=meeting.split, reason=reason, recording_id=meeting.name)
        return
    try:
        if recording.fault:
            raise recording.fault
        pieces = _cut(meeting, segment)
    except SampleError as error:
        yield Broken(key=key, source=NAME, split=meeting.split, reason=str(error))
        return
    for number, piece in enumerate(pieces):
        piece_key = f"{key}-{number}" if len(pieces) > 1 else key
        yield _to_utterance(meeting, piece, piece_key, segment.agent, busy)


def _skip_reason(options: SourceOptions, recording: _Recording, segment: Segment) -> str | None:
    if recording.seconds is None:
        return "speaker without headset audio" if options.microphone == "ihm" else "meeting without audio"
    if recording.fault is None and segment.end_seconds > recording.seconds:
        return "segment ends after its recording"
    return None


def _cut(meeting: _Meeting, segment: Segment) -> list[Piece]:
    if segment.fault:
        raise AnnotationError(segment.fault)
    words = meeting.words_of(segment).of_segment(segment)
    if meeting.options.truncated_words == "drop":
        words = [word for word in words if not word.is_truncated]
    return cut_segment(segment.start_seconds, segment.end_seconds, words)


def _to_utterance(meeting: _Meeting, piece: Piece, key: str, agent: str, busy: list[Interval]) -> Utterance:
    text = " ".join(word.text for word in piece.words if word.text)
    return Utterance(
        key=key,
        source=NAME,
        split=meeting.split,
        audio_path=meeting.recording_of(agent).path,
        start_seconds=piece.start_seconds,
        end_seconds=piece.end_seconds,
        text=text if apply_text_rule(NAME, text) else None,
        language="en",
        speaker=meeting.speaker_of(agent).name,
        recording_id=meeting.name,
        overlap_seconds=overlap_seconds(busy, piece.start_seconds, piece.end_seconds),
    )


def _read_all_segments(meeting: _Meeting) -> None:
    for path in sorted((meeting.annotations_dir / "segments").glob(f"{meeting.name}.*.segments.xml")):
        if (match := _SEGMENTS.fullmatch(path.name)) is None:
            continue
        try:
            meeting.segments += read_segments(path, agent=match[2])
        except AnnotationError as error:
            key = f"{meeting.name}-{match[2]}"
            meeting.faults.append(Broken(key=key, source=NAME, split=meeting.split, reason=str(error)))


def _intervals_of_others(segments: list[Segment]) -> dict[str, list[Interval]]:
    """For each agent the union of everybody else's segments."""
    sound = [segment for segment in segments if segment.fault is None]
    return {
        agent: union_of((s.start_seconds, s.end_seconds) for s in sound if s.agent != agent)
        for agent in {segment.agent for segment in segments}
    }


def _probe_recording(path: Path) -> _Recording:
    if not path.is_file():
        return _Recording(path)
    try:
        return _Recording(path, seconds=recording_seconds(path))
    except AudioError as error:
        return _Recording(path, seconds=0.0, fault=error)


def _partition(corpus_dir: Path, options: SourceOptions) -> dict[str, str]:
    """Split of every meeting that has annotations, or audio of the chosen microphone."""
    microphone = _MICROPHONES[options.microphone].format(channel="[0-9]")
    segments = (corpus_dir / ANNOTATIONS / "segments").glob("*.segments.xml")
    recordings = (corpus_dir / "amicorpus").glob(f"*/audio/*.{microphone}.wav")
    matches = [_SEGMENTS.fullmatch(path.name) for path in segments]
    matches += [_RECORDING.fullmatch(path.name) for path in recordings]
    named = {meeting: split.name for split in load_manifest(NAME).splits for meeting in split.recordings}
    return {match[1]: named.get(match[1], "train") for match in matches if match}
