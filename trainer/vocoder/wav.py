"""Waveforms as WAV files of 16 bit, which anything plays."""

import wave
from pathlib import Path

import numpy as np

from dmlm.pipeline.samples import Waveform
from dmlm.pipeline.storage import atomic_writer


def write_wav(path: Path, waveform: Waveform, sampling_rate_hz: int) -> None:
    """Writes samples in [-1, 1], mono, whole or not at all; what is beyond is clipped."""
    samples = np.round(waveform.astype(np.float64).clip(-1, 1) * 32_767).astype("<i2")
    with atomic_writer(path) as file, wave.open(file, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(sampling_rate_hz)
        wav.writeframes(samples.tobytes())
