"""Units -> waveform, by a vocoder of `train-vocoder` or by the code HiFi-GAN of a Seamless model.

Suffixes: F frame of 20 ms, R run of equal units, T mel frame, M mel band.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dmlm.pipeline.devices import open_device
from dmlm.pipeline.errors import CorruptInputError
from dmlm.pipeline.samples import TokenArray, Waveform
from dmlm.pipeline.storage import sha256_file
from dmlm.pipeline.tokenizers import Fingerprint
from dmlm.trainer.vocoder.checkpoint import WEIGHTS, Vocoder, check_units, load_vocoder
from dmlm.trainer.vocoder.mel import SAMPLING_RATE_HZ
from dmlm.trainer.vocoder.model import count_mel_frames, draw_out, mel_positions
from dmlm.trainer.vocoder.seamless import is_seamless_model, open_code_hifigan
from dmlm.trainer.vocoder.waveforms import (
    GENERATOR,
    GRIFFIN_LIM,
    MelToWaveform,
    griffin_lim,
    open_mel_to_waveform,
)


class UnitVocoder(Protocol):
    """What speaks the units of one speech tokenizer."""

    @property
    def sampling_rate_hz(self) -> int:
        """Of its waveforms."""

    @property
    def waveform_maker(self) -> str:
        """Name of what makes the waveforms, such as `hifigan:universal`."""

    @property
    def weights_sha256(self) -> str:
        """Of the weights that belong to the units."""

    def check_languages(self, languages: Iterable[str | None]) -> None:
        """Raises ConfigError where a language is one that it does not speak."""

    def speak(self, units: TokenArray, *, are_runs: bool, language: str | None = None) -> Waveform:
        """Speech in [-1, 1]; empty when there are no units.

        Args:
            units: Modality-local ids.
            are_runs: Each stands for a run of equal ones, whose duration is a guess; else each is 20 ms.
            language: ISO code, for vocoders that speak each language differently; None: English.

        Raises:
            ConfigError: It does not speak the language.
            CorruptInputError: An id that the tokenizer does not have.
        """


class TrainedVocoder:
    """A net of `train-vocoder` and HiFi-GAN (or Griffin-Lim) after it; a UnitVocoder."""

    sampling_rate_hz: int = SAMPLING_RATE_HZ

    def __init__(
        self, vocoder: Vocoder, weights_sha256: str, to_waveform: MelToWaveform, device: torch.device
    ) -> None:
        """Takes what `load_vocoder` gave, and the hash of its file of weights."""
        self.weights_sha256 = weights_sha256
        self._voice, self._num_units = vocoder.voice.to(device), vocoder.num_units
        self._to_waveform, self._device = to_waveform, device
        self.waveform_maker = GRIFFIN_LIM if to_waveform is griffin_lim else GENERATOR

    def check_languages(self, languages: Iterable[str | None]) -> None:
        """As UnitVocoder; it refuses none, for the language makes no difference."""

    def speak(self, units: TokenArray, *, are_runs: bool, language: str | None = None) -> Waveform:
        """As UnitVocoder; the language makes no difference."""
        if not len(units):
            return np.zeros(0, np.float32)
        if not 0 <= units.min() <= units.max() < self._num_units:
            raise CorruptInputError(f"unit ids must be in [0, {self._num_units}), found {units.max()}")
        mel_TM = self.predict_mel(torch.from_numpy(units.astype(np.int64)).to(self._device), are_runs)
        waveform: Waveform = self._to_waveform(mel_TM).cpu().numpy().clip(-1, 1)
        return waveform

    @torch.inference_mode()
    def predict_mel(self, units_R: Tensor, are_runs: bool) -> Tensor:
        """Log-mel spectrogram [T, M] of units or runs."""
        if are_runs:
            log_rate_BR = self._voice.durations(
                units_R[None], torch.tensor([len(units_R)], device=self._device)
            )
            units_F = units_R.repeat_interleave(draw_out(log_rate_BR[0].cpu()).to(self._device))
        else:
            units_F = units_R
        num_frames = count_mel_frames(len(units_F))
        positions_T = mel_positions(len(units_F), num_frames).to(self._device)
        lengths = torch.tensor([[len(units_F)], [num_frames]], device=self._device)
        mel_BTM = self._voice(units_F[None], lengths[0], positions_T[None], lengths[1])
        mel_TM: Tensor = mel_BTM[0]
        return mel_TM


def open_vocoder(directory: Path, fingerprint: Fingerprint, device: str = "auto") -> UnitVocoder:
    """Vocoder for the units of a speech tokenizer.

    Args:
        directory: Of `train-vocoder`, or a Seamless model in Hugging Face's format.
        fingerprint: Of the speech tokenizer, as data sets and checkpoints have it.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        ConfigError: There is no vocoder.
        FingerprintMismatchError: It speaks other units.
        CorruptInputError: It is damaged.
    """
    place = open_device(device)
    if is_seamless_model(directory):
        return open_code_hifigan(directory, fingerprint, place)
    vocoder = load_vocoder(directory)
    check_units(directory, vocoder.fingerprint, fingerprint)
    return TrainedVocoder(vocoder, sha256_file(directory / WEIGHTS), open_mel_to_waveform(place), place)
