import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dct
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from dmlm.pipeline.encoders.mfcc import MfccEncoder, open_mfcc_encoder
from dmlm.pipeline.encoders.wav2vec2 import FrameGrid
from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Waveform


def reference(waveform: Waveform) -> npt.NDArray[np.float64]:
    """transformers' Kaldi-compatible log-mel, scipy's DCT, and deltas written as sums."""
    filters = mel_filter_bank(
        num_frequency_bins=257,
        num_mel_filters=23,
        min_frequency=20,
        max_frequency=8000,
        sampling_rate=16_000,
        norm=None,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    log_mel = spectrogram(
        waveform.astype(np.float64),
        window_function(400, "povey", periodic=False),
        frame_length=400,
        hop_length=160,
        fft_length=512,
        power=2.0,
        center=False,
        preemphasis=0.97,
        mel_filters=filters,
        log_mel="log",
        mel_floor=1.192092955078125e-07,
        remove_dc_offset=True,
    ).T
    lifter = 1 + 11 * np.sin(np.pi * np.arange(13) / 22)
    static = dct(log_mel, type=2, norm="ortho", axis=1)[:, :13] * lifter
    delta = slope(static)
    return np.concatenate([static, delta, slope(delta)], axis=1)[::2]


def slope(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    last = len(values) - 1
    rows = [
        sum(n * (values[min(t + n, last)] - values[max(t - n, 0)]) for n in (1, 2)) / 10
        for t in range(len(values))
    ]
    return np.stack(rows)


def features(*waveforms: Waveform) -> list[npt.NDArray[np.float32]]:
    return [item.activations_FD.numpy() for item in MfccEncoder("cpu").encode(waveforms)]


def test_features_equal_those_of_independent_parts(speech: list[Waveform]) -> None:
    for waveform, found in zip(speech, features(*speech), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, reference(waveform), rtol=0, atol=2e-4)


def test_loudness_moves_only_the_first_coefficient() -> None:
    noise = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    loud, quiet = features(noise, noise / 4)
    np.testing.assert_allclose(loud[:, 1:], quiet[:, 1:], atol=1e-3)
    np.testing.assert_allclose(loud[:, 0] - quiet[:, 0], np.log(16) * np.sqrt(23), atol=1e-3)


@settings(max_examples=40)
@given(num_samples=st.integers(0, 3000))
def test_frames_are_those_of_a_wav2vec2_network(num_samples: int) -> None:
    waveform = np.random.default_rng(num_samples).standard_normal(num_samples).astype(np.float32)
    (found,) = features(waveform)
    assert found.shape == (FrameGrid().count_frames(num_samples), 39)
    assert np.isfinite(found).all()


def test_silence_is_finite_and_a_recording_does_not_depend_on_its_company(speech: list[Waveform]) -> None:
    silence = np.zeros(16_000, np.float32)
    alone, together = features(speech[1]), features(silence, speech[1], speech[0])
    assert np.isfinite(together[0]).all()
    assert np.array_equal(alone[0], together[1])


def test_a_frame_function_sees_the_frames_of_each_recording(speech: list[Waveform]) -> None:
    sums = list(MfccEncoder("cpu").map_frames(speech, lambda frames_FD: frames_FD.sum(dim=1)))
    for total_F, expected in zip(sums, features(*speech), strict=True):
        torch.testing.assert_close(total_F, torch.from_numpy(expected).sum(dim=1))


@pytest.mark.parametrize(("name", "layer"), [("mfcc", 3), ("mfcc:large", None)])
def test_mfcc_has_no_models_and_no_layers(name: str, layer: int | None) -> None:
    with pytest.raises(ConfigError, match="no layers"):
        open_mfcc_encoder(name, layer=layer, device="cpu")
