"""The mel spectrogram that HiFi-GAN's published generators read: natural log, 80 bands, 86 frames a second.

As in `meldataset.py` of jik876/hifi-gan: magnitudes of a Hann window of 1,024 samples every 256, reflected by
384 at both ends instead of centred, Slaney's mel bands up to 8,000 Hz, clamped at 1e-5.

Suffixes: N sample, M mel band, Q frequency bin, T mel frame.
"""

from functools import cache
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

SAMPLING_RATE_HZ: Final = 22_050
NUM_MELS: Final = 80
FFT_SAMPLES: Final = 1_024
HOP_SAMPLES: Final = 256
MAX_FREQUENCY_HZ: Final = 8_000
FLOOR: Final = 1e-5
"""Least magnitude of a band."""
PADDING: Final = (FFT_SAMPLES - HOP_SAMPLES) // 2
FRAMES_PER_SECOND: Final = SAMPLING_RATE_HZ / HOP_SAMPLES


def log_mel(waveform_N: Tensor) -> Tensor:
    """Log-mel spectrogram [T, M] of more than 384 samples at 22,050 Hz; T is N // 256."""
    padded_BN = F.pad(waveform_N[None], (PADDING, PADDING), mode="reflect")
    window = torch.hann_window(FFT_SAMPLES, device=waveform_N.device)
    spectrum_QT = torch.stft(
        padded_BN[0], FFT_SAMPLES, HOP_SAMPLES, window=window, center=False, return_complex=True
    )
    magnitude_QT = (spectrum_QT.real**2 + spectrum_QT.imag**2 + 1e-9).sqrt()
    mel_MT = mel_bands().to(waveform_N.device) @ magnitude_QT
    return mel_MT.clamp(min=FLOOR).log().T


@cache
def mel_bands() -> Tensor:
    """Weight of each frequency bin in each band, M × Q: triangles of equal area on Slaney's mel scale."""
    from transformers.audio_utils import mel_filter_bank

    weights_QM = mel_filter_bank(
        num_frequency_bins=FFT_SAMPLES // 2 + 1,
        num_mel_filters=NUM_MELS,
        min_frequency=0.0,
        max_frequency=MAX_FREQUENCY_HZ,
        sampling_rate=SAMPLING_RATE_HZ,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(weights_QM.T).float().contiguous()
