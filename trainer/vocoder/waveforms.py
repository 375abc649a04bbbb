"""Mel spectrogram -> waveform: the universal HiFi-GAN generator where it is installed, else Griffin-Lim.

Suffixes: T mel frame, M mel band, Q frequency bin, N sample.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from dmlm.pipeline.converters.checkpoints import check_state
from dmlm.pipeline.converters.hifigan import load_hifigan_weights
from dmlm.pipeline.encoders.weights import find_packaged
from dmlm.pipeline.manifests import load_weights_manifest
from dmlm.trainer.vocoder.mel import (
    FFT_SAMPLES,
    FLOOR,
    HOP_SAMPLES,
    NUM_MELS,
    PADDING,
    SAMPLING_RATE_HZ,
    mel_bands,
)

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import SpeechT5HifiGan

GENERATOR: Final = "hifigan:universal"
GRIFFIN_LIM: Final = "griffin-lim"
NUM_ROUNDS: Final = 60
"""Of Griffin-Lim."""
MOMENTUM: Final = 0.99

MelToWaveform = Callable[[Tensor], Tensor]
"""Log-mel [T, M] -> samples [N] at 22,050 Hz; N = 256 T."""

_logger = logging.getLogger(__name__)


def open_mel_to_waveform(device: torch.device) -> MelToWaveform:
    """HiFi-GAN's universal generator if it is installed, else Griffin-Lim, with a warning.

    Raises:
        CorruptInputError: The installed generator is not the pinned one.
    """
    entry = load_weights_manifest().find(GENERATOR)
    assert entry is not None, "the manifest is part of the package"
    path = find_packaged(entry)
    if path is None:
        _logger.warning("speech is made by Griffin-Lim; HiFi-GAN sounds better: %s", entry.install)
        return griffin_lim
    generator = load_generator(path).to(device)

    @torch.inference_mode()
    def generate(mel_TM: Tensor) -> Tensor:
        waveform_N: Tensor = generator(mel_TM.to(device))
        return waveform_N

    return generate


def load_generator(path: Path) -> SpeechT5HifiGan:
    """HiFi-GAN V1 at 22,050 Hz as a module of transformers, ready for use.

    Raises:
        CorruptInputError: The file is damaged or another architecture.
    """
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    config = SpeechT5HifiGanConfig(
        model_in_dim=NUM_MELS,
        sampling_rate=SAMPLING_RATE_HZ,
        upsample_initial_channel=512,
        upsample_rates=[8, 8, 2, 2],
        upsample_kernel_sizes=[16, 16, 4, 4],
        resblock_kernel_sizes=[3, 7, 11],
        resblock_dilation_sizes=[[1, 3, 5]] * 3,
        leaky_relu_slope=0.1,
        normalize_before=False,
    )
    with torch.device("meta"):
        generator = SpeechT5HifiGan(config)
    # Statistics of SpeechT5's own mel spectrograms, unused without normalize_before.
    unused = {"mean": torch.zeros(NUM_MELS), "scale": torch.ones(NUM_MELS)}
    state = load_hifigan_weights(path) | unused
    check_state(state, generator.state_dict(), path)
    generator.load_state_dict(state, assign=True)
    return generator.eval().requires_grad_(False)


def griffin_lim(mel_TM: Tensor) -> Tensor:
    """Waveform [256 T] whose mel spectrogram is near `mel_TM`; the same every time.

    Griffin and Lim 1984 with the momentum of Perraudin et al. 2013. The bands are spread over the frequencies
    by the pseudo-inverse of the filters.
    """
    bands_MQ = mel_bands()
    magnitude_TQ = mel_TM.cpu().exp() @ torch.linalg.pinv(bands_MQ).T
    magnitude_QT = magnitude_TQ.T.clamp(min=FLOOR).contiguous()
    window, num_samples = torch.hann_window(FFT_SAMPLES), HOP_SAMPLES * len(mel_TM)
    generator = torch.Generator().manual_seed(0)
    phase_QT = torch.polar(
        torch.ones_like(magnitude_QT), 2 * torch.pi * torch.rand(magnitude_QT.shape, generator=generator)
    )
    previous_QT = torch.zeros_like(phase_QT)
    for _ in range(NUM_ROUNDS):
        waveform_N = _overlap_add(magnitude_QT * phase_QT, window)
        rebuilt_QT = torch.stft(
            waveform_N, FFT_SAMPLES, HOP_SAMPLES, window=window, center=False, return_complex=True
        )
        phase_QT = rebuilt_QT - MOMENTUM / (1 + MOMENTUM) * previous_QT
        phase_QT = phase_QT / phase_QT.abs().clamp(min=1e-12)
        previous_QT = rebuilt_QT
    waveform_N = _overlap_add(magnitude_QT * phase_QT, window)
    return waveform_N[PADDING : PADDING + num_samples].clamp(-1, 1)


def _overlap_add(spectrum_QT: Tensor, window: Tensor) -> Tensor:
    """Least-squares inverse of `stft` without centring; torch's own refuses windows that start at zero."""
    frames_TN = torch.fft.irfft(spectrum_QT.T) * window
    num_samples = HOP_SAMPLES * (len(frames_TN) - 1) + FFT_SAMPLES

    def fold(rows_NT: Tensor) -> Tensor:
        folded: Tensor = torch.nn.functional.fold(
            rows_NT[None], (1, num_samples), (1, FFT_SAMPLES), stride=(1, HOP_SAMPLES)
        )
        return folded.flatten()

    weights_N = fold((window**2)[:, None].expand(-1, len(frames_TN)))
    return fold(frames_TN.T) / weights_N.clamp(min=1e-3)
