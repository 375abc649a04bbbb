"""Against a plain loop over openai-whisper's own modules, one recording at a time."""

import numpy as np
import pytest
import torch
from torch import Tensor
from whisper.audio import log_mel_spectrogram, pad_or_trim
from whisper.model import AudioEncoder

from dmlm.pipeline.converters.whisper import WhisperEncoderWeights
from dmlm.pipeline.encoders import Precision, WindowMode
from dmlm.pipeline.encoders import whisper as whisper_encoder
from dmlm.pipeline.encoders.whisper import WhisperEncoder, count_frames
from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Waveform

TOLERANCE = 1e-3
"""Activations reach about 50; float32 sums in another order differ by up to 2e-4."""


def build_whisper(weights: WhisperEncoderWeights, num_positions: int = 1500) -> AudioEncoder:
    encoder = AudioEncoder(
        weights.num_mels, num_positions, weights.width, weights.num_heads, weights.num_layers
    )
    positions = weights.state["positional_embedding"][:num_positions]
    encoder.load_state_dict({**weights.state, "positional_embedding": positions})
    return encoder.eval()


@torch.no_grad()
def plain_loop(weights: WhisperEncoderWeights, waveform: Waveform, mode: WindowMode) -> Tensor:
    """Activations [F, D] of a recording of up to 30 s."""
    num_steps = len(waveform) // 160
    num_frames = -(-num_steps // 2)
    if mode is WindowMode.PADDED:
        mel_MT = log_mel_spectrogram(pad_or_trim(waveform))
        return build_whisper(weights)(mel_MT[None])[0, :num_frames]
    mel_MT = log_mel_spectrogram(np.pad(waveform, (0, max(0, 400 - len(waveform)))))[:, :num_steps]
    return build_whisper(weights, num_frames)(mel_MT[None])[0]


def encode(encoder: WhisperEncoder, waveforms: list[Waveform]) -> list[Tensor]:
    return [activations.activations_FD for activations in encoder.encode(iter(waveforms))]


def noise(num_samples: int, seed: int = 0) -> Waveform:
    return (np.random.default_rng(seed).standard_normal(num_samples) * 0.1).astype(np.float32)


@pytest.mark.parametrize("mode", list(WindowMode))
def test_batched_activations_equal_the_plain_loop(
    tiny_en: WhisperEncoderWeights, speech: list[Waveform], mode: WindowMode
) -> None:
    recordings = [*speech, noise(5_000)]
    batched = encode(WhisperEncoder(tiny_en, window=mode, device="cpu", batch_seconds=60), recordings)
    for waveform, activations_FD in zip(recordings, batched, strict=True):
        expected_FD = plain_loop(tiny_en, waveform, mode)
        assert activations_FD.shape == expected_FD.shape
        assert (activations_FD - expected_FD).abs().max() < TOLERANCE


def test_result_does_not_depend_on_what_shares_the_batch(
    tiny_en: WhisperEncoderWeights, speech: list[Waveform]
) -> None:
    alone = encode(WhisperEncoder(tiny_en, device="cpu", batch_seconds=0.1), speech)
    loud = [noise(length, length) * 10 for length in (160, 3_333, 70_001)]
    together = encode(WhisperEncoder(tiny_en, device="cpu", batch_seconds=120), [*loud, *speech])
    for one_FD, other_FD in zip(alone, together[len(loud) :], strict=True):
        assert (one_FD - other_FD).abs().max() < TOLERANCE


@pytest.mark.parametrize("mode", list(WindowMode))
def test_number_of_units_is_a_pure_function_of_the_number_of_samples(
    tiny_en: WhisperEncoderWeights, mode: WindowMode
) -> None:
    lengths = [0, 100, 159, 160, 200, 319, 320, 399, 400, 479, 481, 16_000, 16_170]
    if mode is WindowMode.EXACT:
        lengths += [480_000 + tail for tail in (0, 1, 159, 160, 399, 401)] + [480_000 * 2 + 1_000]
    encoder = WhisperEncoder(tiny_en, layer=1, window=mode, device="cpu")
    found = [len(frames_FD) for frames_FD in encode(encoder, [noise(length) for length in lengths])]
    assert found == [-(-(length // 160) // 2) for length in lengths]
    assert found == [count_frames(length) for length in lengths]


def test_long_recording_is_encoded_in_windows_that_meet_in_the_middle_of_what_they_share(
    tiny_en: WhisperEncoderWeights,
) -> None:
    # Windows of 1,500 frames share 200: the second starts at frame 1,300, the seam is at 1,400.
    waveform = noise(480_000 + 8_111)
    encoder = WhisperEncoder(tiny_en, device="cpu")
    whole_FD, first_FD, second_FD = encode(encoder, [waveform, waveform[:480_000], waveform[1_300 * 320 :]])
    assert len(whole_FD) == count_frames(len(waveform))
    assert (whole_FD - torch.cat([first_FD[:1_400], second_FD[100:]])).abs().max() < TOLERANCE


def test_recording_just_over_a_window_keeps_its_last_frames(tiny_en: WhisperEncoderWeights) -> None:
    waveform = noise(480_000 + 320)
    (frames_FD,) = encode(WhisperEncoder(tiny_en, layer=1, device="cpu"), [waveform])
    assert len(frames_FD) == 1_501


def test_bfloat16_activations_are_near_those_of_float32(
    tiny_en: WhisperEncoderWeights, speech: list[Waveform]
) -> None:
    exact = encode(WhisperEncoder(tiny_en, device="cpu"), speech)
    rounded = encode(WhisperEncoder(tiny_en, precision=Precision.BFLOAT16, device="cpu"), speech)
    for exact_FD, rounded_FD in zip(exact, rounded, strict=True):
        error = (rounded_FD.float() - exact_FD).norm() / exact_FD.norm()
        assert 0 < error < 0.05


def test_layers_are_the_outputs_of_the_blocks(tiny_en: WhisperEncoderWeights, speech: list[Waveform]) -> None:
    outputs: list[Tensor] = []
    reference = build_whisper(tiny_en, count_frames(len(speech[0])))
    for block in reference.blocks:
        block.register_forward_hook(lambda _block, _input, output: outputs.append(output[0]))
    with torch.no_grad():
        last_FD = reference(log_mel_spectrogram(speech[0])[None])[0]
    for layer, expected_FD in [*enumerate(outputs, start=1), (None, last_FD)]:
        (found_FD,) = encode(WhisperEncoder(tiny_en, layer=layer, device="cpu"), speech[:1])
        assert (found_FD - expected_FD).abs().max() < TOLERANCE, layer


def test_order_is_kept_across_chunks(tiny_en: WhisperEncoderWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whisper_encoder, "READ_AHEAD_SECONDS", 2)
    lengths = [9_000, 400, 17_000, 1_600, 30_000, 800]
    encoder = WhisperEncoder(tiny_en, layer=1, device="cpu")
    found = [len(frames_FD) for frames_FD in encode(encoder, [noise(length) for length in lengths])]
    assert found == [count_frames(length) for length in lengths]


def test_reads_no_further_ahead_than_one_chunk(
    tiny_en: WhisperEncoderWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whisper_encoder, "READ_AHEAD_SECONDS", 1)
    num_read = 0

    def recordings() -> object:
        nonlocal num_read
        for _ in range(100):
            num_read += 1
            yield noise(4_000)

    next(WhisperEncoder(tiny_en, layer=1, device="cpu").encode(recordings()))
    assert num_read == 4


def test_automatic_layer_is_the_last_block_but_one(tiny_en: WhisperEncoderWeights) -> None:
    assert WhisperEncoder(tiny_en, layer="auto", device="cpu").fingerprint["layer"] == 3


@pytest.mark.parametrize("layer", [0, 5, -1])
def test_layer_that_does_not_exist_is_refused(tiny_en: WhisperEncoderWeights, layer: int) -> None:
    with pytest.raises(ConfigError, match="layers 1 to 4"):
        WhisperEncoder(tiny_en, layer=layer, device="cpu")


def test_fingerprint_tells_layer_window_and_weights_apart(tiny_en: WhisperEncoderWeights) -> None:
    prints = [
        WhisperEncoder(tiny_en, layer=layer, window=mode, device="cpu").fingerprint
        for layer in (None, 4)
        for mode in WindowMode
    ]
    assert len({tuple(sorted(one.items(), key=str)) for one in prints}) == 4
    assert {one["encoder_sha256"] for one in prints} == {tiny_en.sha256}
