import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dmlm.cli import run
from dmlm.pipeline.audio import load_waveform
from dmlm.pipeline.errors import AudioError, ConfigError
from dmlm.pipeline.samples import Waveform
from dmlm.pipeline.tokenization.planning import TokenizeConfig
from dmlm.pipeline.tokenization.running import tokenize
from dmlm.trainer.config import TrainConfig
from dmlm.trainer.decoding import DecodingConfig, transcription
from dmlm.trainer.decoding.generation import GeneratedText
from dmlm.trainer.decoding.transcription import cut_recording, transcribe
from dmlm.trainer.loop import train

RATE_HZ = 16_000


def test_files_of_every_format_give_the_words_spoken(spoken_run, tmp_path: Path) -> None:
    flac = spoken_run.audio_path("train-tiny", 1)
    samples, rate_hz = soundfile.read(flac)
    wav, mp3 = tmp_path / "a.wav", tmp_path / "a.mp3"
    soundfile.write(wav, samples, rate_hz)
    soundfile.write(mp3, samples, rate_hz)
    transcripts = list(transcribe(spoken_run.run, [flac, wav, mp3], device="cpu"))
    assert [transcript.path for transcript in transcripts] == [flac, wav, mp3]
    assert [transcript.text for transcript in transcripts[:2]] == ["seven green birds"] * 2
    assert transcripts[2].error is None
    assert transcripts[2].text
    assert transcripts[0].duration_seconds == pytest.approx(len(samples) / rate_hz)


def test_how_many_files_go_together_does_not_change_what_is_drawn(
    spoken_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file's random numbers depend on its place among all files: none draws those of an earlier one."""
    files = [spoken_run.audio_path("train-tiny", 1)] * 3
    sampling = DecodingConfig(temperature=3.0, seed=1)
    drawn = []
    for files_at_once in (16, 1, 2):
        monkeypatch.setattr("dmlm.trainer.decoding.transcription.FILES_AT_ONCE", files_at_once)
        drawn.append([t.text for t in transcribe(spoken_run.run, files, "cpu", decoding=sampling)])
    assert drawn[0] == drawn[1] == drawn[2]
    assert len(set(drawn[0])) == 3


def test_bad_file_is_reported_and_the_next_one_transcribed(spoken_run, tmp_path: Path) -> None:
    broken, missing = tmp_path / "broken.wav", tmp_path / "missing.flac"
    broken.write_bytes(b"this is no audio")
    good = spoken_run.audio_path("train-tiny", 2)
    first, second, third = transcribe(spoken_run.run, [broken, missing, good], device="cpu")
    assert isinstance(first.error, AudioError)
    assert isinstance(second.error, AudioError)
    assert str(missing) in str(second.error)
    assert third.error is None
    assert third.text == "old ships sail home"


def test_recording_longer_than_the_model_gives_the_words_of_all_its_windows(
    spoken_run, tmp_path: Path
) -> None:
    sentences = [load_waveform(spoken_run.audio_path("train-tiny", number)) for number in (1, 2, 3)]
    path = tmp_path / "long.wav"
    soundfile.write(path, np.concatenate(sentences * 4), RATE_HZ, subtype="FLOAT")
    # 512 positions: three quarters of them for 50 units a second
    windows = list(cut_recording(path, 0.75 * 512 / 50, RATE_HZ))
    assert len(windows) >= 3
    paths = [tmp_path / f"{number}.wav" for number in range(len(windows))]
    for window_path, window in zip(paths, windows, strict=True):
        soundfile.write(window_path, window, RATE_HZ, subtype="FLOAT")
    whole, *parts = transcribe(spoken_run.run, [path, *paths], device="cpu")
    assert whole.text == " ".join(part.text for part in parts)
    assert all(part.text for part in parts)


def test_windows_are_no_longer_than_sequences_of_the_training(
    spoken_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model that training began with has 512 positions."""
    shorter = replace(
        spoken_run.recipe, num_steps=1, sequence=replace(spoken_run.recipe.sequence, max_length=256)
    )
    shards, run_dir = (spoken_run.shards,), tmp_path / "run"
    train(TrainConfig(shards=shards, recipe=shorter, init=str(spoken_run.run), out_dir=run_dir, device="cpu"))
    lengths: list[float] = []

    def cut(path: Path, window_seconds: float, sampling_rate_hz: int) -> Iterator[Waveform]:
        lengths.append(window_seconds)
        return cut_recording(path, window_seconds, sampling_rate_hz)

    monkeypatch.setattr("dmlm.trainer.decoding.transcription.cut_recording", cut)
    list(transcribe(run_dir, [spoken_run.audio_path("train-tiny", 1)], device="cpu"))
    assert lengths == [0.75 * 256 / 50]


def test_command_prints_what_was_said_and_names_bad_files(spoken_run, tmp_path: Path, capsys) -> None:
    good, missing = spoken_run.audio_path("train-tiny", 1), tmp_path / "missing.wav"
    arguments = [
        "transcribe",
        "--checkpoint",
        str(spoken_run.run),
        "--device",
        "cpu",
        str(missing),
        str(good),
    ]
    assert run(arguments) == 5
    printed = capsys.readouterr()
    assert printed.out == f"{good}\tseven green birds\n"
    assert str(missing) in printed.err


def test_a_file_whose_name_is_not_utf8_is_transcribed_beside_others(
    spoken_run, tmp_path: Path, capsys
) -> None:
    good = spoken_run.audio_path("train-tiny", 1)
    odd = tmp_path / os.fsdecode(b"caf\xe9.flac")
    shutil.copy(good, odd)
    arguments = ["--checkpoint", str(spoken_run.run), "--device", "cpu", str(odd), str(good)]
    assert run(["transcribe", *arguments]) == 0
    expected = [f"{tmp_path}/caf\ufffd.flac\tseven green birds", f"{good}\tseven green birds"]
    assert capsys.readouterr().out.splitlines() == expected


def test_a_text_is_one_line_whatever_white_space_the_model_draws(spoken_run) -> None:
    files = [spoken_run.audio_path("train-tiny", 1)] * 4
    noise = DecodingConfig(temperature=100.0, max_new_tokens=200)
    texts = [transcript.text for transcript in transcribe(spoken_run.run, files, "cpu", decoding=noise)]
    assert texts == [" ".join(text.split()) for text in texts]


def test_text_that_was_cut_is_noted(spoken_run, capsys) -> None:
    good = str(spoken_run.audio_path("train-tiny", 1))
    arguments = ["transcribe", "--checkpoint", str(spoken_run.run), "--device", "cpu", good]
    assert run(arguments) == 0
    assert "was cut" not in capsys.readouterr().err
    assert run([*arguments, "--max-new-tokens", "1"]) == 0
    printed = capsys.readouterr()
    assert f"{good}: the text was cut" in printed.err
    assert "birds" not in printed.out


def test_a_recording_is_cut_where_the_text_of_one_window_is(
    spoken_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "long.wav"
    sentence = load_waveform(spoken_run.audio_path("train-tiny", 2))
    soundfile.write(path, np.tile(sentence, 8), RATE_HZ)

    def cut_last(checkpoint: object, units: list[object], *_: object) -> list[GeneratedText]:
        last = len(units) - 1
        return [GeneratedText(text=str(n), is_finished=n < last) for n in range(len(units))]

    monkeypatch.setattr(transcription, "text_of_units", cut_last)
    (transcript,) = transcribe(spoken_run.run, [path], device="cpu")
    assert transcript.text.startswith("0 1")
    assert not transcript.is_finished


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["transcribe", "--language", "de"], "was not trained on asr in the language de; choose one of en"),
        (["transcribe", "--language", "none"], "in the language none; choose one of en"),
        (["translate"], "was not trained on s2tt, but on asr (en)"),
    ],
)
def test_what_was_not_trained_is_refused(command: list[str], message: str, spoken_run, capsys) -> None:
    good = str(spoken_run.audio_path("train-tiny", 1))
    assert run([*command, "--checkpoint", str(spoken_run.run), "--device", "cpu", good]) == 2
    assert message in capsys.readouterr().err


def test_a_model_of_texts_without_a_language_is_prompted_as_it_was_trained(
    spoken_run, tmp_path: Path
) -> None:
    files = [spoken_run.audio_path("train-tiny", number) for number in range(4)]
    lines = [{"audio": str(file), "text": f"number {number}"} for number, file in enumerate(files)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    shards = tmp_path / "shards"
    tokenize(
        TokenizeConfig(
            source="jsonl", root=tmp_path, codebook_dir=spoken_run.codebook, out_dir=shards, device="cpu"
        )
    )
    train(TrainConfig(shards=(shards,), recipe=spoken_run.recipe, out_dir=tmp_path / "run", device="cpu"))
    expected = [f"number {number}" for number in range(4)]
    for language in (None, "none"):
        transcripts = transcribe(tmp_path / "run", files, "cpu", language)
        assert [transcript.text for transcript in transcripts] == expected
    with pytest.raises(ConfigError, match="in the language en; choose one of none"):
        list(transcribe(tmp_path / "run", files, "cpu", "en"))


def test_missing_checkpoint_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        list(transcribe(tmp_path / "none", [], device="cpu"))


def test_unknown_device_is_a_config_error(spoken_run) -> None:
    with pytest.raises(ConfigError, match="device gpu"):
        list(transcribe(spoken_run.run, [], device="gpu"))


@pytest.mark.parametrize("num_seconds", [0.5, 2.0, 2.0001, 2.05, 7.3])
def test_windows_hold_every_sample_once(num_seconds: float, tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, int(num_seconds * RATE_HZ))
    path = tmp_path / "noise.wav"
    soundfile.write(path, samples, RATE_HZ, subtype="FLOAT")
    windows = list(cut_recording(path, 2.0, RATE_HZ))
    assert max(map(len, windows)) <= 2 * RATE_HZ
    np.testing.assert_array_equal(np.concatenate(windows), samples.astype(np.float32))


def test_cut_is_made_in_a_pause(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 3 * RATE_HZ)
    samples[int(1.7 * RATE_HZ) : int(1.9 * RATE_HZ)] = 0
    path = tmp_path / "pause.wav"
    soundfile.write(path, samples, RATE_HZ)
    first, _ = cut_recording(path, 2.0, RATE_HZ)
    assert 1.75 < len(first) / RATE_HZ < 1.85
