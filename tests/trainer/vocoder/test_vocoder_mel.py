"""Parity with the definition of HiFi-GAN's `meldataset.py`, computed slowly in float64."""

import numpy as np
import pytest
import torch

from dmlm.trainer.vocoder.mel import NUM_MELS, SAMPLING_RATE_HZ, log_mel, mel_bands


def slaney_hz(mel: np.ndarray) -> np.ndarray:
    linear, logarithmic = mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27)
    return np.where(mel < 15, linear, logarithmic)


def slow_bands() -> np.ndarray:
    """librosa.filters.mel(sr=22050, n_fft=1024, n_mels=80, fmin=0, fmax=8000), by its definition."""
    top = 15 + 27 * np.log(8000 / 1000) / np.log(6.4)
    edges = slaney_hz(np.linspace(0, top, NUM_MELS + 2))
    bins = np.arange(513) * SAMPLING_RATE_HZ / 1024
    bands = []
    for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
        triangle = np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle))
        bands.append(np.maximum(0, triangle) * 2 / (high - low))
    return np.array(bands)


def slow_log_mel(waveform: np.ndarray) -> np.ndarray:
    padded = np.pad(waveform.astype(np.float64), 384, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    turns = np.exp(-2j * np.pi * np.outer(np.arange(513), np.arange(1024)) / 1024)
    starts = range(0, len(padded) - 1023, 256)
    magnitudes = [np.sqrt(np.abs(turns @ (padded[s : s + 1024] * window)) ** 2 + 1e-9) for s in starts]
    return np.log(np.maximum(np.array(magnitudes) @ slow_bands().T, 1e-5))


def test_bands_are_slaneys() -> None:
    assert np.allclose(mel_bands().numpy(), slow_bands(), atol=1e-7)


@pytest.mark.parametrize("num_samples", [1024, 2000, 4096])
def test_spectrogram_equals_the_definition(num_samples: int) -> None:
    rng = np.random.default_rng(num_samples)
    tone = 0.3 * np.sin(2 * np.pi * 700 * np.arange(num_samples) / SAMPLING_RATE_HZ)
    waveform = (tone + 0.01 * rng.standard_normal(num_samples)).astype(np.float32)
    mel = log_mel(torch.from_numpy(waveform)).numpy()
    assert mel.shape == (num_samples // 256, NUM_MELS)
    assert np.abs(mel - slow_log_mel(waveform)).max() < 1e-3


def test_silence_is_the_floor() -> None:
    assert (log_mel(torch.zeros(2048)).exp() < 3e-5).all()
