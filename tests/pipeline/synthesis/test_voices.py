import sys
from dataclasses import replace

import numpy as np
import pytest

from dmlm.pipeline.errors import ConfigError, MissingDependencyError
from dmlm.pipeline.synthesis.espeak import ItalianVoice, make_italian_speakers
from dmlm.pipeline.synthesis.speech import (
    LOUDNESS_RMS,
    SAMPLING_RATE_HZ,
    EnglishVoice,
    Speaker,
    duration_seconds,
    encode_audio,
    make_speakers,
)

TEXT = "the farmer carries seven baskets"
PLAIN = Speaker(name="1", pitch=1.0, tempo=1.0)


@pytest.fixture(scope="module")
def voice() -> EnglishVoice:
    return EnglishVoice()


def spectral_centroid_hz(waveform: np.ndarray) -> float:
    power = np.abs(np.fft.rfft(waveform)) ** 2
    return float((power * np.fft.rfftfreq(len(waveform), 1 / SAMPLING_RATE_HZ)).sum() / power.sum())


def test_same_arguments_give_the_same_samples(voice: EnglishVoice) -> None:
    first = voice.speak(TEXT, PLAIN, noise_seed=1)
    voice.speak("something else", PLAIN, noise_seed=2)
    assert np.array_equal(first, voice.speak(TEXT, PLAIN, noise_seed=1))
    assert not np.array_equal(first, voice.speak(TEXT, PLAIN, noise_seed=2))


def test_pitch_moves_the_spectrum_more_than_the_tempo(voice: EnglishVoice) -> None:
    low, high = (voice.speak(TEXT, replace(PLAIN, pitch=pitch), noise_seed=1) for pitch in (0.85, 1.18))
    assert spectral_centroid_hz(high) > 1.1 * spectral_centroid_hz(low)
    assert duration_seconds(high) == pytest.approx(duration_seconds(low), rel=0.2)


def test_tempo_shortens_speech(voice: EnglishVoice) -> None:
    fast = voice.speak(TEXT, replace(PLAIN, tempo=1.25), noise_seed=1)
    slow = voice.speak(TEXT, PLAIN, noise_seed=1)
    assert duration_seconds(fast) == pytest.approx(duration_seconds(slow) / 1.25, rel=0.1)


def test_speech_is_as_loud_as_planned(voice: EnglishVoice) -> None:
    waveform = voice.speak(TEXT, PLAIN, noise_seed=1)
    assert waveform.dtype == np.float32
    assert np.sqrt(np.mean(waveform**2)) == pytest.approx(LOUDNESS_RMS, rel=0.02)
    assert np.abs(waveform).max() < 1


def test_text_without_sound_is_refused_by_name(voice: EnglishVoice) -> None:
    with pytest.raises(ConfigError, match="漢字"):
        voice.speak("漢字", PLAIN, noise_seed=1)


def test_speakers_differ_and_depend_on_the_seed() -> None:
    speakers = make_speakers(0)
    assert speakers == make_speakers(0)
    assert speakers != make_speakers(1)
    assert len({speaker.pitch for speaker in speakers}) == len({s.tempo for s in speakers}) == 12


def test_italian_is_the_same_in_every_new_voice() -> None:
    speakers = make_italian_speakers(0)
    sentences = ("Maria compra una mela rossa.", "Perché il medico guarda la chiave d'oro?")
    runs = []
    for _ in range(2):
        with ItalianVoice() as italian:
            runs.append([italian.speak(s, speaker) for s in sentences for speaker in speakers[:2]])
    assert all(np.array_equal(first, second) for first, second in zip(*runs, strict=True))
    assert all(0.8 < duration_seconds(waveform) < 6 for waveform in runs[0])
    assert all(np.sqrt(np.mean(w**2)) == pytest.approx(LOUDNESS_RMS, rel=0.02) for w in runs[0])


def test_italian_accents_are_spoken() -> None:
    speaker = make_italian_speakers(0)[0]
    with ItalianVoice() as italian:
        plain, accented = (italian.speak(f"{word} compra", speaker) for word in ("perche", "perché"))
    assert not np.array_equal(plain, accented)
    assert abs(duration_seconds(plain) - duration_seconds(accented)) < 0.5


@pytest.mark.parametrize(
    ("package", "start"), [("hibari", EnglishVoice), ("espeakng_loader", ItalianVoice().__enter__)]
)
def test_missing_voice_names_the_extra(package: str, start: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=r"dmlm\[sample\]"):
        start()  # type: ignore[operator]


@pytest.mark.parametrize("format_name", ["FLAC", "WAV", "MP3"])
def test_encoded_audio_is_reproducible_and_keeps_its_length(format_name: str) -> None:
    import io

    import soundfile

    tone = (0.3 * np.sin(np.arange(16_000) * 0.1)).astype(np.float32)
    data = encode_audio(tone, format_name)
    assert data == encode_audio(tone, format_name)
    decoded, rate_hz = soundfile.read(io.BytesIO(data), dtype="float32")
    assert (rate_hz, len(decoded)) == (16_000, 16_000)
