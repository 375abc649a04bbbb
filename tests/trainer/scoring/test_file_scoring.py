import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dmlm.cli import run
from dmlm.pipeline.errors import ConfigError
from dmlm.trainer.scoring.file_scoring import ScoreConfig, score_files


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_files_of_another_system_are_scored_as_a_checkpoint_is(tmp_path: Path, capsys) -> None:
    references = write(tmp_path / "ref.txt", "THE CAT SAT ON THE MAT", "Hello world.")
    hypotheses = write(tmp_path / "hyp.txt", "the cat sat on mat", "hallo big world")
    out = tmp_path / "asr.json"
    files = ("--references", str(references), "--hypotheses", str(hypotheses))
    assert run(["score", *files, "--out", str(out)]) == 0
    assert "37.5 %" in capsys.readouterr().out
    result = json.loads(out.read_text())
    assert result["metrics"]["wer_raw"] == result["metrics"]["wer"] == 3 / 8
    settings = result["settings"]
    assert (settings["text_rule"], settings["reference_paths"]) == ("plain", ["ref.txt"])
    assert str(tmp_path) not in out.read_text()
    assert result["versions"]["jiwer"]
    lines = [json.loads(line) for line in (tmp_path / "asr.json.samples.jsonl").read_text().splitlines()]
    assert lines[1] == {"references": ["Hello world."], "hypothesis": "hallo big world"}


def test_further_reference_files_hold_further_references(tmp_path: Path) -> None:
    config = ScoreConfig(
        task="s2tt",
        reference_paths=(
            write(tmp_path / "a", "x y z w", "ein Haus am See"),
            write(tmp_path / "b", "a b c d", ""),
        ),
        hypothesis_path=write(tmp_path / "h", "a b c d", "ein Haus am See"),
        language="de",
        out_path=tmp_path / "bleu.json",
    )
    table = score_files(config)
    assert "100.0" in table
    signature = json.loads((tmp_path / "bleu.json").read_text())["metrics"]["bleu_signature"]
    assert "tok:13a" in signature
    assert f"BLEU: {signature}" in table.splitlines()


def test_captions_of_few_images_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = write(tmp_path / "t", "a red cat", "two blue dogs")
    config = ScoreConfig(task="i2t", reference_paths=(texts,), hypothesis_path=texts, language="en")
    assert "CIDEr" in score_files(config)
    assert "CIDEr over 2 images" in caplog.text


@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR is a Java program")
def test_captions_in_another_language_have_no_meteor_which_knows_english_only(tmp_path: Path) -> None:
    pytest.importorskip("pycocoevalcap")
    texts = write(tmp_path / "t", "ein rotes Haus", "zwei Hunde")
    config = ScoreConfig(task="i2t", reference_paths=(texts,), hypothesis_path=texts, language="en")
    assert "METEOR" in score_files(config)
    assert "METEOR" not in score_files(replace(config, language="de"))


def test_files_of_unequal_length_are_refused(tmp_path: Path) -> None:
    config = ScoreConfig(
        task="asr",
        reference_paths=(write(tmp_path / "r", "one", "two"),),
        hypothesis_path=write(tmp_path / "h", "one"),
        language="en",
    )
    with pytest.raises(ConfigError, match="2 lines"):
        score_files(config)


def keyed(tmp_path: Path, references: list[str], hypotheses: list[str], task: str = "asr") -> ScoreConfig:
    return ScoreConfig(
        task=task,
        reference_paths=(write(tmp_path / "r", *references),),
        hypothesis_path=write(tmp_path / "h", *hypotheses),
        language="en",
        out_path=tmp_path / "scores.json",
    )


def test_lines_with_keys_are_joined_by_them(tmp_path: Path) -> None:
    config = keyed(tmp_path, ["a\tthe cat", "b\ta dog"], ["b\ta dog", "a\tthe cat"])
    assert "0.0 %" in score_files(config)
    lines = [json.loads(line) for line in (tmp_path / "scores.json.samples.jsonl").read_text().splitlines()]
    assert lines[1] == {"key": "b", "references": ["a dog"], "hypothesis": "a dog"}


def test_a_key_may_have_several_references_in_one_file_and_in_others(tmp_path: Path) -> None:
    config = keyed(
        tmp_path,
        ["1\tx y z w", "2\tein Haus am See", "1\ta b c d"],
        ["1\ta b c d", "2\tein Haus am Teich"],
        task="s2tt",
    )
    more = write(tmp_path / "more", "2\tein Haus am Teich")
    assert "100.0" in score_files(replace(config, reference_paths=(*config.reference_paths, more)))


@pytest.mark.parametrize(
    ("lines", "more", "message"),
    [
        (["1\tx", "2\ty"], "2\tz", "key 2 has 2 references, and asr has one reference a sample: leave"),
        (["x", "y"], "\nz", "line 2 has 2 references, and asr has one reference a sample: leave"),
    ],
)
def test_a_sample_with_several_references_is_named_where_asr_has_one(
    lines: list[str], more: str, message: str, tmp_path: Path
) -> None:
    config = keyed(tmp_path, lines, lines)
    paths = (*config.reference_paths, write(tmp_path / "more", more))
    with pytest.raises(ConfigError, match=f"^{message}"):
        score_files(replace(config, reference_paths=paths))


def test_an_unknown_task_is_answered_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^task 't2s': give one of asr, s2tt, i2t$"):
        score_files(keyed(tmp_path, ["1\tx"], ["1\tx"], task="t2s"))


@pytest.mark.parametrize("lines", [["1\t", "1\ta red cat"], ["1\ta red cat", "1\t"]])
def test_an_empty_reference_beside_others_is_missing_wherever_it_stands(
    lines: list[str], tmp_path: Path
) -> None:
    assert "33.3 %" in score_files(keyed(tmp_path, lines, ["1\ta cat"]))


def test_a_reference_that_is_empty_alone_is_that_of_silence(tmp_path: Path) -> None:
    references, hypotheses = ["1\t", "1\t", "2\ta red cat"], ["1\tyeah", "2\ta red cat"]
    assert "33.3 %" in score_files(keyed(tmp_path, references, hypotheses))


@pytest.mark.parametrize(
    ("references", "hypotheses", "message"),
    [
        (["a\tx", "b\ty", "c\tz"], ["a\tx"], "h: lacks b, c"),
        (["a\tx"], ["a\tx", "d\ty"], "h: has keys that no reference has: d"),
        (["a\tx"], ["a\tx", "a\ty"], "h: has several lines of a"),
        (["a\tx", "no tab"], ["a\tx"], "r: line 2 is not key<TAB>text, as other lines are: 'no tab'"),
        (["a\tx"], ["x", "y"], "r has lines of key<TAB>text and .*h has none; give both keys"),
        (["x"], ["a\tx"], "h has lines of key<TAB>text and .*r has none; give both keys"),
        (["\tx"], ["a\tx"], "r: line 1 is not key<TAB>text"),
    ],
)
def test_keys_that_do_not_fit_are_named(
    references: list[str], hypotheses: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        score_files(keyed(tmp_path, references, hypotheses))


@pytest.mark.parametrize("language", ["zh", "zh-CN", "zh_Hant_TW", "ZH", "zho"])
def test_a_language_is_the_same_by_all_its_codes(language: str, tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    config = keyed(tmp_path, ["a\t我们今天去学校"], ["a\t我们今天去了学校"], task="s2tt")
    score_files(replace(config, language=language))
    written = json.loads((tmp_path / "scores.json").read_text())
    assert "tok:zh" in written["metrics"]["bleu_signature"]
    assert written["settings"]["language"] == "zh"


def test_english_is_normalised_by_whatever_code(tmp_path: Path) -> None:
    config = keyed(tmp_path, ["a\tthe colour"], ["a\tthe color"])
    for language in ("eng", "en-GB"):
        score_files(replace(config, language=language))
        assert json.loads((tmp_path / "scores.json").read_text())["metrics"]["wer"] == 0


def test_a_language_without_a_token_is_scored_with_a_word_and_a_name_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = keyed(tmp_path, ["a\thabari ya asubuhi"], ["a\thabari ya jioni"])
    assert "33.3 %" in score_files(replace(config, language="de"))
    assert not caplog.messages
    assert "33.3 %" in score_files(replace(config, language="sw-KE"))
    assert caplog.messages == ["language 'sw-KE' is not known: its words are taken to be parted by spaces"]
    with pytest.raises(ConfigError, match="language 'Klingon': give its code of two or three letters"):
        score_files(replace(config, language="Klingon"))


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    config = keyed(tmp_path, ["a\tthe cat", "b\ta dog"], [])
    config.hypothesis_path.write_text("a\tthe cat\nb\ta dog\n", encoding="utf-8-sig")
    assert "0.0 %" in score_files(config)


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    config = keyed(tmp_path, ["a\tthe cat"], [])
    config.hypothesis_path.write_bytes("a\tcafé\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"h: not UTF-8 text \(.*0xe9"):
        score_files(config)


def test_lines_end_where_they_do_on_any_system_and_not_at_a_character_within_a_sentence(
    tmp_path: Path,
) -> None:
    config = keyed(tmp_path, ["a\tthe\rcat", "b\ta\u2028dog"], [])
    config.hypothesis_path.write_bytes(b"a\tthe cat\r\nb\ta dog\r\n")
    assert "0.0 %" in score_files(config)


@pytest.mark.parametrize(
    ("hypotheses", "out"),
    [("h", "r"), ("h", "link"), ("h", "h"), ("scores.json.samples.jsonl", "scores.json")],
)
def test_files_that_are_scored_are_not_written_over(hypotheses: str, out: str, tmp_path: Path) -> None:
    config = keyed(tmp_path, ["a\tthe cat"], [])
    (tmp_path / "link").symlink_to("r")
    path = write(tmp_path / hypotheses, "a\tthe cat")
    config = replace(config, hypothesis_path=path, out_path=tmp_path / out)
    with pytest.raises(ConfigError, match=f"{out} would write over .*, which is scored"):
        score_files(config)
    assert config.reference_paths[0].read_text() == path.read_text() == "a\tthe cat\n"
