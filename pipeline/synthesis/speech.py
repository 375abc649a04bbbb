"""The English voice and the speakers made of it: text -> 16 kHz waveform -> bytes of an audio file.

Speakers differ in pitch and tempo. Pitch is changed by resampling, which moves the formants too, as a longer
or shorter vocal tract does; the voice's own speed makes up for the change of length.
"""

import io
from dataclasses import dataclass

import numpy as np

from dmlm.pipeline.errors import ConfigError, MissingDependencyError
from dmlm.pipeline.randomness import generator_for
from dmlm.pipeline.samples import Waveform

SAMPLING_RATE_HZ = 16_000
LOUDNESS_RMS = 0.07
"""Root mean square of every utterance; full scale is 1."""
PEAK = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class Variety:
    """How many speakers there are and how much they differ."""

    num_speakers: int
    pitches: tuple[float, float]
    """Lowest and highest."""
    tempos: tuple[float, float]
    """Slowest and fastest."""


SIMILAR = Variety(num_speakers=12, pitches=(0.92, 1.09), tempos=(1.0, 1.2))
DIFFERENT = Variety(num_speakers=48, pitches=(0.86, 1.18), tempos=(0.9, 1.3))
"""For models that shall understand others than this voice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """One way to use the English voice; 1.0 leaves pitch and tempo as they are."""

    name: str
    pitch: float
    tempo: float

    @property
    def description(self) -> str:
        """For the corpora's lists of speakers."""
        return f"synthetic: hibari voice heart, pitch {self.pitch:.3f}, tempo {self.tempo:.3f}"


def make_speakers(seed: int, variety: Variety = SIMILAR) -> tuple[Speaker, ...]:
    """Speakers evenly spread over pitch and over tempo."""
    rng = generator_for(seed, "sample", "speakers")
    pitches = np.geomspace(*variety.pitches, variety.num_speakers)
    tempos = rng.permutation(np.linspace(*variety.tempos, variety.num_speakers))
    return tuple(
        Speaker(name=f"{9001 + index}", pitch=round(float(pitch), 3), tempo=round(float(tempo), 3))
        for index, (pitch, tempo) in enumerate(zip(rng.permutation(pitches), tempos, strict=True))
    )


class EnglishVoice:
    """The neural voice of the package hibari-tts; safe to share between threads."""

    def __init__(self) -> None:
        """Loads the voice, which lies in the package.

        Raises:
            MissingDependencyError: hibari-tts is not installed.
        """
        try:
            from hibari import Hibari
        except ImportError as error:
            raise MissingDependencyError(
                'the English sample voice needs hibari-tts: pip install "dmlm[sample]"'
            ) from error
        self._voice = Hibari(threads=1)
        self._voice.phonemize("load the lexicon before threads do")

    def speak(self, text: str, speaker: Speaker, noise_seed: int) -> Waveform:
        """Waveform of `text` at 16 kHz, the same for the same arguments.

        Raises:
            ConfigError: The voice knows no sound for any of it.
        """
        import soxr

        spoken = self._voice(text, speed=speaker.tempo / speaker.pitch, seed=noise_seed)
        if not spoken.size:
            raise ConfigError(f"the English voice cannot speak {text[:60]!r}; remove the line")
        spoken_rate_hz = round(self._voice.sample_rate * speaker.pitch)
        return level(soxr.resample(spoken, spoken_rate_hz, SAMPLING_RATE_HZ))


def level(waveform: Waveform) -> Waveform:
    """Brings a waveform to the common loudness."""
    rms = float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))
    scaled = waveform * np.float32(LOUDNESS_RMS / max(rms, 1e-6))
    return scaled.clip(-PEAK, PEAK)


def encode_audio(waveform: Waveform, format_name: str) -> bytes:
    """Bytes of a mono 16 kHz file; `format_name` is FLAC, WAV (both 16 bit) or MP3."""
    import soundfile

    buffer = io.BytesIO()
    subtype = "MPEG_LAYER_III" if format_name == "MP3" else "PCM_16"
    soundfile.write(buffer, waveform, SAMPLING_RATE_HZ, format=format_name, subtype=subtype)
    return buffer.getvalue()


def duration_seconds(waveform: Waveform) -> float:
    """Length of a 16 kHz waveform."""
    return len(waveform) / SAMPLING_RATE_HZ
