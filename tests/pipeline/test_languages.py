import json
from pathlib import Path

import pytest

from dmlm.cli import run
from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.languages import ISO_639_3, language_code, with_known_languages
from dmlm.pipeline.samples import TextLine, Utterance
from dmlm.pipeline.sources import open_source
from dmlm.pipeline.vocabulary import LANGUAGES


def write_list(folder: Path, *languages: str) -> None:
    lines = [{"text": "Habari.", "language": language} for language in languages]
    (folder / "train.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


@pytest.mark.parametrize(
    ("name", "code"),
    [("en", "en"), ("en-US", "en"), ("pt_BR", "pt"), ("zh-Hant-TW", "zh"), ("EN", "en"), ("eng", "en")],
)
def test_a_region_or_three_letters_are_the_same_language(name: str, code: str) -> None:
    assert language_code(name) == code


def test_every_language_has_its_three_letters() -> None:
    assert {ISO_639_3[name] for name in ("ces", "ell", "nld", "ukr", "zho")} == {"cs", "el", "nl", "uk", "zh"}
    assert list(ISO_639_3.values()) == list(LANGUAGES)


@pytest.mark.parametrize("name", ["sw", "english", "swa", "sw-KE", "-", "e"])
def test_a_language_without_a_token_is_refused_with_a_list_of_the_others(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' has no token; known are ar, ca, .*, zh"):
        language_code(name)


def test_items_of_a_source_have_known_languages(tmp_path: Path) -> None:
    write_list(tmp_path, "it-IT", "eng", "")
    items = list(open_source("jsonl", tmp_path).iter_items())
    assert [item.language for item in items if isinstance(item, TextLine)] == ["it", "en", None]
    write_list(tmp_path, "en", "sw")
    with pytest.raises(
        ConfigError, match=r"^jsonl: train: train-00000002: language 'sw' .*; leave out the language"
    ):
        list(open_source("jsonl", tmp_path).iter_items())


def test_language_of_a_column_is_corrected_by_options() -> None:
    line = TextLine(key="a", source="hf", split="train", text="Hello.", language="English")
    with pytest.raises(ConfigError, match=r"'English' .*; give --language, or another column by --columns"):
        with_known_languages(line)


def test_speech_alone_may_be_of_any_language() -> None:
    fields = {"key": "a", "source": "s", "split": "train", "audio_path": Path("a.wav")}
    alone = Utterance(**fields, language="sw")
    assert with_known_languages(alone) is alone
    with pytest.raises(ConfigError, match="'sw'"):
        with_known_languages(Utterance(**fields, text="habari", language="sw"))
    with pytest.raises(ConfigError, match="'sw'"):
        with_known_languages(
            Utterance(**fields, text="hello", language="en", translation="habari", translation_language="sw")
        )


def test_tokenize_refuses_before_a_codebook_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_list(tmp_path, "sw")
    monkeypatch.chdir(tmp_path)
    assert run(["tokenize", "--source", "jsonl", "--root", str(tmp_path)]) == 2
    assert "language 'sw' has no token" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]
