from collections import Counter

import numpy as np
import pytest
import soundfile

from dmlm.pipeline.samples import Broken, Skipped, Utterance
from dmlm.pipeline.sources import open_source


@pytest.fixture
def chapter(tmp_path):
    """Chapter folder of a split with three utterances and no transcript."""
    folder = tmp_path / "LibriSpeech" / "test-clean" / "61" / "70968"
    folder.mkdir(parents=True)
    for number in (2, 0, 1):
        soundfile.write(folder / f"61-70968-000{number}.flac", np.zeros(1_600), 16_000)
    return folder


def read(chapter):
    return list(open_source("librispeech", chapter.parents[3]).iter_items())


def transcribe(chapter, *lines):
    (chapter / "61-70968.trans.txt").write_bytes(b"".join(line + b"\n" for line in lines))


def test_utterance_carries_all_that_the_corpus_says(chapter):
    transcribe(chapter, b"61-70968-0000 HE'S GONE", b"61-70968-0001  IN ", b"61-70968-0002 A")
    first, second, _ = read(chapter)
    assert first == Utterance(
        key="61-70968-0000",
        source="librispeech",
        split="test-clean",
        audio_path=chapter / "61-70968-0000.flac",
        text="HE'S GONE",
        language="en",
        speaker="61",
        recording_id="61-70968",
    )
    assert second.text == "IN"


def test_chapter_without_transcript_is_speech_only_in_sorted_order(chapter):
    assert [(item.key, item.text) for item in read(chapter)] == [
        ("61-70968-0000", None),
        ("61-70968-0001", None),
        ("61-70968-0002", None),
    ]


def test_utterance_without_a_line_or_with_an_empty_one_is_speech_only(chapter):
    transcribe(chapter, b"61-70968-0000 ONE", b"", b"61-70968-0001")
    assert [item.text for item in read(chapter)] == ["ONE", None, None]


def test_byte_order_mark_and_tab_behind_the_name_are_read(chapter):
    transcribe(
        chapter, b"\xef\xbb\xbf61-70968-0000 ONE", b"61-70968-0001\tTWO AND", b"61-70968-0002 \t THREE"
    )
    assert [item.text for item in read(chapter)] == ["ONE", "TWO AND", "THREE"]


def test_line_without_audio_is_skipped(chapter):
    transcribe(chapter, b"61-70968-0000 ONE", b"61-70968-0009 NINE")
    item = read(chapter)[-1]
    assert isinstance(item, Skipped)
    assert (item.key, item.recording_id) == ("61-70968-0009", "61-70968")


def test_line_that_is_not_utf8_breaks_only_its_own_utterance(chapter):
    transcribe(chapter, b"61-70968-0000 ONE", b"61-70968-0001 CAF\xe9", b"61-70968-0002 TWO")
    items = read(chapter)
    assert [type(item) for item in items] == [Utterance, Broken, Utterance]
    assert items[1].key == "61-70968-0001"
    assert "61-70968.trans.txt:2: text is not UTF-8" in items[1].reason


def test_line_without_a_usable_name_and_second_line_are_broken(chapter):
    transcribe(chapter, b"../../etc PASSWD", b"61-70968-0000 ONE", b"61-70968-0000 OTHER")
    items = read(chapter)
    broken = {item.key: item.reason for item in items if isinstance(item, Broken)}
    assert set(broken) == {"61-70968_trans_txt_1", "61-70968-0000"}
    assert "second line" in broken["61-70968-0000"]
    assert len(items) == 4


def test_file_whose_name_cannot_be_a_key_is_broken_and_hidden_files_do_not_count(chapter):
    (chapter / "61 70968.flac").touch()
    (chapter / "._61-70968-0000.flac").touch()
    items = read(chapter)
    assert [item.key for item in items if isinstance(item, Broken)] == ["61_70968"]
    assert len(items) == 4


def test_any_folder_of_the_shape_is_a_split_and_no_other(chapter):
    root = chapter.parents[3]
    (chapter.parents[2] / "notes" / "a").mkdir(parents=True)
    (chapter.parents[2] / "SPEAKERS.TXT").touch()
    mine = chapter.parents[2] / "my-split" / "7" / "8"
    mine.mkdir(parents=True)
    (mine / "7-8.trans.txt").write_text("7-8-0000 HI\n")
    source = open_source("librispeech", root)
    assert source.splits == ("my-split", "test-clean")
    assert source.text_rule == "lower"
    assert isinstance(next(source.iter_items()), Skipped)


@pytest.mark.realdata
def test_real_slice_has_690_utterances_and_nothing_else(real_data):
    items = list(open_source("librispeech", real_data).iter_items())
    assert Counter((type(item), item.split) for item in items) == {
        (Utterance, "dev-clean"): 4,
        (Utterance, "test-clean"): 4,
        (Utterance, "test-ivr"): 93,
        (Utterance, "test-other"): 50,
        (Utterance, "train-clean-100"): 150,
        (Utterance, "train-ivr"): 389,
    }
    assert len({item.key for item in items}) == 690
    assert sum(item.text is None for item in items) == 149
    assert {item.speaker for item in items if item.text and item.split == "train-clean-100"} == {"103"}
    assert items[0].text.startswith("MISTER QUILTER IS THE APOSTLE OF THE MIDDLE CLASSES")
