from pathlib import Path

import pytest

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Utterance
from dmlm.pipeline.sources.registry import open_source
from dmlm.pipeline.synthesis.corpora import SampleConfig, write_sample_corpora
from dmlm.pipeline.synthesis.readings import is_word_string, transcript


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


@pytest.mark.parametrize(
    ("line", "expected"),
    [("Hello, world_2!", "HELLO WORLD 2"), ("it's  5 o'clock", "IT'S 5 O'CLOCK"), ("?!", "")],
)
def test_transcript_is_upper_case_without_punctuation(line: str, expected: str) -> None:
    assert transcript(line) == expected


@pytest.mark.parametrize(
    ("key", "expected"),
    [("9001-202-0003", True), ("9001-201-0003", False), ("9012-102-0000", True), ("ES2004a", False)],
)
def test_the_chapter_tells_word_strings(key: str, expected: bool) -> None:
    assert is_word_string(key) is expected
