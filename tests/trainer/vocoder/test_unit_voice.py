"""UnitVoice: alignment of units and mel frames, durations, and independence of the batch."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmlm.trainer.vocoder.model import (
    UnitVoice,
    VoiceShape,
    count_mel_frames,
    draw_out,
    duration_loss,
    mel_positions,
)

SHAPE = VoiceShape(width=16, dilations=(1, 2), duration_width=8)


@pytest.fixture
def voice() -> UnitVoice:
    torch.manual_seed(0)
    return UnitVoice(10, SHAPE).eval()


@torch.inference_mode()
def test_an_utterance_sounds_the_same_in_any_batch(voice: UnitVoice) -> None:
    short, long = torch.tensor([3, 1, 4, 1, 5]), torch.tensor([9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3])
    frames = [count_mel_frames(len(units)) for units in (short, long)]
    positions = [mel_positions(len(u), n) for u, n in zip((short, long), frames, strict=True)]
    alone = voice(short[None], torch.tensor([5]), positions[0][None], torch.tensor([frames[0]]))
    units = torch.nn.utils.rnn.pad_sequence([short, long], batch_first=True, padding_value=7)
    together = voice(
        units,
        torch.tensor([5, 11]),
        torch.nn.utils.rnn.pad_sequence(positions, batch_first=True),
        torch.tensor(frames),
    )
    assert torch.allclose(together[0, : frames[0]], alone[0], atol=1e-5)
    rates = voice.durations(units, torch.tensor([5, 11]))
    assert torch.allclose(rates[0, :5], voice.durations(short[None], torch.tensor([5]))[0], atol=1e-5)


@given(st.lists(st.floats(-5, 4), min_size=1, max_size=60))
def test_durations_are_whole_frames_and_keep_the_expected_sum(log_rates: list[float]) -> None:
    rates = torch.tensor(log_rates, dtype=torch.float64)
    frames = draw_out(rates)
    assert (frames >= 1).all()
    assert abs(int(frames.sum()) - float((1 + rates.exp()).sum())) <= 0.5 + 1e-6


@given(st.integers(1, 300), st.integers(0, 1000))
def test_mel_frames_lie_inside_their_units(num_units: int, first_unit: int) -> None:
    first_frame = int(first_unit * 441 / 256)
    positions = mel_positions(num_units, count_mel_frames(num_units), first_frame, first_unit)
    assert (positions.diff() >= 0).all()
    assert (positions >= 0).all()
    assert (positions <= num_units - 1).all()
    middle = len(positions) // 2
    seconds = (first_frame + middle + 0.5) * 256 / 22_050
    if 0 < positions[middle] < num_units - 1:
        assert float(positions[middle]) == pytest.approx(50 * seconds - 0.5 - first_unit, abs=1e-2)


def test_best_duration_is_the_mean_and_padding_does_not_count() -> None:
    lengths = torch.tensor([[2, 6, 1, 99]])
    losses = {
        rate: float(duration_loss(torch.full((1, 4), math.log(rate)), lengths, torch.tensor([3])))
        for rate in (1.0, 2.0, 3.0)
    }
    assert min(losses, key=losses.__getitem__) == 2.0  # one frame and two more: the mean of 2, 6 and 1
