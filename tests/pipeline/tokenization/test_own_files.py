"""Texts, units and listed files end in data sets that a reader and the verifier accept."""

import json
import shutil
from pathlib import Path

import pytest

from dmlm.cli import run as run_command
from dmlm.pipeline.errors import BadSampleBudgetError, ConfigError, FingerprintMismatchError
from dmlm.pipeline.samples import Modality
from dmlm.pipeline.shards import iter_samples, load_dataset_card, verify_dataset
from dmlm.pipeline.sources import SourceOptions
from dmlm.pipeline.tokenization.planning import TokenizeConfig
from dmlm.pipeline.tokenization.running import tokenize
from dmlm.pipeline.tokenizers.registry import load_tokenizers


def run(tiny_corpora: Path, source: str, root: Path, **settings: object) -> Path:
    out_dir = root.parent / f"out-{source}"
    tokenize(
        TokenizeConfig(
            source=source, root=root, codebook_dir=tiny_corpora / "codebook", out_dir=out_dir, **settings
        )
    )
    verify_dataset(out_dir)
    return out_dir


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


def test_text_lines_become_samples_without_speech(tiny_corpora: Path, folder: Path) -> None:
    (folder / "train.txt").write_text("One line.\nAnother.\n")
    out_dir = run(tiny_corpora, "text", folder)
    first, second = iter_samples(out_dir)
    assert (first.text, second.text) == ("One line.", "Another.")
    assert bytes(first.text_tokens.astype("u1")) != b""
    assert first.speech_tokens is None
    card = load_dataset_card(out_dir)
    assert set(card.fingerprints) == {Modality.TEXT}
    assert not (out_dir / "codebook" / "speech").exists()


def test_names_that_are_no_text_are_quarantined(tiny_corpora: Path, folder: Path) -> None:
    lines = ({"audio": "caf\udce9.wav"}, {"text": "Hello.", "split": "\ud800"}, {"text": "Hello."})
    (folder / "train.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    out_dir = run(tiny_corpora, "jsonl", folder)
    assert [sample.text for sample in iter_samples(out_dir)] == ["Hello."]
    ledger = [json.loads(line)["reason"] for line in (out_dir / "ledger.jsonl").read_text().splitlines()]
    assert "no file caf\\udce9.wav" in ledger[0]
    assert "split must be text" in ledger[1]


def test_units_go_into_shards_as_they_are_with_a_fingerprint_of_their_own(
    tiny_corpora: Path, folder: Path
) -> None:
    (folder / "train.units").write_text("a1 5 5 7\na2 0 499 3\n")
    (folder / "train.txt").write_text("a1 Hello.\n")
    out_dir = run(tiny_corpora, "units", folder, options=SourceOptions(units_name="theirs", language="en"))
    samples = {sample.key: sample for sample in iter_samples(out_dir)}
    assert samples["a1"].speech_tokens.tolist() == [5, 5, 7]
    assert samples["a2"].speech_tokens.tolist() == [0, 499, 3]
    assert (samples["a1"].language, samples["a2"].text_tokens) == ("en", None)
    card = load_dataset_card(out_dir)
    mark = card.fingerprints[Modality.SPEECH]
    assert (mark["name"], mark["num_tokens"], card.vocabulary.num_speech) == ("theirs", 500, 500)
    assert json.loads((out_dir / "codebook" / "speech" / "units.json").read_text())["name"] == "theirs"
    assert card.settings["units_name"] == "theirs"
    with pytest.raises(ConfigError, match="these units were made elsewhere"):
        _ = load_tokenizers(out_dir / "codebook").speech


def test_units_of_one_name_fit_together_whatever_files_they_come_from(
    tiny_corpora: Path, folder: Path
) -> None:
    options = SourceOptions(units_name="theirs", num_units=500)
    marks = []
    for number in range(2):
        root = folder / str(number) / "units"
        root.mkdir(parents=True)
        (root / "train.units").write_text(f"a{number} 1 2 {number}\n")
        out_dir = run(tiny_corpora, "units", root, options=options)
        marks.append(load_dataset_card(out_dir).fingerprints[Modality.SPEECH])
    assert marks[0] == marks[1]


def test_changed_units_are_not_taken_for_those_that_are_finished(tiny_corpora: Path, folder: Path) -> None:
    options = SourceOptions(units_name="theirs", num_units=500)
    (folder / "train.units").write_text("a1 5 5 7\n")
    run(tiny_corpora, "units", folder, options=options)
    (folder / "train.units").write_text("a1 5 5 8\n")
    with pytest.raises(FingerprintMismatchError, match="the corpus has changed since"):
        run(tiny_corpora, "units", folder, options=options)


def test_listed_audio_and_images_have_the_tokens_of_the_corpora_they_come_from(
    tiny_corpora: Path, tiny_dataset: Path, folder: Path
) -> None:
    shutil.copytree(tiny_corpora / "LibriSpeech", folder / "audio")
    shutil.copytree(tiny_corpora / "coco" / "train2017", folder / "images")
    keys = [sample.key for sample in iter_samples(tiny_dataset)][:2]
    lines = [{"key": key, "audio": f"audio/train-tiny/7/9/{key}.flac", "text": "Spoken."} for key in keys]
    lines += [{"image": "images/000000000001.jpg", "text": f"Caption {i}."} for i in range(2)]
    (folder / "all.jsonl").write_text("\n".join(map(json.dumps, lines)))
    samples = list(iter_samples(run(tiny_corpora, "jsonl", folder)))
    assert [sample.key for sample in samples[:2]] == keys
    expected = {sample.key: sample.speech_tokens.tolist() for sample in iter_samples(tiny_dataset)}
    agreement = [
        sum(a == b for a, b in zip(sample.speech_tokens, expected[sample.key], strict=True))
        / len(expected[sample.key])
        for sample in samples[:2]
    ]
    assert min(agreement) > 0.9
    assert samples[2].image_tokens.tolist() == samples[3].image_tokens.tolist()
    assert samples[2].image_id == "images/000000000001.jpg"


def test_ledger_never_holds_a_local_path(tiny_corpora: Path, folder: Path) -> None:
    (folder / "bad.wav").write_bytes(b"RIFF, but no more")
    lines = [{"audio": "bad.wav"}, {"audio": str(folder / "bad.wav")}, {"text": "fine"}]
    (folder / "all.jsonl").write_text("\n".join(map(json.dumps, lines)))
    out_dir = run(tiny_corpora, "jsonl", folder)
    entries = [json.loads(line) for line in (out_dir / "ledger.jsonl").read_text().splitlines()]
    assert [entry["error"] for entry in entries] == ["AudioError", "AudioError"]
    for path in out_dir.rglob("*"):
        if path.is_file() and path.name != "run.json":
            assert str(folder).encode() not in path.read_bytes(), path.name


def test_list_of_missing_files_ends_the_run(tiny_corpora: Path, folder: Path) -> None:
    (folder / "all.jsonl").write_text(
        "\n".join(json.dumps({"audio": f"{i}.wav"}) for i in range(7)) + '\n{"text": "x"}'
    )
    with pytest.raises(BadSampleBudgetError, match=r"all\.jsonl:6: no file 5\.wav"):
        run(tiny_corpora, "jsonl", folder)


def test_options_of_sources_reach_them_from_the_command_line(tiny_corpora: Path, folder: Path) -> None:
    (folder / "train.units").write_text("a1 5 5 7\n")
    (folder / "train.txt").write_text("a1 Ciao.\n")
    arguments = ["--root", str(folder), "--codebook", str(tiny_corpora / "codebook")]
    arguments += ["--units-name", "theirs", "--num-units", "64", "--language", "it"]
    out_dir = folder.parent / "out"
    assert run_command(["tokenize", "--source", "units", *arguments, "--out", str(out_dir)]) == 0
    (sample,) = iter_samples(out_dir)
    assert (sample.language, load_dataset_card(out_dir).vocabulary.num_speech) == ("it", 64)


def test_lines_are_progress_too(tiny_corpora: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "train.txt").write_text("One line.\nAnother.\n")
    run(tiny_corpora, "text", folder)
    assert "tokenize text: 2/2 inputs" in capsys.readouterr().err
