import json
import shutil
import sys
from dataclasses import MISSING, fields, replace
from pathlib import Path

import click
import pytest
import torch

from dmlm.cli import group, run
from dmlm.pipeline.codebooks.building import BuildCodebookConfig, build_codebook
from dmlm.pipeline.errors import ConfigError, FingerprintMismatchError, MissingDependencyError
from dmlm.pipeline.shards import iter_samples
from dmlm.pipeline.storage import sha256_file
from dmlm.pipeline.tokenization.planning import TokenizeConfig
from dmlm.pipeline.tokenization.running import tokenize
from dmlm.trainer.checkpoint import load_checkpoint, resolve_checkpoint
from dmlm.trainer.decoding import DecodingConfig
from dmlm.trainer.decoding.transcription import text_of_units
from dmlm.trainer.scoring import score_utterance, score_utterances, wer
from dmlm.trainer.scoring.evaluation import EvaluateConfig, EvaluationReport, evaluate
from dmlm.trainer.scoring.evaluation_report import default_out_path
from dmlm.trainer.settings import read_settings


@pytest.fixture
def config(spoken_run, tmp_path: Path) -> EvaluateConfig:
    return EvaluateConfig(
        checkpoint=spoken_run.run, shards=(spoken_run.shards,), out_path=tmp_path / "asr.json", device="cpu"
    )


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def tokenize_again(spoken_run, out_dir: Path, **settings: object) -> Path:
    """The spoken corpus, or what `settings` say of it, as a data set that no model was trained on."""
    usual = {
        "source": "librispeech",
        "root": spoken_run.root,
        "codebook_dir": spoken_run.codebook,
        "device": "cpu",
    }
    tokenize(TokenizeConfig(out_dir=out_dir, **usual | settings))
    return out_dir


def test_model_that_knows_its_training_data_by_heart_scores_zero_and_listens(config: EvaluateConfig) -> None:
    report = evaluate(replace(config, splits=("train-tiny",)))
    assert report.metrics.wer == report.metrics.wer_raw == report.metrics.cer == 0
    assert report.neighbour.wer_raw > 0.8
    assert report.neighbour.num_samples == 4


def test_splits_held_out_of_training_are_scored_by_default(config: EvaluateConfig) -> None:
    report = evaluate(config)
    assert [utterance.key for utterance in report.utterances] == ["1-11-0000", "1-11-0001", "1-11-0002"]
    assert list(report.groups) == ["librispeech/test-tiny"]
    assert report.groups["librispeech/test-tiny"] == report.metrics


def test_files_hold_what_the_report_says(config: EvaluateConfig) -> None:
    report = evaluate(config)
    result = json.loads(config.out_path.read_text())
    lines = read_lines(config.out_path.with_name("asr.json.samples.jsonl"))
    assert result["task"] == "asr"
    assert result["num_samples"] == len(lines) == 3
    assert result["metrics"]["wer"] == report.metrics.wer
    assert result["metrics"]["wer_neighbour"] == report.neighbour.wer
    assert result["settings"]["splits"] == ["test-tiny"]
    assert result["versions"]["torch"] == torch.__version__
    assert result["seconds"] > 0
    assert [line["reference"] for line in lines] == [
        "old ships sail home",
        "green ships",
        "red doors stay open",
    ]
    names = ("num_substitutions", "num_deletions", "num_insertions")
    num_errors = sum(line[name] for line in lines for name in names)
    assert num_errors / sum(line["num_words"] for line in lines) == pytest.approx(report.metrics.wer_raw)
    again = score_utterances(
        [score_utterance(line["reference"], line["hypothesis"], "lower", "en") for line in lines]
    )
    assert (again.wer, again.wer_raw, again.cer) == (
        report.metrics.wer,
        report.metrics.wer_raw,
        report.metrics.cer,
    )
    assert again.counts["num_substitutions"] == result["metrics"]["num_substitutions"]
    low, high = result["metrics"]["wer_interval"]
    assert low <= report.metrics.wer <= high
    speed = result["speed"]
    assert speed["num_tokens"] == sum(line["num_tokens"] for line in lines) > 0
    assert speed["tokens_per_second"] > 0
    assert 0 < speed["first_token_seconds"] <= speed["decode_seconds"]
    assert speed["real_time_factor"] > 0


def test_control_equals_decoding_the_neighbours_units(config: EvaluateConfig, spoken_run) -> None:
    report = evaluate(replace(config, splits=("train-tiny",)))
    checkpoint = load_checkpoint(resolve_checkpoint(spoken_run.run))
    samples = [sample for sample in iter_samples(spoken_run.shards) if sample.split == "train-tiny"]
    swapped = [sample.speech_tokens for sample in [*samples[1:], samples[0]]]
    hypotheses = text_of_units(
        checkpoint, swapped, ["en"] * len(samples), "asr", DecodingConfig(batch_size=2)
    )
    pairs = zip(samples, hypotheses, strict=True)
    metrics = score_utterances(
        [score_utterance(said.text, heard.text, "lower", "en") for said, heard in pairs]
    )
    assert (metrics.wer, metrics.cer) == (report.neighbour.wer, report.neighbour.cer)


def test_references_that_occur_in_training_are_named_and_scored_apart(
    config: EvaluateConfig, caplog: pytest.LogCaptureFixture
) -> None:
    report = evaluate(config)
    assert [utterance.is_in_training for utterance in report.utterances] == [True, False, False]
    assert "1 of 3 references" in caplog.text
    assert report.subsets["text not in training"].num_samples == 2
    written = json.loads(config.out_path.read_text())["subsets"]["text not in training"]
    assert written["num_samples"] == 2
    assert "text not in training" in report.table()


def test_samples_without_words_that_training_lacks_are_scored_apart(
    config: EvaluateConfig, spoken_run
) -> None:
    report = evaluate(config)
    trained = [s.text for s in iter_samples(spoken_run.shards) if s.split == "train-tiny"]
    words = set(" ".join(trained).lower().split())
    expected = [words.issuperset(utterance.references[0].split()) for utterance in report.utterances]
    assert [utterance.has_known_words for utterance in report.utterances] == expected
    assert 0 < sum(expected) < 3
    assert report.subsets["all words in training"].num_samples == sum(expected)


def test_training_texts_are_also_looked_for_in_other_data_sets(
    config: EvaluateConfig, spoken_run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    test_only = tokenize_again(spoken_run, tmp_path / "test-only", splits=("test-tiny",))
    alone = evaluate(replace(config, shards=(test_only,)))
    assert [utterance.is_in_training for utterance in alone.utterances] == [None] * 3
    assert not any(utterance.has_known_words for utterance in alone.utterances)
    assert alone.subsets == {}
    assert read_lines(config.out_path.with_name("asr.json.samples.jsonl"))[0]["is_in_training"] is None
    assert "data set librispeech" in caplog.text
    assert "--train-shards" in caplog.text
    caplog.clear()
    both = evaluate(replace(config, shards=(test_only,), train_shards=(spoken_run.shards,)))
    assert [utterance.is_in_training for utterance in both.utterances] == [True, False, False]
    assert "--train-shards" not in caplog.text


def test_limit_takes_the_first_utterances(config: EvaluateConfig) -> None:
    report = evaluate(replace(config, limit=2))
    assert [utterance.key for utterance in report.utterances] == ["1-11-0000", "1-11-0001"]


def test_batch_size_changes_nothing(config: EvaluateConfig) -> None:
    def hypotheses(report: EvaluationReport) -> list[str]:
        return [utterance.hypothesis for utterance in report.utterances]

    one_by_one = replace(config, decoding=DecodingConfig(batch_size=1))
    assert hypotheses(evaluate(one_by_one)) == hypotheses(evaluate(config))


def test_outputs_that_were_cut_are_marked(config: EvaluateConfig) -> None:
    report = evaluate(replace(config, decoding=DecodingConfig(max_new_tokens=1)))
    lines = read_lines(config.out_path.with_name("asr.json.samples.jsonl"))
    assert [(line["num_tokens"], line["is_finished"]) for line in lines] == [(1, False)] * 3
    assert report.speed.num_unfinished == 3
    evaluate(replace(config, splits=("train-tiny",)))
    lines = read_lines(config.out_path.with_name("asr.json.samples.jsonl"))
    assert all(line["is_finished"] for line in lines)


def test_result_says_what_made_it_and_names_no_folder_of_this_machine(
    config: EvaluateConfig, spoken_run
) -> None:
    report = evaluate(config)
    written = config.out_path.read_text()
    settings = json.loads(written)["settings"]
    assert (settings["device"], settings["shards"]) == ("cpu", ["shards"])
    checkpoint = resolve_checkpoint(spoken_run.run)
    assert settings["checkpoint"] == checkpoint.name
    (trained,) = read_settings(checkpoint)[1].datasets
    assert (settings["datasets"], settings["train_datasets"]) == ([trained.sha256], [])
    assert str(spoken_run.root) not in written
    assert report.metrics.signatures
    last_lines = report.table().splitlines()[-len(report.metrics.signatures) :]
    assert [line.split(": ", 1)[1] for line in last_lines] == [*report.metrics.signatures.values()]


def test_corpora_are_not_fetched_for_a_task_that_hears_no_recordings(
    config: EvaluateConfig, spoken_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DMLM_DATA", "s3://nowhere/corpora")
    data = ["--checkpoint", str(spoken_run.run), "--shards", str(spoken_run.shards), "--limit", "1"]
    assert run(["evaluate", *data, "--device", "cpu", "--out", str(config.out_path)]) == 0
    assert config.out_path.exists()


def test_scores_lie_where_training_removes_nothing(spoken_run, tmp_path: Path, capsys) -> None:
    whole = resolve_checkpoint(spoken_run.run)
    (tmp_path / "best").symlink_to(whole)
    assert (
        default_out_path(tmp_path / "best", "i2t")
        == spoken_run.run / "evaluations" / f"{whole.name}.i2t.json"
    )
    alone = tmp_path / "model"
    shutil.copytree(whole, alone)
    data = ["--checkpoint", str(alone), "--shards", str(spoken_run.shards), "--limit", "1"]
    assert run(["evaluate", *data, "--device", "cpu"]) == 0
    assert f"--out not given: using {tmp_path}/model.asr.json" in capsys.readouterr().err
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"best", "model", "model.asr.json", "model.asr.json.samples.jsonl"}


def test_scores_of_other_settings_are_not_written_over_where_no_out_is_given(
    config: EvaluateConfig, spoken_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "model"
    shutil.copytree(resolve_checkpoint(spoken_run.run), checkpoint)
    greedy = replace(config, checkpoint=checkpoint, out_path=None, limit=1)
    evaluate(greedy)
    written = (tmp_path / "model.asr.json").read_bytes()
    beams = replace(greedy, decoding=DecodingConfig(num_beams=2))
    other_data = tokenize_again(spoken_run, tmp_path / "other")
    with monkeypatch.context() as nothing_is_decoded:
        nothing_is_decoded.setattr("dmlm.trainer.scoring.evaluation.generate", None)
        for changed, message in {
            beams: r"model\.asr\.json: holds scores with num_beams 1, and it is 2 now; give --out FILE",
            replace(greedy, splits=("train-tiny",)): r"with splits \['test-tiny'\]",
            replace(greedy, shards=(other_data,)): r"with shards \['shards'\], and it is \['other'\]",
            replace(greedy, limit=2): "with limit 1",
        }.items():
            with pytest.raises(ConfigError, match=message):
                evaluate(changed)
        assert (tmp_path / "model.asr.json").read_bytes() == written
    searched = replace(greedy, train_shards=(spoken_run.shards,), decoding=DecodingConfig(batch_size=1))
    evaluate(searched)
    evaluate(replace(beams, out_path=tmp_path / "model.asr.json"))
    assert json.loads((tmp_path / "model.asr.json").read_text())["settings"]["decoding"]["num_beams"] == 2
    (tmp_path / "model.asr.json").write_text("notes")
    with pytest.raises(ConfigError, match="there already, and no scores"):
        evaluate(greedy)


def test_a_checkpoint_is_hashed_once(config: EvaluateConfig, spoken_run, monkeypatch, tmp_path: Path) -> None:
    checkpoint = tmp_path / "model"
    shutil.copytree(resolve_checkpoint(spoken_run.run), checkpoint)
    hashed: list[str] = []

    def sha256_and_count(path: Path) -> str:
        hashed.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr("dmlm.trainer.checkpoint.sha256_file", sha256_and_count)
    data = ["--checkpoint", str(checkpoint), "--shards", str(spoken_run.shards), "--limit", "1"]
    assert run(["evaluate", *data, "--device", "cpu"]) == 0
    assert hashed.count("model.safetensors") == 1


def test_a_folder_as_out_is_refused_before_anything_is_decoded(
    config: EvaluateConfig, tmp_path: Path, capsys
) -> None:
    data = ["--checkpoint", str(config.checkpoint), "--shards", str(config.shards[0])]
    out = tmp_path / "out"
    out.mkdir()
    assert run(["evaluate", *data, "--device", "cpu", "--out", str(out)]) == 2
    assert f"{out}: Is a directory" in capsys.readouterr().err
    assert list(tmp_path.rglob("*")) == [out]


def test_beams_are_written_into_the_settings(config: EvaluateConfig) -> None:
    report = evaluate(replace(config, splits=("train-tiny",), decoding=DecodingConfig(num_beams=3)))
    assert report.metrics.wer == 0
    assert json.loads(config.out_path.read_text())["settings"]["decoding"]["num_beams"] == 3


def test_unknown_split_names_those_that_are_there(config: EvaluateConfig) -> None:
    with pytest.raises(ConfigError, match="no split dev: there are test-tiny, train-tiny"):
        evaluate(replace(config, splits=("dev",)))
    assert not config.out_path.exists()


def test_unknown_task_is_refused(config: EvaluateConfig) -> None:
    with pytest.raises(ConfigError, match="asr, s2tt, i2t, t2s"):
        evaluate(replace(config, task="speech"))
    with pytest.raises(ConfigError, match="--vocoder"):
        evaluate(replace(config, task="t2s"))
    with pytest.raises(ConfigError, match="without image"):
        evaluate(replace(config, task="i2t"))


def test_shards_of_another_codebook_are_refused_naming_both_sides(
    config: EvaluateConfig, spoken_run, tmp_path: Path
) -> None:
    build_codebook(
        BuildCodebookConfig(
            root=spoken_run.root,
            out_dir=tmp_path / "codebook",
            num_clusters=24,
            seed=1,
            text_tokenizer="bpe:256",
            device="cpu",
        )
    )
    other = tokenize_again(spoken_run, tmp_path / "other", codebook_dir=tmp_path / "codebook")
    with pytest.raises(FingerprintMismatchError, match="codebook_sha256") as caught:
        evaluate(replace(config, shards=(other,)))
    assert str(spoken_run.run) in str(caught.value)
    assert str(other) in str(caught.value)


def test_all_splits_are_scored_with_a_notice_when_none_was_held_out(
    config: EvaluateConfig, spoken_run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train_only = tokenize_again(spoken_run, tmp_path / "train-only", splits=("train-tiny",))
    report = evaluate(replace(config, shards=(train_only,)))
    assert len(report.utterances) == 4
    assert report.subsets == {}
    assert "no split was held out of training" in caplog.text


def test_training_splits_of_a_data_set_that_was_not_trained_on_count_as_unknown(
    config: EvaluateConfig, spoken_run, tmp_path: Path
) -> None:
    foreign = tokenize_again(spoken_run, tmp_path / "foreign")
    report = evaluate(replace(config, shards=(foreign,)))
    assert [utterance.is_in_training for utterance in report.utterances] == [None] * 3
    assert [utterance.has_known_words for utterance in report.utterances] == [None] * 3
    both = evaluate(replace(config, shards=(foreign, spoken_run.shards)))
    assert [utterance.is_in_training for utterance in both.utterances] == 2 * [True, False, False]


def test_a_data_set_given_twice_is_refused_and_may_be_searched_as_well(
    config: EvaluateConfig, spoken_run, tmp_path: Path
) -> None:
    shutil.copytree(spoken_run.shards, tmp_path / "again")
    for second in (spoken_run.shards, tmp_path / "again"):
        with pytest.raises(ConfigError, match=f"{second}: the same data set as {spoken_run.shards}"):
            evaluate(replace(config, shards=(spoken_run.shards, second)))
    searched = evaluate(replace(config, train_shards=(spoken_run.shards,)))
    assert [utterance.is_in_training for utterance in searched.utterances] == [True, False, False]


def test_recordings_that_are_not_at_the_root_are_missed_before_anything_is_decoded(
    config: EvaluateConfig, spoken_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(spoken_run.root / "LibriSpeech", tmp_path / "LibriSpeech")
    (tmp_path / "LibriSpeech" / "test-tiny" / "1" / "11" / "1-11-0001.flac").unlink()
    monkeypatch.setattr("dmlm.trainer.scoring.evaluation.generate", None)
    spoken = replace(config, task="t2s", vocoder=tmp_path / "none", root=tmp_path)
    with pytest.raises(ConfigError, match=r"such as 1-11-0001; .*unset DMLM_DATA"):
        evaluate(spoken)
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match=r"librispeech: expected .*; .*unset DMLM_DATA"):
        evaluate(replace(spoken, root=tmp_path / "none"))


def test_options_that_are_not_given_are_as_the_configs_have_them() -> None:
    command = group.get_command(click.Context(group), "evaluate")
    assert command is not None
    given = command.make_context("evaluate", [], resilient_parsing=True).params
    defaults = {f.name: f.default for c in (EvaluateConfig, DecodingConfig) for f in fields(c)}
    names = [name for name in given if defaults.get(name, MISSING) not in (MISSING, None, ("*",))]
    assert {"task", "listener", "device", "num_beams", "temperature", "top_p", "seed"} < {*names}
    assert {name: given[name] for name in names} == {name: defaults[name] for name in names}


def test_damaged_checkpoint_is_refused(config: EvaluateConfig, spoken_run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(resolve_checkpoint(spoken_run.run), run)
    with (run / "model.safetensors").open("r+b") as file:
        file.seek(2000)
        file.write(b"damage")
    with pytest.raises(Exception, match=r"model\.safetensors is damaged") as caught:
        evaluate(replace(config, checkpoint=run))
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("package", ["jiwer", "whisper.normalizers"])
def test_package_of_a_score_is_missed_before_anything_is_decoded(
    config: EvaluateConfig, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setattr("dmlm.trainer.scoring.evaluation.generate", None)
    monkeypatch.setitem(sys.modules, package, None)
    wer._english_normaliser.cache_clear()
    with pytest.raises(MissingDependencyError, match="pip install"):
        evaluate(config)
