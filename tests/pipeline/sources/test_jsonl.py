import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlm.pipeline.samples import Broken, ImageCaption, Skipped, TextLine, Utterance
from dmlm.pipeline.sources import open_source
from dmlm.pipeline.sources.jsonl import parse_line
from dmlm.pipeline.sources.lines import Line


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "clips").mkdir()
    for name in ("clips/a.wav", "b.jpg"):
        (tmp_path / name).touch()
    return tmp_path


def write(folder, *lines, name="mine.jsonl"):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / name).write_text(text + "\n", encoding="utf-8")


def read(folder, splits=None):
    return list(open_source("jsonl", folder, splits).iter_items())


def test_audio_with_every_field(folder):
    write(
        folder,
        {
            "key": "a1",
            "audio": "clips/a.wav",
            "text": "Ciao.",
            "language": "it",
            "translation": "Hello.",
            "translation_language": "en",
            "speaker": "anna",
            "split": "dev",
            "start_seconds": 1,
            "end_seconds": 2.5,
        },
    )
    assert read(folder) == [
        Utterance(
            key="a1",
            source="jsonl",
            split="dev",
            audio_path=folder / "clips" / "a.wav",
            start_seconds=1,
            end_seconds=2.5,
            text="Ciao.",
            language="it",
            translation="Hello.",
            translation_language="en",
            speaker="anna",
        )
    ]


def test_images_and_texts_need_no_key(folder):
    write(folder, {"image": "b.jpg", "text": "A bus."}, "", {"text": "Only text.", "language": None})
    assert read(folder / "mine.jsonl") == [
        ImageCaption(
            key="mine-00000001",
            source="jsonl",
            split="mine",
            image_path=folder / "b.jpg",
            image_id="b.jpg",
            text="A bus.",
        ),
        TextLine(key="mine-00000003", source="jsonl", split="mine", text="Only text."),
    ]


def test_absolute_paths_of_images_tell_them_apart_and_stay_private(folder):
    paths = [folder / "lists" / "b.jpg", folder / "a" / "1.jpg", folder / "b" / "1.jpg"]
    for path in paths:
        path.parent.mkdir()
        path.touch()
    lines = [{"image": str(path), "text": "A bus."} for path in paths]
    write(folder / "lists", *lines, {"image": str(paths[1]), "text": "A red bus."})
    within, first, other, again = [item.image_id for item in read(folder / "lists")]
    assert within == "b.jpg"
    assert first == again != other
    assert first.startswith("1.jpg-")
    assert not any(str(folder) in name for name in (within, first, other))


def test_splits_are_those_of_the_lines_else_the_name_of_the_file(folder):
    write(folder, {"text": "a", "split": "train"}, {"text": "b"}, {"text": "c", "split": "train"})
    write(folder, {"text": "d"}, name="train.jsonl")
    assert open_source("jsonl", folder).splits == ("mine", "train")
    assert [item.text for item in read(folder, ["train"])] == ["a", "c", "d"]


def test_only_files_of_the_split_that_is_read_are_looked_for(folder, monkeypatch):
    write(folder, {"audio": "clips/a.wav", "split": "train"}, {"image": "b.jpg", "split": "dev"}, "{")
    looked_for = []
    is_file = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: looked_for.append(path.name) or is_file(path))
    source = open_source("jsonl", folder)
    assert source.splits == ("dev", "mine", "train")
    assert not {"a.wav", "b.jpg"} & {*looked_for}
    assert len(read(folder, ["dev"])) == 1
    assert {"a.wav", "b.jpg"} & {*looked_for} == {"b.jpg"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"txt": "x"}, "unknown key 'txt'; did you mean 'text'"),
        ({"audio": "clips/none.wav"}, "no file clips/none.wav"),
        ({"audio": "/secret/folder/none.wav"}, "no file none.wav"),
        ({"image": "clips"}, "no file clips"),
        ({"audio": "a" * 300}, "aaa: File name too long"),
        ({"audio": "clips/a.wav", "image": "b.jpg"}, "write two lines"),
        (
            {"audio": "clips/a.wav", "start_seconds": -1},
            "start_seconds must be seconds from 0 to 43200, found '-1'",
        ),
        ({"audio": "clips/a.wav", "end_seconds": "3"}, "end_seconds must be seconds"),
        ('{"audio": "clips/a.wav", "end_seconds": NaN}', "end_seconds must be seconds"),
        ({"audio": "clips/a.wav", "end_seconds": True}, "end_seconds must be seconds"),
        ({"audio": "clips/a.wav", "start_seconds": 2, "end_seconds": 1}, "end_seconds is 1, but"),
        ({"audio": "clips/a.wav", "start_seconds": 1, "end_seconds": 1}, "end_seconds is 1, but"),
        ({"text": 3}, "text must be text, found '3'"),
        ({"text": "x", "key": "a/b"}, "key 'a/b' must be letters"),
        ({"text": "x", "end_seconds": 1.7e308}, "end_seconds must be seconds from 0 to 43200"),
        (
            {"text": "x", "start_seconds": 10**400},
            "start_seconds must be seconds from 0 to 43200, found '1000",
        ),
        ("{", "not json"),
        ("[" * 100_000, "not json"),
        ("[1]", "expected an object, found list"),
    ],
)
def test_what_is_wrong_with_a_line_is_named_with_its_number(folder, line, reason):
    write(folder, {"text": "fine"}, line)
    fine, broken = read(folder)
    assert isinstance(fine, TextLine)
    assert isinstance(broken, Broken)
    assert broken.reason.startswith("mine.jsonl:2: ")
    assert reason in broken.reason
    assert "secret" not in broken.reason


@pytest.mark.parametrize("line", [{"language": "en"}, {"text": None}, {"text": " \n\u3000"}])
def test_line_without_audio_image_or_text_is_skipped(folder, line):
    write(folder, {"text": "fine"}, line)
    assert read(folder)[1] == Skipped(
        key="mine-00000002",
        source="jsonl",
        split="mine",
        reason="no audio, image or text",
        recording_id="mine",
    )


JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner))
FIELDS = st.sampled_from(["key", "text", "split", "audio", "start_seconds", "nonsense"])


@settings(max_examples=50)
@given(content=st.dictionaries(FIELDS, JSON))
def test_any_object_becomes_an_item_and_nothing_escapes(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    item = parse_line(path, Line(json.dumps(content), "any.jsonl:1", "any-1"))
    assert item.source == "jsonl"
    assert isinstance(item.split, str)
