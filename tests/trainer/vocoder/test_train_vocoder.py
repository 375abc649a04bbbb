"""From shards and recordings to a vocoder: units are tones here, so that what was learnt can be seen."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from dmlm.pipeline.errors import CheckpointError, ConfigError, CorruptInputError, FingerprintMismatchError
from dmlm.pipeline.samples import Modality, Sample
from dmlm.pipeline.shards import write_shard
from dmlm.pipeline.tokenization.output_folder import publish
from dmlm.pipeline.tokenizers import Fingerprint
from dmlm.pipeline.vocabulary import Vocabulary
from dmlm.trainer.vocoder import checkpoint, waveforms
from dmlm.trainer.vocoder.config import TrainVocoderConfig, VocoderRecipe
from dmlm.trainer.vocoder.mel import mel_bands
from dmlm.trainer.vocoder.model import VoiceShape
from dmlm.trainer.vocoder.recordings import draw_rows, find_utterances
from dmlm.trainer.vocoder.synthesis import TrainedVocoder, open_vocoder
from dmlm.trainer.vocoder.training import VocoderReport, train_vocoder

TONES_HZ = (300, 700, 1500, 3000)
LASTS = (5, 7, 9, 12)
"""Frames of a run of each unit."""
RATE_HZ = 16_000
FINGERPRINT: Fingerprint = {"encoder": "tones", "layer": 1}
RECIPE = VocoderRecipe(
    shape=VoiceShape(width=32, dilations=(1, 2), duration_width=16),
    num_steps=160,
    batch_size=4,
    stretch_units=40,
    learning_rate=1e-2,
)


def make_units(number: int) -> np.ndarray:
    order = np.random.default_rng(number).integers(0, 4, 3 if number == 0 else 12)
    order = order[np.flatnonzero(np.diff(order, prepend=-1))]
    return np.repeat(order, [LASTS[unit] for unit in order]).astype(np.int32)


def make_sample(number: int, units: np.ndarray, split: str = "train-tones") -> Sample:
    return Sample(key=f"1-10-{number:04d}", source="librispeech", split=split, speech_tokens=units)


def path_of(root: Path, sample: Sample) -> Path:
    return root / "LibriSpeech" / sample.split / "1" / "10" / f"{sample.key}.flac"


def write_recording(path: Path, units: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    phase = np.cumsum(np.repeat([TONES_HZ[unit] for unit in units], RATE_HZ // 50)) / RATE_HZ
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * phase), RATE_HZ)


def publish_samples(
    directory: Path, samples: Sequence[Sample], fingerprint: Fingerprint = FINGERPRINT, **settings: Any
) -> Path:
    vocabulary = Vocabulary(num_text=256, num_speech=4, num_image=0, bos_id=0, eos_id=0)
    shard = write_shard(directory, "x-000000", samples, vocabulary, task_sha256="task", num_in=len(samples))
    recipe = {
        "fingerprints": {Modality.SPEECH: fingerprint, Modality.TEXT: {}},
        "text_rule": "lower",
        "settings": {"source": "librispeech", "splits": ["test-tones", "train-tones"], **settings},
    }
    publish(directory, "tones", [shard], recipe, vocabulary, "none", codebook_files=())
    return directory


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of tones in LibriSpeech's layout, with its data set in `shards`."""
    root = tmp_path_factory.mktemp("tones")
    samples = []
    for number, split in enumerate(["train-tones"] * 8 + ["test-tones"] * 2):
        sample = make_sample(number, make_units(number), split)
        write_recording(path_of(root, sample), make_units(number))
        samples.append(sample)
    publish_samples(root / "shards", samples)
    return root


@pytest.fixture(scope="module")
def config(tones: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainVocoderConfig:
    return TrainVocoderConfig(
        shards=(tones / "shards",),
        root=tones,
        out_dir=tmp_path_factory.mktemp("vocoder") / "voice",
        recipe=RECIPE,
        device="cpu",
    )


@pytest.fixture(scope="module")
def report(config: TrainVocoderConfig) -> VocoderReport:
    return train_vocoder(config)


@pytest.fixture
def vocoder(
    report: VocoderReport, config: TrainVocoderConfig, monkeypatch: pytest.MonkeyPatch
) -> TrainedVocoder:
    """With Griffin-Lim, which takes no time."""
    monkeypatch.setattr(waveforms, "find_packaged", lambda entry: None)
    opened = open_vocoder(config.out_dir, FINGERPRINT, "cpu")
    assert isinstance(opened, TrainedVocoder)
    return opened


def test_it_learns_from_the_training_split_only(report: VocoderReport, config: TrainVocoderConfig) -> None:
    assert report.num_utterances == 8
    card = json.loads((config.out_dir / "vocoder.json").read_text())
    assert card["recipe"]["num_steps"] == 160
    assert card["fingerprint"] == FINGERPRINT
    assert "8 utterances" in report.table()


def test_each_unit_sounds_as_in_the_recordings(vocoder: TrainedVocoder) -> None:
    order = torch.tensor([2, 0, 3, 1])
    frames = torch.tensor(LASTS)[order]
    mel_TM = vocoder.predict_mel(order.repeat_interleave(frames), are_runs=False)
    assert len(mel_TM) == int(sum(LASTS) * 441 / 256)
    middles = ((frames.cumsum(0) - frames / 2) * 441 / 256).int().tolist()
    centres_hz = mel_bands().argmax(dim=1) * 22_050 / 1024
    heard_hz = [float(centres_hz[mel_TM[middle].argmax()]) for middle in middles]
    assert heard_hz == pytest.approx([1500, 300, 3000, 700], rel=0.15)


def test_runs_last_as_long_as_in_the_recordings(vocoder: TrainedVocoder) -> None:
    for rare, common in ((0, 3), (3, 0)):
        order = [1, 2, common, 1, common, 2, common, rare]
        expected = sum(LASTS[unit] for unit in order) * 441 / 256
        mel_TM = vocoder.predict_mel(torch.tensor(order), are_runs=True)
        assert len(mel_TM) == pytest.approx(expected, rel=0.15)


def test_speech_is_as_long_as_its_units_and_the_same_every_time(vocoder: TrainedVocoder) -> None:
    units = make_units(9)
    spoken = vocoder.speak(units, are_runs=False)
    assert len(spoken) == int(len(units) * 441 / 256) * 256
    assert np.array_equal(spoken, vocoder.speak(units, are_runs=False))
    assert len(vocoder.speak(units[:0], are_runs=True)) == 0
    with pytest.raises(CorruptInputError, match="4"):
        vocoder.speak(np.array([4], np.int32), are_runs=False)


def test_the_same_seed_gives_the_same_vocoder(config: TrainVocoderConfig, tmp_path: Path) -> None:
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        short = replace(RECIPE, num_steps=3)
        train_vocoder(replace(config, recipe=short, seed=seed, out_dir=tmp_path / name))
    a, b, c = ((tmp_path / name / "vocoder.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_every_part_of_the_net_learns(config: TrainVocoderConfig, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for name, steps in {"short": 2, "long": 4}.items():
        recipe = replace(RECIPE, num_steps=steps, weight_decay=0.0)
        train_vocoder(replace(config, recipe=recipe, out_dir=tmp_path / name))
    short, long = (load_file(tmp_path / name / "vocoder.safetensors") for name in ("short", "long"))
    assert not [name for name in short if torch.equal(short[name], long[name])]


def test_other_units_are_refused_naming_both_sides(report: VocoderReport, config: TrainVocoderConfig) -> None:
    with pytest.raises(FingerprintMismatchError, match="layer is 1 there and 2 in the model"):
        open_vocoder(config.out_dir, {**FINGERPRINT, "layer": 2}, "cpu")


def test_a_damaged_vocoder_is_refused(
    report: VocoderReport, config: TrainVocoderConfig, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="train-vocoder"):
        open_vocoder(tmp_path, FINGERPRINT, "cpu")
    shutil.copytree(config.out_dir, tmp_path / "voice")
    weights = tmp_path / "voice" / "vocoder.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-5] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="changed or damaged"):
        open_vocoder(tmp_path / "voice", FINGERPRINT, "cpu")
    card = json.loads((config.out_dir / "vocoder.json").read_text())
    weights.write_bytes((config.out_dir / "vocoder.safetensors").read_bytes())
    for content in ({}, card | {"fingerprint": None}):
        (tmp_path / "voice" / "vocoder.json").write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match="cannot be read"):
            open_vocoder(tmp_path / "voice", FINGERPRINT, "cpu")


def test_a_root_with_other_recordings_is_refused(
    config: TrainVocoderConfig, tones: Path, tmp_path: Path
) -> None:
    root = tmp_path / "other"
    shutil.copytree(tones / "LibriSpeech", root / "LibriSpeech")
    write_recording(root / "LibriSpeech" / "train-tones" / "1" / "10" / "1-10-0001.flac", make_units(0))
    with pytest.raises(FingerprintMismatchError, match=r"1-10-0001.*not what the units were made of"):
        train_vocoder(replace(config, root=root, out_dir=tmp_path / "voice"))
    assert not list((tmp_path / "voice").iterdir())
    with pytest.raises(ConfigError, match="give the --root"):
        find_utterances(tones / "shards", root, ["nobody"])


def test_an_out_folder_with_something_else_in_it_stays_as_it_is(
    config: TrainVocoderConfig, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"thesis\.txt"):
        train_vocoder(replace(config, out_dir=tmp_path))


def test_rows_are_drawn_up_to_the_seconds_asked_for(tones: Path) -> None:
    shards = tones / "shards"
    assert len(draw_rows([shards], ["*"], 1e6, seed=0)[shards]) == 10
    assert len(draw_rows([shards], ["*"], 0.01, seed=0)[shards]) == 1
    with pytest.raises(ConfigError, match="no speech in splits nowhere"):
        draw_rows([shards], ["nowhere"], 10, seed=0)


def test_a_run_that_fails_leaves_the_vocoder_that_was_there(
    report: VocoderReport, config: TrainVocoderConfig, tmp_path: Path
) -> None:
    shutil.copytree(config.out_dir, tmp_path / "voice")
    with pytest.raises(ConfigError, match="no folder"):
        train_vocoder(replace(config, root=tmp_path / "nowhere", out_dir=tmp_path / "voice"))
    open_vocoder(tmp_path / "voice", FINGERPRINT, "cpu")


def test_a_vocoder_that_is_half_saved_is_none(
    report: VocoderReport, config: TrainVocoderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(config.out_dir, tmp_path / "voice")

    def killed(path: Path, content: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_vocoder(tmp_path / "voice", checkpoint.load_vocoder(config.out_dir))
    assert not checkpoint.is_vocoder(tmp_path / "voice")


def test_what_a_killed_save_left_is_written_over(config: TrainVocoderConfig, tmp_path: Path) -> None:
    for name in ("vocoder.safetensors.tmp", "vocoder.json.tmp"):
        (tmp_path / name).write_text("half")
    train_vocoder(replace(config, recipe=replace(RECIPE, num_steps=1), out_dir=tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vocoder.json", "vocoder.safetensors"]


def test_of_two_items_with_one_key_the_first_is_the_recording(tones: Path, tmp_path: Path) -> None:
    first, second = (make_sample(0, make_units(0), split) for split in ("test-tones", "train-tones"))
    for sample in (first, second):
        write_recording(path_of(tmp_path, sample), make_units(0))
    shards = publish_samples(tmp_path / "shards", [first])
    assert find_utterances(shards, tmp_path, [first.key])[first.key].split == "test-tones"


def test_only_what_the_limit_left_counts_as_the_first(tmp_path: Path) -> None:
    """The item of the first split is behind the limit, so `tokenize` took that of the second."""
    other = make_sample(0, make_units(0), "test-tones")
    beyond, taken = (make_sample(1, make_units(1), split) for split in ("test-tones", "train-tones"))
    for sample in (other, beyond, taken):
        write_recording(path_of(tmp_path, sample), sample.speech_tokens)
    shards = publish_samples(tmp_path / "shards", [other, taken], limit=1)
    assert find_utterances(shards, tmp_path, [taken.key])[taken.key].split == "train-tones"


@pytest.mark.parametrize("num_steps", [1, 9, 10, 11, 20])
def test_any_number_of_steps_trains(config: TrainVocoderConfig, tmp_path: Path, num_steps: int) -> None:
    report = train_vocoder(replace(config, recipe=replace(RECIPE, num_steps=num_steps), out_dir=tmp_path))
    assert report.num_steps == num_steps


def test_recordings_too_short_for_a_spectrogram_are_left_out(
    config: TrainVocoderConfig, tmp_path: Path
) -> None:
    units = make_units(1)
    short, long = make_sample(0, units[:1]), make_sample(1, units)
    write_recording(path_of(tmp_path, long), units)
    soundfile.write(path_of(tmp_path, short), np.zeros(200), RATE_HZ)
    recipe = replace(RECIPE, num_steps=1)
    both = publish_samples(tmp_path / "both", [short, long], splits=["train-tones"])
    run = replace(config, shards=(both,), root=tmp_path, recipe=recipe, out_dir=tmp_path / "voice")
    assert train_vocoder(run).num_utterances == 1
    none = publish_samples(tmp_path / "none", [short], splits=["train-tones"])
    with pytest.raises(ConfigError, match="17 ms"):
        train_vocoder(replace(run, shards=(none,)))


def test_units_without_recordings_are_refused(config: TrainVocoderConfig, tmp_path: Path) -> None:
    shards = publish_samples(tmp_path / "shards", [make_sample(0, make_units(0))], source="units")
    with pytest.raises(ConfigError, match="came as units, without recordings"):
        train_vocoder(replace(config, shards=(shards,), out_dir=tmp_path / "voice"))


def test_a_data_set_given_twice_is_refused(config: TrainVocoderConfig, tones: Path, tmp_path: Path) -> None:
    shards = (tones / "shards", tones / ".." / tones.name / "shards")
    with pytest.raises(ConfigError, match=r"the same data set as .*; give it once"):
        train_vocoder(replace(config, shards=shards, out_dir=tmp_path / "voice"))


def test_data_sets_of_other_units_are_refused_naming_both_sides(
    config: TrainVocoderConfig, tones: Path, tmp_path: Path
) -> None:
    samples = [make_sample(0, make_units(0))]
    other = publish_samples(tmp_path / "other", samples, {**FINGERPRINT, "layer": 2})
    with pytest.raises(FingerprintMismatchError, match=r"layer is 1 in .*shards and 2 in .*other"):
        train_vocoder(replace(config, shards=(tones / "shards", other), out_dir=tmp_path / "voice"))
