"""UnitVoice: speech units -> how long each lasts, and the mel spectrogram of HiFi-GAN.

Gated dilated convolutions (van den Oord et al. 2016) at the 50 Hz of the units; then the frames are mapped
linearly to the 86 Hz of the spectrogram, and another layer smooths them. Durations come from a small net of
their own, which sees the runs.

Suffixes: B utterance, F frame of 20 ms, R run of equal units, T mel frame, M mel band, D width.
"""

from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlm.pipeline.tokenizers import UNITS_PER_SECOND
from dmlm.trainer.vocoder.mel import FRAMES_PER_SECOND, NUM_MELS

MEL_FRAMES_PER_UNIT: Final = FRAMES_PER_SECOND / UNITS_PER_SECOND
_LONGEST: Final = 6.0
"""Log of the frames of the longest run that is believed: 8 s."""
_SILENCE: Final = -8.0
"""Log-mel at which training starts; most bands of most frames are far below 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VoiceShape:
    """Sizes of the net."""

    width: int = 256
    dilations: tuple[int, ...] = (1, 2, 4, 1, 2, 4)
    """Of each layer at 50 Hz."""
    num_late_layers: int = 1
    """At 86 Hz."""
    duration_width: int = 128


class UnitVoice(nn.Module):
    """The net; every output depends on its own utterance only, whatever it is batched with."""

    def __init__(self, num_units: int, shape: VoiceShape) -> None:
        super().__init__()
        width = shape.width
        self.embedding = nn.Embedding(num_units, width)
        self.layers = nn.ModuleList(_GatedLayer(width, dilation) for dilation in shape.dilations)
        self.late_layers = nn.ModuleList(_GatedLayer(width, 1) for _ in range(shape.num_late_layers))
        self.to_mel = nn.Conv1d(width, NUM_MELS, 1)
        assert self.to_mel.bias is not None, "it was asked for"
        nn.init.constant_(self.to_mel.bias, _SILENCE)
        self.durations = _DurationNet(num_units, shape.duration_width)

    def forward(
        self, units_BF: Tensor, lengths_B: Tensor, positions_BT: Tensor, mel_lengths_B: Tensor
    ) -> Tensor:
        """Mel spectrogram [B, T, M].

        Args:
            units_BF: Units, padded at the end with any.
            lengths_B: Number of units of each.
            positions_BT: Where each mel frame lies, in units.
            mel_lengths_B: Number of mel frames of each.
        """
        mask_B1F = mask_of(lengths_B, units_BF.shape[1])[:, None]
        x_BDF = self.embedding(units_BF).transpose(1, 2) * mask_B1F
        for layer in self.layers:
            x_BDF = layer(x_BDF, mask_B1F)
        x_BDT = _interpolate(x_BDF, positions_BT, lengths_B)
        mask_B1T = mask_of(mel_lengths_B, x_BDT.shape[2])[:, None]
        x_BDT = x_BDT * mask_B1T
        for layer in self.late_layers:
            x_BDT = layer(x_BDT, mask_B1T)
        mel_BTM: Tensor = self.to_mel(x_BDT).transpose(1, 2)
        return mel_BTM


class _GatedLayer(nn.Module):
    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, 2 * width, 3, padding=dilation, dilation=dilation)

    def forward(self, x_BDF: Tensor, mask_B1F: Tensor) -> Tensor:
        signal_BDF, gate_BDF = self.convolution(x_BDF).chunk(2, dim=1)
        return x_BDF + torch.tanh(signal_BDF) * torch.sigmoid(gate_BDF) * mask_B1F


class _DurationNet(nn.Module):
    """Runs of units -> log of the frames that each lasts beyond its first, on average."""

    def __init__(self, num_units: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_units, width)
        self.layers = nn.ModuleList(_GatedLayer(width, 1) for _ in range(2))
        self.to_rate = nn.Conv1d(width, 1, 1)

    def forward(self, runs_BR: Tensor, lengths_B: Tensor) -> Tensor:
        mask_B1R = mask_of(lengths_B, runs_BR.shape[1])[:, None]
        x_BDR = self.embedding(runs_BR).transpose(1, 2) * mask_B1R
        for layer in self.layers:
            x_BDR = layer(x_BDR, mask_B1R)
        log_rate_BR: Tensor = self.to_rate(x_BDR)[:, 0]
        return log_rate_BR


def mel_positions(num_units: int, num_frames: int, first_frame: int = 0, first_unit: int = 0) -> Tensor:
    """Where mel frames lie among the units from `first_unit`; 0 is the middle of that unit.

    Both kinds of frame stand for the middle of their stretch of time.
    """
    middles_T = torch.arange(first_frame, first_frame + num_frames) + 0.5
    return (middles_T / MEL_FRAMES_PER_UNIT - 0.5 - first_unit).clamp(0, num_units - 1)


def count_mel_frames(num_units: int) -> int:
    """Mel frames of so many units."""
    return int(num_units * MEL_FRAMES_PER_UNIT)


def draw_out(log_rate_R: Tensor) -> Tensor:
    """Whole frames [R] of each run, at least one, whose sum is that of the expected ones."""
    ends_R = (1 + log_rate_R.double().clamp(max=_LONGEST).exp()).cumsum(0).add(0.5).floor().long()
    return ends_R.diff(prepend=torch.zeros_like(ends_R[:1]))


def mask_of(lengths_B: Tensor, num_frames: int) -> Tensor:
    """1.0 for the frames of each utterance, 0.0 for its padding, [B, num_frames]."""
    return (torch.arange(num_frames, device=lengths_B.device) < lengths_B[:, None]).float()


def _interpolate(x_BDF: Tensor, positions_BT: Tensor, lengths_B: Tensor) -> Tensor:
    """Values [B, D, T] between the frames of `x_BDF`, linearly."""
    before_BT = positions_BT.floor().long()
    after_BT = torch.minimum(before_BT + 1, lengths_B[:, None] - 1)
    share_B1T = (positions_BT - before_BT)[:, None].to(x_BDF.dtype)

    def take(frames_BT: Tensor) -> Tensor:
        return x_BDF.gather(2, frames_BT[:, None].expand(-1, x_BDF.shape[1], -1))

    return torch.lerp(take(before_BT), take(after_BT.clamp(min=0)), share_B1T)


def duration_loss(log_rate_BR: Tensor, run_lengths_BR: Tensor, lengths_B: Tensor) -> Tensor:
    """Poisson loss of the frames beyond the first, the mean over runs; best where the mean is guessed."""
    mask_BR = mask_of(lengths_B, log_rate_BR.shape[1])
    loss_BR = F.poisson_nll_loss(log_rate_BR, run_lengths_BR - 1.0, reduction="none")
    return (loss_BR * mask_BR).sum() / mask_BR.sum()
