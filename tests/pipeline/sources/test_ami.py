from collections import Counter
from xml.sax.saxutils import escape

import numpy as np
import pytest
import soundfile

from dmlm.pipeline.errors import CorruptInputError
from dmlm.pipeline.samples import Broken, Skipped, Utterance
from dmlm.pipeline.sources import SourceOptions, open_source
from dmlm.pipeline.text_rules import apply_text_rule

NITE = 'xmlns:nite="http://nite.sourceforge.net/"'
MANUAL = "ami_public_manual_1.6.2"
RATE_HZ = 16_000


@pytest.fixture
def corpus(tmp_path):
    """AMI folder with no meeting in it yet."""
    for name in ("words", "segments", "corpusResources"):
        (tmp_path / "ami" / MANUAL / name).mkdir(parents=True)
    return tmp_path / "ami"


def record(corpus, meeting, seconds, microphone="Mix-Headset"):
    path = corpus / "amicorpus" / meeting / "audio" / f"{meeting}.{microphone}.wav"
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(round(seconds * RATE_HZ), np.int16), RATE_HZ)
    return path


def word(text, start, end, attributes=""):
    return f'<w {{id}} starttime="{start}" endtime="{end}" {attributes}>{escape(text)}</w>'


def stop(mark, time):
    return word(mark, time, time, 'punc="true"')


def write_words(corpus, agent, elements):
    """`agent` such as `ES2002a.A`; ids are numbered in order."""
    lines = [
        element.replace("{id}", f'nite:id="{agent}.words{number}"') for number, element in enumerate(elements)
    ]
    content = f'<?xml version="1.0" encoding="ISO-8859-1"?><nite:root {NITE}>{"".join(lines)}</nite:root>'
    path = corpus / MANUAL / "words" / f"{agent}.words.xml"
    path.write_bytes(content.encode("iso-8859-1"))
    return path


def write_segments(corpus, agent, segments):
    """`segments`: (start, end, first word, last word or None)."""
    lines = []
    for number, (start, end, first, last) in enumerate(segments):
        reference = f"{agent}.words.xml#id({agent}.words{first})"
        if last is not None:
            reference += f"..id({agent}.words{last})"
        lines.append(
            f'<segment nite:id="s{number}" transcriber_start="{start}" transcriber_end="{end}">'
            f'<nite:child href="{reference}"/></segment>'
        )
    path = corpus / MANUAL / "segments" / f"{agent}.segments.xml"
    path.write_text(f"<nite:root {NITE}>{''.join(lines)}</nite:root>")
    return path


def write_speaker(corpus, meeting, agent, global_name):
    content = (
        f'<nite:root {NITE}><meeting observation="{meeting}">'
        f'<speaker nxt_agent="{agent}" global_name="{global_name}"/></meeting></nite:root>'
    )
    (corpus / MANUAL / "corpusResources" / "meetings.xml").write_text(content)


def read(corpus, splits=None, **options):
    return list(open_source("ami", corpus.parent, splits, SourceOptions(**options)).iter_items())


@pytest.fixture
def meeting(corpus):
    """Two speakers in the 10 s of ES2002a, a training meeting."""
    record(corpus, "ES2002a", 10)
    write_speaker(corpus, "ES2002a", "B", "FEE005")
    words = [word("Okay", 1.0, 1.5), stop(",", 1.5), word("café", 2.0, 2.5), stop(".", 2.5)]
    write_words(corpus, "ES2002a.A", [*words, word("Right", 6.0, 6.4)])
    write_segments(corpus, "ES2002a.A", [(1.0, 3.0, 0, 3), (5.5, 7.0, 4, None)])
    write_words(corpus, "ES2002a.B", [word("X_M_L_", 0.5, 1.4), '<vocalsound {id} type="laugh"/>'])
    write_segments(corpus, "ES2002a.B", [(0.5, 1.75, 0, 1)])
    return corpus


def test_segments_come_by_start_with_text_speaker_times_and_overlap(meeting):
    items = read(meeting)
    assert [item.key for item in items] == ["ES2002a-B-000000", "ES2002a-A-000000", "ES2002a-A-000001"]
    assert items[1] == Utterance(
        key="ES2002a-A-000000",
        source="ami",
        split="train",
        audio_path=meeting / "amicorpus" / "ES2002a" / "audio" / "ES2002a.Mix-Headset.wav",
        start_seconds=1.0,
        end_seconds=3.0,
        text="Okay , café .",
        language="en",
        speaker="ES2002a-A",
        recording_id="ES2002a",
        overlap_seconds=0.75,
    )
    assert items[0].speaker == "FEE005"
    assert items[0].text == "X_M_L_ <vocalsound>"
    assert apply_text_rule("ami", items[0].text) == "x m l"
    assert items[2].overlap_seconds == 0.0


def test_overlap_counts_time_once_however_many_others_speak(meeting):
    for agent in "CD":
        write_segments(meeting, f"ES2002a.{agent}", [(1.5, 2.5, 0, None)])
        write_words(meeting, f"ES2002a.{agent}", [word("Yes", 1.6, 2.0)])
    overlaps = {item.key: item.overlap_seconds for item in read(meeting)}
    assert overlaps["ES2002a-A-000000"] == 1.5
    assert overlaps["ES2002a-C-000000"] == 1.0


def test_segment_that_ends_after_its_recording_is_skipped(meeting):
    write_segments(meeting, "ES2002a.B", [(9.0, 10.0, 0, 1), (9.5, 10.001, 0, 1), (20, 21, 0, 1)])
    items = [item for item in read(meeting) if "-B-" in item.key]
    assert [type(item) for item in items] == [Utterance, Skipped, Skipped]
    assert {item.recording_id for item in items} == {"ES2002a"}
    assert items[1].reason == "segment ends after its recording"


def test_every_segment_of_a_meeting_without_audio_is_skipped(meeting):
    write_segments(meeting, "ES2002b.A", [(1, 2, 0, 1), (3, 4, 0, 1)])
    items = read(meeting)[3:]
    assert [(type(item), item.reason) for item in items] == [(Skipped, "meeting without audio")] * 2


def test_recording_without_segments_is_skipped(meeting):
    record(meeting, "IS1003b", 1)
    item = read(meeting)[-1]
    assert (type(item), item.key, item.recording_id) == (Skipped, "IS1003b", "IS1003b")


def test_every_segment_of_a_broken_recording_is_broken(meeting):
    record(meeting, "ES2002c", 1).write_bytes(b"RIFF, but no more")
    write_segments(meeting, "ES2002c.A", [(1, 2, 0, 1), (3, 4, 0, 1)])
    items = read(meeting)[3:]
    assert [type(item) for item in items] == [Broken, Broken]
    assert "cannot be decoded" in items[0].reason


def test_segment_without_spoken_words_is_speech_only(meeting):
    write_words(meeting, "ES2002a.B", ["<gap {id}/>", stop(".", 1.0), "<disfmarker {id}/>"])
    write_segments(meeting, "ES2002a.B", [(0.5, 1.75, 0, 2)])
    assert read(meeting)[0].text is None


def test_missing_words_file_makes_segments_speech_only(meeting):
    (meeting / MANUAL / "words" / "ES2002a.B.words.xml").unlink()
    write_segments(meeting, "ES2002a.B", [(0.5, 1.75, 0, None)])
    (item, *_) = read(meeting)
    assert isinstance(item, Utterance)
    assert item.text is None


@pytest.mark.parametrize(
    ("segments", "reason"),
    [
        ([(2.0, 2.0, 0, 1)], "ends at 2.0 s, but starts at 2.0 s"),
        ([("x", 2.0, 0, 1)], "could not convert"),
        ([("nan", 2.0, 0, 1)], "transcriber_start is 'nan'"),
        ([(1.0, 2.0, 0, 99)], "no word ES2002a.B.words99"),
    ],
)
def test_segment_that_cannot_be_read_is_broken_and_the_others_go_on(meeting, segments, reason):
    write_segments(meeting, "ES2002a.B", segments)
    items = read(meeting)
    (broken,) = [item for item in items if isinstance(item, Broken)]
    assert broken.key == "ES2002a-B-000000"
    assert reason in broken.reason
    assert len(items) == 3


def test_segment_that_refers_to_other_words_is_broken(meeting):
    path = write_segments(meeting, "ES2002a.B", [(0.5, 1.75, 0, 1)])
    path.write_text(path.read_text().replace("B.words.xml#", "A.words.xml#"))
    (broken,) = [item for item in read(meeting) if isinstance(item, Broken)]
    assert "does not point into ES2002a.B.words.xml" in broken.reason


BOMB = '<!DOCTYPE r [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><r>&b;</r>'


@pytest.mark.parametrize("content", ["<root><w>", BOMB, ""])
@pytest.mark.parametrize("kind", ["words", "segments"])
def test_unreadable_xml_is_broken_and_the_other_speaker_goes_on(meeting, kind, content):
    (meeting / MANUAL / kind / f"ES2002a.B.{kind}.xml").write_text(content)
    items = read(meeting)
    (broken,) = [item for item in items if isinstance(item, Broken)]
    assert broken.key == ("ES2002a-B-000000" if kind == "words" else "ES2002a-B")
    assert f"ES2002a.B.{kind}.xml" in broken.reason
    assert sum(isinstance(item, Utterance) for item in items) == 2


def test_document_type_is_refused_in_any_encoding(meeting):
    path = meeting / MANUAL / "words" / "ES2002a.B.words.xml"
    path.write_bytes(f'<?xml version="1.0" encoding="UTF-16"?>{BOMB}'.encode("utf-16"))
    assert "document type 'r' is not accepted" in read(meeting)[0].reason


def test_unreadable_speaker_list_is_corrupt_input(meeting):
    (meeting / MANUAL / "corpusResources" / "meetings.xml").write_text("<root>")
    with pytest.raises(CorruptInputError, match=r"meetings\.xml: not readable XML"):
        read(meeting)


def test_truncated_words_are_kept_or_dropped(meeting):
    write_words(
        meeting,
        "ES2002a.B",
        [word("Ye", 0.6, 0.8, 'trunc="true"'), "<disfmarker {id}/>", word("yes", 1, 1.2)],
    )
    write_segments(meeting, "ES2002a.B", [(0.5, 1.75, 0, 2)])
    assert read(meeting)[0].text == "Ye <disfmarker> yes"
    assert read(meeting, truncated_words="drop")[0].text == "<disfmarker> yes"


def test_long_segment_is_cut_at_word_gaps_into_numbered_pieces(corpus):
    record(corpus, "ES2002a", 80)
    words = [word(f"w{second}", second, second + 0.75) for second in range(70)]
    write_words(corpus, "ES2002a.A", [*words, stop(".", 69.75)])
    write_segments(corpus, "ES2002a.A", [(0.0, 70.0, 0, 70)])
    write_segments(corpus, "ES2002a.B", [(25.0, 35.0, 0, None)])
    pieces = [item for item in read(corpus) if "-A-" in item.key]
    assert [item.key for item in pieces] == [f"ES2002a-A-000000-{number}" for number in range(3)]
    assert " ".join(item.text for item in pieces) == " ".join(f"w{second}" for second in range(70)) + " ."
    assert [item.start_seconds for item in pieces[1:]] == [item.end_seconds for item in pieces[:-1]]
    assert (pieces[0].start_seconds, pieces[-1].end_seconds) == (0.0, 70.0)
    assert sum(item.overlap_seconds for item in pieces) == 10.0
    assert pieces[0].overlap_seconds == pytest.approx(pieces[0].end_seconds - 25.0, abs=1e-3)


def test_meetings_belong_to_the_official_partition(corpus):
    for name in ("EN2002a", "IB4010", "IB4005", "ES2002a", "TS3004d"):
        record(corpus, name, 1)
        write_segments(corpus, f"{name}.A", [(0.1, 0.9, 0, None)])
    source = open_source("ami", corpus)
    assert source.splits == ("dev", "test", "train")
    assert [(item.recording_id, item.split) for item in source.iter_items()] == [
        ("IB4010", "dev"),
        ("TS3004d", "dev"),
        ("EN2002a", "test"),
        ("ES2002a", "train"),
        ("IB4005", "train"),
    ]


def test_headset_microphones_are_those_of_each_speaker(meeting):
    record(meeting, "ES2002a", 10, "Headset-2")
    path = meeting / MANUAL / "corpusResources" / "meetings.xml"
    path.write_text(path.read_text().replace("global_name", 'channel="2" global_name'))
    items = read(meeting, microphone="ihm")
    assert [type(item) for item in items] == [Utterance, Skipped, Skipped]
    assert items[0].audio_path.name == "ES2002a.Headset-2.wav"
    assert (items[0].speaker, items[0].overlap_seconds) == ("FEE005", 0.75)
    assert items[1].reason == "speaker without headset audio"


def test_distant_microphone_has_the_same_segments(meeting):
    record(meeting, "ES2002a", 3.5, "Array1-01")
    mix, distant = read(meeting), read(meeting, microphone="sdm")
    assert [item.key for item in distant] == [item.key for item in mix]
    assert {item.audio_path.name for item in distant[:2]} == {"ES2002a.Array1-01.wav"}
    assert distant[2].reason == "segment ends after its recording"


@pytest.mark.realdata
def test_real_slice_has_66_segments_inside_the_recordings(real_data):
    items = list(open_source("ami", real_data).iter_items())
    assert Counter((type(item), item.split) for item in items) == {
        (Utterance, "train"): 66,
        (Skipped, "train"): 8_213 - 66,
        (Skipped, "dev"): 263,
    }
    assert {item.recording_id for item in items if item.split == "dev"} == {"ES2011a"}
    inside = [item for item in items if isinstance(item, Utterance)]
    assert sum(item.text is None for item in inside) == 12
    assert sum(item.overlap_seconds > 0 for item in inside) == 51
    assert inside[4].text == "Does anyone want to see uh Steve's feedback from the specification ?"
    assert inside[4].speaker == "MEE068"
    assert len({item.key for item in items}) == len(items)


@pytest.mark.realdata
def test_real_slice_has_two_truncated_words_and_no_distant_microphone(real_data):
    def count_words(**options):
        items = open_source("ami", real_data, options=SourceOptions(**options)).iter_items()
        return sum(len((item.text or "").split()) for item in items if isinstance(item, Utterance))

    assert count_words() - count_words(truncated_words="drop") == 2
    assert count_words(microphone="sdm") == 0
