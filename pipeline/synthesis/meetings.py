"""Meetings in AMI's layout: four people, some of them talking at once, mixed into one recording.

A turn is noted in AMI's own terms: `{sentence}` stands for a sentence, a trailing hyphen for a truncated
word, `<laugh>` for a vocal sound, `<gap>` and `<disfmarker>` for themselves. Word times are not measured: a
segment's time is shared among its words in proportion to their letters.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from pathlib import Path

import numpy as np

from dmlm.pipeline.randomness import generator_for
from dmlm.pipeline.samples import Waveform
from dmlm.pipeline.storage import write_bytes
from dmlm.pipeline.synthesis.nxt import AGENTS, Meeting, Segment, Token, write_annotations
from dmlm.pipeline.synthesis.speech import (
    PEAK,
    SAMPLING_RATE_HZ,
    EnglishVoice,
    Speaker,
    duration_seconds,
    encode_audio,
)
from dmlm.pipeline.synthesis.workers import map_in_order

TRAIN_MEETINGS = ("ES2002a", "ES2005a", "IS1000a")
TEST_MEETINGS = ("ES2004a",)
NUM_TURNS = 20
"""Turns of a meeting, a little over a minute."""
TURNS = (
    "Okay , {sentence} .",
    "Um {sentence} .",
    "<laugh>",
    "Ye- Yeah , {sentence} .",
    "So <disfmarker> {sentence} .",
    "Right , {sentence} <gap> .",
    "Well , {sentence} <laugh>",
    "At the café {sentence} .",
)
"""Taken one after the other, so that a whole meeting has each of them."""
SPOKEN_LAUGH = "ha ha ha"
OVERLAP_SHARE = 0.4
BEYOND_THE_END_SECONDS = 0.5
"""The last segment starts this long after the end of its recording, as happens in AMI's annotations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn of a meeting, not yet spoken."""

    agent: str
    speaker: Speaker
    notation: str
    noise_seed: int

    @property
    def spoken(self) -> str:
        """What the voice is given to read."""
        pieces = self.notation.replace("<laugh>", SPOKEN_LAUGH).replace("- ", " ").split()
        return " ".join(piece for piece in pieces if not piece.startswith("<")).replace(" ,", ",")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeetingPlan:
    """A meeting before anybody has spoken."""

    meeting_id: str
    speakers: tuple[Speaker, ...]
    turns: tuple[Turn, ...]


def plan_meetings(
    meeting_ids: Sequence[str], sentences: Sequence[str], speakers: Sequence[Speaker], seed: int
) -> list[MeetingPlan]:
    """Shares the sentences out among meetings of `NUM_TURNS` turns and four speakers each."""
    shares = [sentences[i : i + NUM_TURNS] for i in range(0, len(sentences), NUM_TURNS)]
    return [
        _plan(meeting_id, share, speakers, seed)
        for meeting_id, share in zip(meeting_ids, shares, strict=False)
    ]


def _plan(meeting_id: str, sentences: Sequence[str], speakers: Sequence[Speaker], seed: int) -> MeetingPlan:
    rng = generator_for(seed, "sample", "meeting", meeting_id)
    present = tuple(speakers[index] for index in rng.permutation(len(speakers))[: len(AGENTS)])
    turns: list[Turn] = []
    channel = 0
    for sentence, notation in zip(sentences, cycle(TURNS), strict=False):
        channel = (channel + int(rng.integers(1, len(AGENTS)))) % len(AGENTS)
        turns.append(
            Turn(
                agent=AGENTS[channel],
                speaker=present[channel],
                notation=notation.format(sentence=sentence),
                noise_seed=int(rng.integers(2**31)),
            )
        )
    return MeetingPlan(meeting_id=meeting_id, speakers=present, turns=tuple(turns))


def write_meetings(
    root: Path, plans: Sequence[MeetingPlan], voice: EnglishVoice, seed: int, num_workers: int | None
) -> list[float]:
    """Writes `root`/ami and returns the duration of each recording in seconds."""

    def speak(turn: Turn) -> Waveform:
        return voice.speak(turn.spoken, turn.speaker, turn.noise_seed)

    turns = [turn for plan in plans for turn in plan.turns]
    waveforms = iter(list(map_in_order(speak, turns, num_workers, "AMI layout")))
    meetings = [_record(root / "ami", plan, waveforms, seed) for plan in plans]
    write_annotations(root / "ami" / "ami_public_manual_1.6.2", meetings)
    return [meeting.duration_seconds for meeting in meetings]


def _record(corpus: Path, plan: MeetingPlan, waveforms: Iterator[Waveform], seed: int) -> Meeting:
    spoken = [next(waveforms) for _ in plan.turns]
    starts, end = _place(plan, [duration_seconds(waveform) for waveform in spoken], seed)
    path = corpus / "amicorpus" / plan.meeting_id / "audio" / f"{plan.meeting_id}.Mix-Headset.wav"
    write_bytes(path, encode_audio(_mix(spoken, starts, end), "WAV"))
    return Meeting(
        meeting_id=plan.meeting_id,
        is_training=plan.meeting_id in TRAIN_MEETINGS,
        duration_seconds=end,
        speaker_names=tuple(f"SYN{speaker.name}" for speaker in plan.speakers),
        segments=tuple(
            _segment(turn, start, start + duration_seconds(waveform))
            for turn, start, waveform in zip(plan.turns, starts, spoken, strict=True)
        ),
    )


def _place(plan: MeetingPlan, durations: Sequence[float], seed: int) -> tuple[list[float], float]:
    """Start of every turn and end of the recording, in seconds, to the millisecond."""
    rng = generator_for(seed, "sample", "timeline", plan.meeting_id)
    starts = [0.5]
    for previous, current in pairwise(durations):
        overlap = min(rng.uniform(0.4, 1.0), previous / 2, current / 2)
        gap = -overlap if rng.random() < OVERLAP_SHARE else rng.uniform(0.1, 0.6)
        starts.append(round(starts[-1] + previous + gap, 3))
    if len(starts) == 1:
        return starts, round(starts[0] + durations[0] + 0.3, 3)
    end = round(
        max(start + duration for start, duration in zip(starts[:-1], durations, strict=False)) + 0.3, 3
    )
    return [*starts[:-1], round(end + BEYOND_THE_END_SECONDS, 3)], end


def _mix(waveforms: Sequence[Waveform], starts: Sequence[float], end: float) -> Waveform:
    mixed = np.zeros(round(end * SAMPLING_RATE_HZ), np.float32)
    for waveform, start in zip(waveforms, starts, strict=True):
        heard = mixed[round(start * SAMPLING_RATE_HZ) :][: len(waveform)]
        heard += waveform[: len(heard)]
    return np.clip(mixed, -PEAK, PEAK)


def _segment(turn: Turn, start: float, end: float) -> Segment:
    pieces = turn.notation.split()
    weights = [_weight(piece) for piece in pieces]
    edges = start + (end - start) * np.cumsum([0, *weights]) / sum(weights)
    tokens = (_token(piece, *edges[index : index + 2].tolist()) for index, piece in enumerate(pieces))
    return Segment(agent=turn.agent, start_seconds=start, end_seconds=end, tokens=tuple(tokens))


def _weight(piece: str) -> int:
    return len(SPOKEN_LAUGH) if piece == "<laugh>" else sum(map(str.isalpha, piece)) * (piece[0] != "<")


def _token(piece: str, start: float, end: float) -> Token:
    if piece == "<laugh>":
        return Token("vocalsound", start, end, attribute='type="laugh"')
    if piece.startswith("<"):
        return Token(piece.strip("<>"), start, end)
    if not piece[0].isalpha():
        return Token("w", start, end, piece, 'punc="true"')
    if piece.endswith("-"):
        return Token("w", start, end, piece.rstrip("-"), 'trunc="true"')
    return Token("w", start, end, piece)
