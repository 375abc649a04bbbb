import xml.etree.ElementTree as ET
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dmlm.pipeline.synthesis.meetings import (
    TRAIN_MEETINGS,
    TURNS,
    MeetingPlan,
    plan_meetings,
    write_meetings,
)
from dmlm.pipeline.synthesis.speech import EnglishVoice, make_speakers

NITE = "{http://nite.sourceforge.net/}"
SENTENCE = "maria sleeps"


@pytest.fixture(scope="module")
def plan() -> MeetingPlan:
    sentences = [SENTENCE] * (len(TURNS) + 1)
    return plan_meetings(TRAIN_MEETINGS, sentences, make_speakers(0), seed=0)[0]


@pytest.fixture(scope="module")
def meeting(plan: MeetingPlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("meeting")
    write_meetings(root, [plan], EnglishVoice(), seed=0, num_workers=2)
    return root / "ami"


def segments_of(meeting: Path) -> list[ET.Element]:
    paths = sorted((meeting / "ami_public_manual_1.6.2" / "segments").iterdir())
    segments = [segment for path in paths for segment in ET.parse(path).getroot()]
    return sorted(segments, key=lambda segment: float(segment.attrib["transcriber_start"]))


def tokens_of(meeting: Path) -> Iterator[list[ET.Element]]:
    for path in sorted((meeting / "ami_public_manual_1.6.2" / "words").iterdir()):
        yield list(ET.parse(path).getroot())


def test_a_meeting_has_every_kind_of_annotation(meeting: Path) -> None:
    tokens = [token for agent in tokens_of(meeting) for token in agent]
    assert {token.tag for token in tokens} == {"w", "vocalsound", "gap", "disfmarker"}
    assert any(token.get("punc") == "true" for token in tokens)
    assert any(token.get("trunc") == "true" and token.text == "Ye" for token in tokens)


def test_words_are_written_in_latin_1(meeting: Path) -> None:
    paths = (meeting / "ami_public_manual_1.6.2" / "words").iterdir()
    data = b"".join(path.read_bytes() for path in paths)
    assert b"caf\xe9" in data
    assert b"ISO-8859-1" in data


def test_four_different_speakers_take_turns(plan: MeetingPlan) -> None:
    assert len({speaker.name for speaker in plan.speakers}) == 4
    assert all(turn.speaker == plan.speakers["ABCD".index(turn.agent)] for turn in plan.turns)
    agents = [turn.agent for turn in plan.turns]
    assert all(before != after for before, after in pairwise(agents))


def test_brackets_and_hyphens_are_not_read_aloud(plan: MeetingPlan) -> None:
    spoken = [turn.spoken for turn in plan.turns]
    assert spoken[2] == "ha ha ha"
    assert spoken[3] == f"Ye Yeah, {SENTENCE} ."
    assert not any("<" in text for text in spoken)


def test_some_turns_overlap_and_the_last_lies_beyond_the_recording(meeting: Path) -> None:
    times = [
        (float(s.attrib["transcriber_start"]), float(s.attrib["transcriber_end"]))
        for s in segments_of(meeting)
    ]
    duration = soundfile.info(next(meeting.glob("amicorpus/*/audio/*.wav"))).duration
    assert any(start < end for (_, end), (start, _) in pairwise(times))
    assert times[-1][0] > duration
    assert all(end < duration for _, end in times[:-1])


def test_words_follow_each_other_and_fill_their_segment(meeting: Path) -> None:
    for tokens in tokens_of(meeting):
        times = [(float(t.attrib["starttime"]), float(t.attrib["endtime"])) for t in tokens]
        assert all(start <= end for start, end in times)
        assert all(before[1] <= after[0] + 1e-9 for before, after in pairwise(times))
    words = {token.attrib[f"{NITE}id"]: token for agent in tokens_of(meeting) for token in agent}
    for segment in segments_of(meeting):
        first = segment[0].attrib["href"].split("#id(")[1].split(")")[0]
        assert words[first].attrib["starttime"] == segment.attrib["transcriber_start"]


def test_the_recording_is_loud_where_somebody_speaks(meeting: Path) -> None:
    audio, rate_hz = soundfile.read(next(meeting.glob("amicorpus/*/audio/*.wav")), dtype="float32")
    assert np.abs(audio).max() <= 0.991
    assert np.abs(audio[: rate_hz // 4]).max() == 0
    for segment in segments_of(meeting)[:-1]:
        start, end = (float(segment.attrib[f"transcriber_{edge}"]) for edge in ("start", "end"))
        spoken = audio[round(start * rate_hz) : round(end * rate_hz)]
        assert np.sqrt(np.mean(spoken**2)) > 0.05


def test_a_meeting_of_one_turn_keeps_it_inside(tmp_path: Path) -> None:
    plan = plan_meetings(TRAIN_MEETINGS, [SENTENCE], make_speakers(0), seed=0)
    (duration,) = write_meetings(tmp_path, plan, EnglishVoice(), seed=0, num_workers=1)
    (segment,) = segments_of(tmp_path / "ami")
    assert float(segment.attrib["transcriber_end"]) < duration
