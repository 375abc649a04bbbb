import os
import struct
from contextlib import suppress

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmlm.pipeline import audio
from dmlm.pipeline.audio import SAMPLING_RATE_HZ, load_utterance, load_waveform, recording_seconds
from dmlm.pipeline.errors import AudioError, DmlmError
from dmlm.pipeline.samples import Utterance

OPUS = {"format": "OGG", "subtype": "OPUS"}


def tone(seconds, rate_hz=SAMPLING_RATE_HZ, frequency_hz=440.0):
    times = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * frequency_hz * times)).astype(np.float32)


def write(path, samples, rate_hz=SAMPLING_RATE_HZ, **options):
    soundfile.write(path, samples, rate_hz, **options)
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.flac", {}),
        ("a.wav", {}),
        ("a.mp3", {}),
        ("a.ogg", {}),
        ("a.opus", OPUS),
    ],
)
def test_every_format_gives_the_tone_that_went_in(tmp_path, name, options):
    path = write(tmp_path / name, tone(1.0), **options)
    waveform = load_waveform(path)
    assert waveform.dtype == np.float32
    assert waveform.shape == (16_000,)
    spectrum = np.abs(np.fft.rfft(waveform))
    assert np.argmax(spectrum) == 440
    assert np.array_equal(waveform, load_waveform(path))


def test_sixteen_bit_audio_at_the_target_rate_comes_back_exactly(tmp_path):
    samples = np.random.default_rng(0).integers(-32_768, 32_768, 1_000).astype(np.int16)
    path = write(tmp_path / "a.flac", samples)
    assert np.array_equal(load_waveform(path), samples.astype(np.float32) / 32_768)


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100, 48_000])
def test_other_rates_are_resampled_without_moving_the_tone(tmp_path, rate_hz):
    waveform = load_waveform(write(tmp_path / "a.wav", tone(1.0, rate_hz), rate_hz))
    inner = slice(1_000, -1_000)
    assert waveform.shape == (16_000,)
    assert np.abs(waveform - tone(1.0))[inner].max() < 1e-3


@pytest.mark.parametrize("rate_hz", [16_000, 22_050, 48_000])
def test_waveform_is_that_of_the_whole_recording_at_once(tmp_path, monkeypatch, rate_hz):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (2 * rate_hz + 7, 2)).astype(np.float32)
    path = write(tmp_path / "a.wav", samples, rate_hz, subtype="FLOAT")
    expected = soxr.resample(samples.mean(axis=1), rate_hz, 16_000, quality="HQ")
    for block_samples in (1 << 18, 1_000):
        monkeypatch.setattr(audio, "BLOCK_SAMPLES", block_samples)
        assert np.array_equal(load_waveform(path), expected)


def test_stereo_is_the_mean_of_its_channels(tmp_path):
    left = tone(0.1)
    path = write(tmp_path / "a.wav", np.stack([left, np.zeros_like(left)], axis=1), subtype="FLOAT")
    assert np.allclose(load_waveform(path), left / 2)


def test_stretch_equals_the_same_samples_of_the_whole(tmp_path):
    path = write(tmp_path / "a.flac", np.random.default_rng(0).uniform(-0.5, 0.5, 48_000))
    whole = load_waveform(path)
    assert np.array_equal(load_waveform(path, 0.5, 1.25), whole[8_000:20_000])
    assert np.array_equal(load_waveform(path, 2.0), whole[32_000:])
    assert recording_seconds(path) == 3.0


def test_stretch_is_resampled_from_its_own_start(tmp_path):
    path = write(tmp_path / "a.wav", tone(2.0, 48_000), 48_000)
    assert load_waveform(path, 0.25, 1.0).shape == (12_000,)


def test_one_frame_is_enough_and_less_is_not(tmp_path):
    assert load_waveform(write(tmp_path / "a.wav", tone(0.01))).shape == (160,)
    with pytest.raises(AudioError, match="less than one frame of 10 ms"):
        load_waveform(write(tmp_path / "b.wav", tone(0.01)[:159]))


@pytest.mark.parametrize(("speed", "num_samples"), [(2.0, 320), (1.0, 160), (0.5, 80)])
def test_one_frame_is_enough_at_the_speed_that_is_heard(tmp_path, speed, num_samples):
    path = write(tmp_path / "a.wav", tone(0.1)[:num_samples])
    utterance = Utterance(key="a", source="x", split="y", audio_path=path, speed=speed)
    assert load_utterance(utterance).shape == (160,)
    write(path, tone(0.1)[: num_samples - 2])
    with pytest.raises(AudioError, match=r": 0\.009\d s of audio, less than one frame of 10 ms"):
        load_utterance(utterance)


def cut_off(path, stop=None):
    data = path.read_bytes()
    path.write_bytes(data[: stop or len(data) // 2])
    return path


def with_bytes(path, offset, data):
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)
    return path


def wav_with(path, sample):
    samples = tone(0.1)
    samples[7] = sample
    return write(path, samples, subtype="FLOAT")


def text_file(path):
    path.write_bytes(b"this is no audio at all")
    return path


def empty_file(path):
    path.touch()
    return path


BROKEN = {
    "missing": (lambda d: d / "a.wav", "no such file"),
    "folder": (lambda d: d, "no such file"),
    "no bytes": (lambda d: empty_file(d / "a.wav"), "cannot be decoded"),
    "no audio": (lambda d: text_file(d / "a.flac"), "cannot be decoded"),
    "no samples": (lambda d: write(d / "a.wav", tone(0.0)), "holds no audio"),
    "nan": (lambda d: wav_with(d / "a.wav", np.nan), "NaN or infinite"),
    "infinite": (lambda d: wav_with(d / "a.wav", -np.inf), "NaN or infinite"),
    "absurdly loud": (lambda d: wav_with(d / "a.wav", -1e18), "louder than 1e\\+10"),
    "raw": (lambda d: text_file(d / "a.raw"), "raw samples without a header"),
    "eight channels": (lambda d: write(d / "a.wav", np.zeros((1_600, 8))), "8 channels"),
    "rate of 100 Hz": (lambda d: write(d / "a.wav", tone(0.1), 100), "sampling rate 100 Hz"),
    "aiff": (lambda d: write(d / "a.aiff", tone(0.1)), "format AIFF is not one of"),
    "cut flac": (lambda d: cut_off(write(d / "a.flac", tone(9.0))), "cannot be decoded|cut off"),
    "cut wav": (lambda d: cut_off(write(d / "a.wav", tone(1.0))), "cut off, 16022 of 32044 bytes"),
    "cut ogg": (lambda d: cut_off(write(d / "a.ogg", tone(20.0))), "cut off, the page that ends"),
    "cut opus": (lambda d: cut_off(write(d / "a.opus", tone(9.0), **OPUS)), "cut off, the page that ends"),
    "opus without its last bytes": (
        lambda d: cut_off(write(d / "a.opus", tone(9.0), **OPUS), -5),
        "cut off, the page that ends",
    ),
    "cut mp3": (lambda d: cut_off(write(d / "a.mp3", tone(9.0))), "cut off|cannot be decoded"),
    "flac without length": (
        # Byte 21 ends with the top 4 of 36 bits that count the samples; 0 means unknown.
        lambda d: with_bytes(write(d / "a.flac", tone(1.0)), 21, bytes([0xF0, 0, 0, 0, 0])),
        "no length at all",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_audio_is_an_audio_error_that_names_the_file(tmp_path, case):
    make, message = BROKEN[case]
    path = make(tmp_path)
    with pytest.raises(AudioError, match=message) as raised:
        load_waveform(path)
    assert str(raised.value).startswith(str(path))


@pytest.mark.parametrize(
    ("riff_bytes", "data_bytes"), [(0xFFFF_FFFF, 0xFFFF_FFFF), (0x7FFF_F024, 0x7FFF_F000)]
)
def test_wav_written_into_a_pipe_has_no_size_and_is_read(tmp_path, riff_bytes, data_bytes):
    path = write(tmp_path / "a.wav", tone(1.0))
    with_bytes(path, 4, struct.pack("<I", riff_bytes))
    with_bytes(path, 40, struct.pack("<I", data_bytes))
    assert load_waveform(path).size == 16_000


@pytest.mark.parametrize(("start", "end"), [(-0.1, 0.5), (0.5, 0.5), (0.6, 0.5), (0.5, 1.1), (1.0, None)])
def test_stretch_outside_the_recording_is_refused_not_cropped(tmp_path, start, end):
    path = write(tmp_path / "a.wav", tone(1.0))
    with pytest.raises(AudioError, match="no stretch from"):
        load_waveform(path, start, end)


def test_end_of_a_list_that_was_rounded_up_is_the_end_of_the_recording(tmp_path):
    path = write(tmp_path / "a.wav", tone(1.0))
    assert np.array_equal(load_waveform(path, 0.5, 1.01), load_waveform(path, 0.5))
    for start, end in ((0.5, 1.0125), (1.0, 1.01), (1.005, 1.01)):
        with pytest.raises(AudioError, match=f"from {start:g} to {end:g} s in a recording of 1 s"):
            load_waveform(path, start, end)


def test_message_about_a_stretch_shows_what_does_not_fit(tmp_path):
    path = write(tmp_path / "a.wav", np.zeros(1_199 * 4_000 + 3_999, np.int16), 4_000)
    with pytest.raises(AudioError, match=r"to 1200\.0125 s in a recording of 1199\.99975 s"):
        load_waveform(path, 1_195.0, 1_200.0125)


def test_utterance_over_an_hour_is_refused_but_its_parts_are_read(tmp_path):
    path = write(tmp_path / "a.wav", np.zeros(3_601 * 4_000, np.int16), 4_000)
    with pytest.raises(AudioError, match="3601 s, limit 3600 s"):
        load_waveform(path)
    assert load_waveform(path, 3_600.0).size == 16_000


def test_recording_over_twelve_hours_is_refused_by_its_header(tmp_path):
    path = write(tmp_path / "a.wav", np.zeros(4_000, np.int16), 4_000)
    num_bytes = 13 * 3_600 * 8_000
    with_bytes(path, 4, struct.pack("<I", num_bytes + 36))
    with_bytes(path, 40, struct.pack("<I", num_bytes))
    os.truncate(path, num_bytes + 44)
    with pytest.raises(AudioError, match="more than 12 h"):
        recording_seconds(path)


def test_silence_bomb_is_refused_before_decoding_and_a_silent_clip_is_not(tmp_path):
    bomb = write(tmp_path / "bomb.flac", np.zeros(15 * 60 * 16_000, np.int16))
    with pytest.raises(AudioError, match="limit 200-fold"):
        load_waveform(bomb)
    assert not load_waveform(write(tmp_path / "clip.flac", np.zeros(160_000, np.int16))).any()


@pytest.mark.parametrize("name", ["a.flac", "a.wav", "a.ogg"])
@settings(max_examples=70, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_audio_raises_nothing_but_our_own_errors(tmp_path, name, data):
    path = write(tmp_path / name, tone(0.5))
    size = path.stat().st_size
    offsets = data.draw(st.lists(st.integers(0, min(size - 1, 400)), min_size=1, max_size=5))
    for offset in offsets:
        with_bytes(path, offset, bytes([data.draw(st.integers(0, 255))]))
    with suppress(DmlmError):
        assert np.isfinite(load_waveform(path)).all()


@pytest.mark.parametrize("speed", [0.8, 1.0, 1.25])
def test_speed_changes_length_and_pitch_alike(tmp_path, speed):
    path = write(tmp_path / "a.flac", tone(1.0))
    waveform = load_utterance(Utterance(key="a", source="x", split="y", audio_path=path, speed=speed))
    assert waveform.shape == (16_000 / speed,)
    spectrum = np.abs(np.fft.rfft(waveform))
    assert np.argmax(spectrum) / (len(waveform) / 16_000) == pytest.approx(440 * speed, abs=1)
