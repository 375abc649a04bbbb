"""Whisper hears the recordings; `speak` writes what a trained model says, and `evaluate` scores it."""

import json
import shutil
import wave
import weakref
from collections.abc import Iterator
from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pytest

from dmlm.cli import run
from dmlm.pipeline.audio import load_waveform
from dmlm.pipeline.errors import ConfigError, FingerprintMismatchError
from dmlm.pipeline.samples import Modality
from dmlm.pipeline.shards import iter_samples, load_dataset_card
from dmlm.pipeline.tokenization.planning import TokenizeConfig
from dmlm.pipeline.tokenization.running import tokenize
from dmlm.trainer.checkpoint import load_checkpoint, resolve_checkpoint
from dmlm.trainer.config import MixEntry, TrainConfig
from dmlm.trainer.loop import train
from dmlm.trainer.scoring.evaluation import EvaluateConfig, evaluate
from dmlm.trainer.scoring.references import open_matching_shards, read_references
from dmlm.trainer.scoring.speech_evaluation import open_speech_tools
from dmlm.trainer.settings import read_settings
from dmlm.trainer.vocoder import speaking, waveforms
from dmlm.trainer.vocoder.checkpoint import load_vocoder, save_vocoder
from dmlm.trainer.vocoder.config import TrainVocoderConfig, VocoderRecipe
from dmlm.trainer.vocoder.listening import (
    BATCH_SIZE,
    WINDOW_SAMPLES,
    Listener,
    hear_recordings,
    resample,
    speak_units,
)
from dmlm.trainer.vocoder.model import VoiceShape
from dmlm.trainer.vocoder.recordings import find_utterances
from dmlm.trainer.vocoder.speaking import spoken_text_rule
from dmlm.trainer.vocoder.synthesis import open_vocoder
from dmlm.trainer.vocoder.training import train_vocoder


@pytest.fixture(scope="module")
def vocoder_dir(spoken_run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the units of the small spoken corpus; far from trained."""
    directory: Path = tmp_path_factory.mktemp("vocoder") / "voice"
    recipe = VocoderRecipe(shape=VoiceShape(width=16, dilations=(1,)), num_steps=2, batch_size=2)
    train_vocoder(
        TrainVocoderConfig(
            shards=(spoken_run.shards,),
            root=spoken_run.root,
            out_dir=directory,
            recipe=recipe,
            device="cpu",
        )
    )
    return directory


@pytest.fixture(scope="module")
def listener() -> Listener:
    return Listener("whisper:tiny.en", device="cpu")


def test_whisper_hears_the_recordings(spoken_run, listener: Listener) -> None:
    keys = ["1-11-0002", "1-10-0001"]
    found = find_utterances(spoken_run.shards, spoken_run.root, keys)
    heard = hear_recordings([found[key] for key in keys], ["en", None], listener)
    for text, said in zip(heard, ["red doors stay open", "seven green birds"], strict=True):
        assert (
            SequenceMatcher(None, text.lower().replace("7", "seven"), said).ratio() > 0.85
        )  # it joins some words


def test_whisper_hears_all_of_a_long_recording_and_nothing_in_an_empty_one(
    spoken_run, listener: Listener
) -> None:
    waveform = load_waveform(spoken_run.audio_path("train-tiny", 1))
    long = np.concatenate([np.pad(waveform, (0, 480_000 - len(waveform))), waveform])
    texts = listener.hear([long, waveform[:0]], ["en", "en"])
    assert texts[0].lower().count("green") == 2
    assert texts[1] == ""
    padded = [np.pad(waveform, (0, length - len(waveform))) for length in (480_000, 480_001)]
    assert len(set(listener.hear(padded, ["en", "en"]))) == 1
    with pytest.raises(ConfigError, match="English only"):
        listener.hear([waveform], ["it"])


def test_language_that_whisper_does_not_know_is_refused_before_anything_is_decoded(
    vocoder_dir: Path, spoken_run, tmp_path: Path
) -> None:
    line = {"audio": str(spoken_run.audio_path("train-tiny", 0)), "text": "rosso", "language": "it"}
    (tmp_path / "mine.jsonl").write_text(json.dumps(line))
    tokenize(
        TokenizeConfig(
            source="jsonl",
            root=tmp_path,
            codebook_dir=spoken_run.codebook,
            out_dir=tmp_path / "shards",
            device="cpu",
        )
    )
    config = EvaluateConfig(
        checkpoint=spoken_run.run,
        shards=(tmp_path / "shards",),
        task="t2s",
        vocoder=vocoder_dir,
        out_path=tmp_path / "t2s.json",
        device="cpu",
    )
    # The checkpoint has no token for Italian either, which is seen when the first prompt is made.
    with pytest.raises(ConfigError, match=r"tiny\.en hears English only, but not it; .* --listener"):
        evaluate(config)
    with pytest.raises(ConfigError, match="whisper:nobody"):
        evaluate(replace(config, listener="whisper:nobody"))


def test_units_are_heard_in_order_through_the_vocoder(
    spoken_run, vocoder_dir: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waveforms, "find_packaged", lambda entry: None)
    fingerprint = load_dataset_card(spoken_run.shards).fingerprints[Modality.SPEECH]
    vocoder = open_vocoder(vocoder_dir, fingerprint, "cpu")
    units = [sample.speech_tokens for sample in iter_samples(spoken_run.shards)][:1]
    languages = ["en", "en"]
    spoken = speak_units(vocoder, [units[0][:0], *units], are_runs=False, languages=languages)
    heard = listener.hear(spoken, languages, vocoder.sampling_rate_hz)
    assert len(heard) == 2
    assert heard[0] == ""


def test_few_waveforms_are_held_at_a_time_and_each_keeps_its_text(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one waveform there are as many windows as its number says; a window's first sample names it."""
    num_windows, made = 0, list[weakref.ref[np.ndarray]]()

    def make_waveforms() -> Iterator[np.ndarray]:
        for number in range(5 * BATCH_SIZE):
            waveform = np.full(number % 3 * WINDOW_SAMPLES, number, np.float32)
            made.append(weakref.ref(waveform))
            yield waveform

    def hear_batch(windows: list[np.ndarray], language: str) -> list[str]:
        nonlocal num_windows
        num_windows += len(windows)
        assert sum(waveform() is not None for waveform in made) <= BATCH_SIZE + 3
        return [f" {window[0]:.0f}" for window in windows]

    monkeypatch.setattr(listener, "_hear_batch", hear_batch)
    texts = listener.hear(make_waveforms(), ["en"] * 5 * BATCH_SIZE)
    assert texts == [" ".join([str(number)] * (number % 3)) for number in range(5 * BATCH_SIZE)]
    assert num_windows == sum(number % 3 for number in range(5 * BATCH_SIZE))


def test_resampling_keeps_the_duration() -> None:
    waveform = np.sin(np.arange(22_050) / 10).astype(np.float32)
    assert abs(len(resample(waveform, 22_050)) - 16_000) <= 1
    assert len(resample(waveform[:0], 22_050)) == 0


def test_speak_writes_a_wav_file_for_each_text(
    vocoder_dir: Path,
    spoken_run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(waveforms, "find_packaged", lambda entry: None)
    tools = ["--vocoder", str(vocoder_dir), "--device", "cpu"]
    assert run(["speak", "--checkpoint", str(spoken_run.run), *tools, "RED"]) == 2
    assert "was not trained on t2s, but on asr (en)" in capsys.readouterr().err
    recipe = replace(spoken_run.recipe, num_steps=1, mix=(MixEntry(task="t2s", weight=1.0),))
    run_dir = tmp_path / "run"
    train(TrainConfig(shards=(spoken_run.shards,), recipe=recipe, out_dir=run_dir, device="cpu"))
    arguments = ["--checkpoint", str(run_dir), *tools]
    loaded: list[Path] = []
    load = speaking.load_text_tokenizer
    monkeypatch.setattr(
        speaking, "load_text_tokenizer", lambda directory: loaded.append(directory) or load(directory)
    )
    assert run(["speak", *arguments, "--out", str(tmp_path), "RED", "a"]) == 0
    shown = capsys.readouterr()
    assert len(loaded) == 1
    for number, text in enumerate(["RED", "a"], 1):
        path = tmp_path / f"{number:04d}.wav"
        assert f"{path}\t{text}" in shown.out
        with wave.open(str(path)) as file:
            assert (file.getframerate(), file.getsampwidth()) == (22_050, 2)
    assert "s of speech in" in shown.err
    assert run(["speak", *arguments, "--out", str(tmp_path), "a" * 2000]) == 0
    assert "a\t(too long for the model: nothing was said)\n" in capsys.readouterr().out
    assert run(["speak", *arguments, "--out", str(tmp_path), "   "]) == 2
    assert "nothing to say" in capsys.readouterr().err
    assert run(["speak", *arguments, "--out", str(path), "a"]) == 2
    assert "is a file; --out must be a folder" in capsys.readouterr().err


def test_speech_is_scored_by_what_whisper_hears_beside_true_units_and_recordings(
    vocoder_dir: Path, spoken_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setattr(waveforms, "find_packaged", lambda entry: None)
    monkeypatch.setenv("DMLM_DATA", str(spoken_run.root))
    speech_dir, out_path = tmp_path / "t2s.json.speech", tmp_path / "t2s.json"
    speech_dir.mkdir()
    for name in ("0009.wav", "10000.wav", "mine.wav", "0009.txt"):
        (speech_dir / name).touch()
    data = ["--checkpoint", str(spoken_run.run), "--shards", str(spoken_run.shards), "--key", "1-11-000[02]"]
    tools = ["--vocoder", str(vocoder_dir), "--device", "cpu", "--out", str(out_path)]
    assert run(["evaluate", "--task", "t2s", *data, *tools]) == 0
    assert "was not trained on t2s (en), which is scored all the same, but on asr (en)" in caplog.text
    written = out_path.read_text()
    result = json.loads(written)
    assert set(result["controls"]) == {"true units", "recordings"}
    assert result["controls"]["recordings"]["cer"] < 0.3 < result["metrics"]["cer"]
    settings = result["settings"]
    names = [settings[name] for name in ("vocoder", "waveform_maker", "listener", "root")]
    assert names == ["voice", "griffin-lim", "whisper:tiny.en", spoken_run.root.name]
    assert str(spoken_run.root) not in written
    card = json.loads((vocoder_dir / "vocoder.json").read_bytes())
    assert settings["vocoder_sha256"] == card["weights_sha256"]
    heard_by = f"|listener:whisper:tiny.en:{settings['listener_sha256']:.8}"
    signature = result["metrics"]["wer_raw_signature"]
    assert signature.endswith(f"{heard_by}|speech:griffin-lim:{card['weights_sha256']:.8}")
    assert result["controls"]["true units"]["wer_raw_signature"] == signature
    assert result["controls"]["recordings"]["wer_raw_signature"].endswith(f"{heard_by}|speech:recordings")
    lines = [json.loads(line) for line in Path(f"{out_path}.samples.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == ["1-11-0000", "1-11-0002"]
    assert "home" in lines[0]["recordings"].lower()
    names = sorted(path.name for path in speech_dir.iterdir())
    assert names == ["0001.wav", "0002.wav", "0009.txt", "mine.wav"]


def test_each_of_two_data_sets_with_the_same_keys_has_its_own_recordings(
    vocoder_dir: Path, spoken_run, tmp_path: Path
) -> None:
    audio = {
        "train": [spoken_run.audio_path("train-tiny", number) for number in (0, 1)],
        "test": [spoken_run.audio_path("test-tiny", number) for number in (0, 1)],
    }
    for split, paths in audio.items():
        write_lines(tmp_path / "corpus" / f"{split}.jsonl", paths)
        config = TokenizeConfig(
            source="jsonl",
            root=tmp_path / "corpus",
            splits=(split,),
            codebook_dir=spoken_run.codebook,
            out_dir=tmp_path / split,
            device="cpu",
        )
        tokenize(config)
    checkpoint = load_checkpoint(resolve_checkpoint(spoken_run.run))
    shards = open_matching_shards([tmp_path / split for split in audio], checkpoint, "t2s")
    references = list(read_references(shards, list(audio), "t2s"))

    def find_recordings() -> list[Path]:
        tools = open_speech_tools(
            checkpoint,
            references,
            vocoder_dir=vocoder_dir,
            listener="whisper:tiny.en",
            root=tmp_path / "corpus",
            device="cpu",
        )
        return [recording.audio_path for recording in tools.recordings]

    assert find_recordings() == [*audio["train"], *audio["test"]]
    write_lines(tmp_path / "corpus" / "test.jsonl", audio["test"][::-1])
    with pytest.raises(FingerprintMismatchError, match=r"utt0: .*not what the units were made of"):
        find_recordings()


def write_lines(path: Path, recordings: list[Path]) -> None:
    path.parent.mkdir(exist_ok=True)
    lines = [
        {"key": f"utt{number}", "audio": str(recording), "text": "red"}
        for number, recording in enumerate(recordings)
    ]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_scores_of_another_vocoder_of_the_same_name_are_not_written_over(
    vocoder_dir: Path, spoken_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(resolve_checkpoint(spoken_run.run), tmp_path / "model")
    config = EvaluateConfig(
        checkpoint=tmp_path / "model",
        shards=(spoken_run.shards,),
        task="t2s",
        vocoder=vocoder_dir,
        limit=1,
        device="cpu",
    )
    evaluate(config)
    other = tmp_path / vocoder_dir.name
    vocoder = load_vocoder(vocoder_dir)
    vocoder.voice.to_mel.bias.data += 1
    other.mkdir()
    save_vocoder(other, vocoder)
    monkeypatch.setattr("dmlm.trainer.scoring.evaluation.generate", None)
    with pytest.raises(ConfigError, match="holds scores with vocoder_sha256"):
        evaluate(replace(config, vocoder=other))


def test_texts_go_through_the_rule_of_a_data_set_that_was_spoken(spoken_run) -> None:
    _, settings = read_settings(resolve_checkpoint(spoken_run.run))
    pictures = replace(settings.datasets[0], name="coco", text_rule="nfc")
    both = replace(settings, datasets=(pictures, *settings.datasets))
    rules = {"librispeech": "lower", "l*": "lower", "*": "nfc", "covost": "nfc"}
    for source, rule in rules.items():
        mix = (MixEntry(task="i2t", weight=1.0), MixEntry(task="t2s", weight=1.0, source=source))
        assert spoken_text_rule(replace(both, recipe=replace(both.recipe, mix=mix))) == rule
