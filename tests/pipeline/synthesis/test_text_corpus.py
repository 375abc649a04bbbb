from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Utterance, Waveform
from dmlm.pipeline.sources.registry import open_source
from dmlm.pipeline.synthesis.corpora import SampleConfig, write_sample_corpora
from dmlm.pipeline.synthesis.readings import is_word_string, transcript
from dmlm.pipeline.synthesis.speech import EnglishVoice


def speak(tmp_path: Path, data: bytes, **settings: int) -> Path:
    text_path, out_dir = tmp_path / "lines.txt", tmp_path / "out"
    text_path.write_bytes(data)
    write_sample_corpora(SampleConfig(out_dir=out_dir, text_paths=(text_path,), **settings))
    return out_dir


def test_all_lines_of_a_text_are_spoken_and_nothing_else(tmp_path: Path) -> None:
    text = "Don't panic, said Zoë.\n\n---\nA second line!\nAnd a third.\n"
    out_dir = speak(tmp_path, text.encode())
    items = list(open_source("librispeech", out_dir).iter_items())
    assert {item.split for item in items} == {"train-text"}
    texts = sorted(str(item.text) for item in items if isinstance(item, Utterance))
    assert texts == ["A SECOND LINE", "AND A THIRD", "DON'T PANIC SAID ZOË"]
    assert sorted(path.name for path in out_dir.iterdir()) == ["LibriSpeech", "README.txt", "sample.json"]
    assert (out_dir / "LibriSpeech" / "README.txt").read_text().startswith("SYNTHETIC")


def test_limit_ends_the_reading_of_a_text(tmp_path: Path) -> None:
    out_dir = speak(tmp_path, b"first of all\nand then\nat last\n", limit=2)
    items = open_source("librispeech", out_dir).iter_items()
    assert {str(item.text) for item in items if isinstance(item, Utterance)} == {"FIRST OF ALL", "AND THEN"}


def test_changed_text_is_another_sample(tmp_path: Path) -> None:
    speak(tmp_path, b"hello there\n")
    with pytest.raises(ConfigError, match="text_sha256"):
        speak(tmp_path, b"hello again\n")


def test_what_an_interrupted_run_had_spoken_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, spoken = b"first of all\nand then\nat last\n", []
    speak_one = EnglishVoice.speak

    def speak_two(voice: EnglishVoice, text: str, *arguments: Any) -> Waveform:
        if len(spoken) == 2:
            raise KeyboardInterrupt
        spoken.append(text)
        return speak_one(voice, text, *arguments)

    monkeypatch.setattr(EnglishVoice, "speak", speak_two)
    with pytest.raises(KeyboardInterrupt):
        speak(tmp_path, data, num_workers=1)
    spoken.clear()
    out_dir = speak(tmp_path, data, num_workers=1)
    assert spoken == ["at last"]
    monkeypatch.undo()
    (tmp_path / "other").mkdir()
    whole = speak(tmp_path / "other", data)
    files = {path.relative_to(whole): path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    assert files == {
        path.relative_to(out_dir): path.read_bytes() for path in out_dir.rglob("*") if path.is_file()
    }


def test_unfinished_sample_of_other_packages_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EnglishVoice, "speak", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        speak(tmp_path, b"hello there\n")
    path = tmp_path / "out" / "sample.unfinished.json"
    path.write_text(path.read_text().replace(version("hibari-tts"), "0.0.1"))
    with pytest.raises(ConfigError, match=r"other settings \(hibari-tts 0\.0\.1 instead of"):
        speak(tmp_path, b"hello there\n")


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "no line with anything to speak"), (b"...\n", "no line"), (b"caf\xe9\n", "not UTF-8")],
)
def test_text_that_cannot_be_spoken_is_refused_before_anything_is_written(
    tmp_path: Path, data: bytes, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        speak(tmp_path, data)
    assert not (tmp_path / "out").exists()


def test_missing_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.txt"):
        write_sample_corpora(SampleConfig(out_dir=tmp_path / "out", text_paths=(tmp_path / "none.txt",)))


def test_apostrophes_and_accents_of_any_form_stay_in_the_transcript(tmp_path: Path) -> None:
    out_dir = speak(tmp_path, "‘Don\u2019t panic\u2019, said Zoe\u0308.\n".encode())
    (item,) = open_source("librispeech", out_dir).iter_items()
    assert isinstance(item, Utterance)
    assert item.text == "DON'T PANIC SAID ZOË"


@pytest.mark.parametrize(
    ("line", "expected"),
    [("Hello, world_2!", "HELLO WORLD 2"), ("it's  5 o'clock", "IT'S 5 O'CLOCK"), ("?!", ""), ("' '", "")],
)
def test_transcript_is_upper_case_without_punctuation(line: str, expected: str) -> None:
    assert transcript(line) == expected


@pytest.mark.parametrize(
    ("key", "expected"),
    [("9001-202-0003", True), ("9001-201-0003", False), ("9012-102-0000", True), ("ES2004a", False)],
)
def test_the_chapter_tells_word_strings(key: str, expected: bool) -> None:
    assert is_word_string(key) is expected
