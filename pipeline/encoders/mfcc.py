"""MFCC as an encoder, the control of experiments: what units are worth that no network has listened to.

13 coefficients, their deltas and delta-deltas, as Kaldi computes them at 100 frames a second and HuBERT's
first iteration clusters them (fairseq, `dump_mfcc_feature.py`); every second frame is kept, which gives
the 50 frames a second, and the very frames, of a wav2vec 2.0 or HuBERT network. Nothing is normalised,
as there: a frame depends on the 0.1 s around it and on nothing else of the recording. What is shorter than
a frame is filled up with zeros.

Suffixes: F frame, S sample of a frame, Q frequency bin, M mel band, C coefficient, D width.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlm.pipeline.devices import open_device
from dmlm.pipeline.encoders import SpeechEncoder
from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Waveform
from dmlm.pipeline.tokenizers import Fingerprint

SAMPLING_RATE_HZ = 16_000
FRAME_SAMPLES, HOP_SAMPLES, FFT_SAMPLES = 400, 160, 512
KEEP_EVERY = 2
NUM_MELS, NUM_COEFFICIENTS, LIFTER = 23, 13, 22
LOWEST_HZ, HIGHEST_HZ = 20.0, 8_000.0
PREEMPHASIS = 0.97
PART_FRAMES = 3_000
MIN_ENERGY = torch.finfo(torch.float32).eps


class MfccEncoder(SpeechEncoder):
    """16 kHz waveforms to 39 values per frame."""

    sampling_rate_hz = SAMPLING_RATE_HZ
    batch_seconds = 0.0
    num_layers = 0
    width = 3 * NUM_COEFFICIENTS

    def __init__(self, device: str = "auto") -> None:
        """Prepares the filters on `device`."""
        self.device = open_device(device)

    @property
    def fingerprint(self) -> Fingerprint:
        """Name and width: there are no weights and no settings."""
        return {"encoder": "mfcc", "width": self.width, "frames_per_second": 50}

    def map_frames(
        self, waveforms: Iterable[Waveform], function: Callable[[Tensor], Tensor]
    ) -> Iterator[Tensor]:
        """Yields `function` of each recording's frames.

        Recordings go one by one, so that none depends on another.
        """
        for waveform in waveforms:
            yield function(self._features(torch.tensor(waveform, device=self.device)))

    def _features(self, waveform: Tensor) -> Tensor:
        if not len(waveform):
            return torch.zeros(0, self.width, device=self.device)
        waveform = F.pad(waveform, (0, max(0, FRAME_SAMPLES - len(waveform))))
        frames_FS = waveform.unfold(0, FRAME_SAMPLES, HOP_SAMPLES)
        # In parts, because frames in float64 take five times the memory of the waveform.
        static_FC = torch.cat(
            [self._coefficients(part_FS.double()) for part_FS in torch.split(frames_FS, PART_FRAMES)]
        )
        delta_FC = _slope(static_FC)
        features_FD = torch.cat([static_FC, delta_FC, _slope(delta_FC)], dim=1)
        return features_FD[::KEEP_EVERY].float()

    def _coefficients(self, frames_FS: Tensor) -> Tensor:
        frames_FS = frames_FS - frames_FS.mean(dim=1, keepdim=True)
        before_FS = F.pad(frames_FS[:, None], (1, 0), mode="replicate")[:, 0, :-1]
        windowed_FS = (frames_FS - PREEMPHASIS * before_FS) * self._window
        spectrum_FQ = torch.fft.rfft(windowed_FS, FFT_SAMPLES)
        power_FQ = spectrum_FQ.real.square() + spectrum_FQ.imag.square()
        log_mel_FM = (power_FQ @ self._mel_filters).clamp(min=MIN_ENERGY).log()
        static_FC: Tensor = log_mel_FM @ self._cepstral_filters
        return static_FC

    @cached_property
    def _window(self) -> Tensor:
        """Povey's window [S]: a Hann window to the power of 0.85."""
        hann_S = torch.hann_window(FRAME_SAMPLES, periodic=False, dtype=torch.float64)
        return hann_S.pow(0.85).to(self.device)

    @cached_property
    def _mel_filters(self) -> Tensor:
        """Triangles [Q, M] on the mel scale, between edges that are evenly spaced on it."""
        low, high = _mel(torch.tensor([LOWEST_HZ, HIGHEST_HZ], dtype=torch.float64))
        edges = torch.linspace(0, 1, NUM_MELS + 2, dtype=torch.float64) * (high - low) + low
        bins_Q = torch.arange(FFT_SAMPLES // 2 + 1, dtype=torch.float64) * (SAMPLING_RATE_HZ / FFT_SAMPLES)
        mel_Q1 = _mel(bins_Q)[:, None]
        rising_QM = (mel_Q1 - edges[:-2]) / (edges[1:-1] - edges[:-2])
        falling_QM = (edges[2:] - mel_Q1) / (edges[2:] - edges[1:-1])
        return torch.minimum(rising_QM, falling_QM).clamp(min=0).to(self.device)

    @cached_property
    def _cepstral_filters(self) -> Tensor:
        """Orthonormal DCT-II [M, C], the coefficients weighted by Kaldi's lifter."""
        mels_M1 = torch.arange(NUM_MELS, dtype=torch.float64)[:, None]
        order_C = torch.arange(NUM_COEFFICIENTS, dtype=torch.float64)
        cosine_MC = torch.cos(math.pi / NUM_MELS * (mels_M1 + 0.5) * order_C) * math.sqrt(2 / NUM_MELS)
        cosine_MC[:, 0] /= math.sqrt(2)
        lifter_C = 1 + LIFTER / 2 * torch.sin(math.pi * order_C / LIFTER)
        return (cosine_MC * lifter_C).to(self.device)


def open_mfcc_encoder(name: str, *, layer: int | None, device: str = "auto") -> MfccEncoder:
    """MFCC; its only name is `mfcc`.

    Raises:
        ConfigError: A layer or a model is asked for.
    """
    if name != "mfcc" or layer is not None:
        raise ConfigError(
            f"encoder {name}, layer {layer or 'last'}: mfcc has no models and no layers; use `mfcc`, `last`"
        )
    return MfccEncoder(device)


def _mel(frequency_hz: Tensor) -> Tensor:
    return 1127 * torch.log1p(frequency_hz / 700)


def _slope(values_FC: Tensor) -> Tensor:
    """Least-squares slope over two frames to each side; the first and last frame go on beyond the ends."""
    padded_CF = F.pad(values_FC.T[None], (2, 2), mode="replicate")[0]
    early2, early1, _, late1, late2 = (padded_CF[:, i : padded_CF.shape[1] - 4 + i] for i in range(5))
    return ((late1 - early1) + 2 * (late2 - early2)).T / 10
