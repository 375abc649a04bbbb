"""The Italian voice: espeak-ng, a GPL library that is loaded when it is there and never shipped with dmlm."""

import ctypes
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from dmlm.pipeline.errors import DmlmError, MissingDependencyError
from dmlm.pipeline.randomness import generator_for
from dmlm.pipeline.samples import Waveform
from dmlm.pipeline.synthesis.speech import SAMPLING_RATE_HZ, level

NUM_SPEAKERS = 8
SLOWEST_RATE, FASTEST_RATE = 140, 175
LOWEST_PITCH, HIGHEST_PITCH = 25, 75

# Names and values of espeak-ng's speak_lib.h.
AUDIO_OUTPUT_SYNCHRONOUS = 2
ESPEAK_CHARS_UTF8 = 1
ESPEAK_RATE, ESPEAK_PITCH = 1, 3

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True, slots=True, kw_only=True)
class ItalianSpeaker:
    """One way to use espeak-ng's Italian voice: words per minute, and pitch from 0 to 99."""

    name: str
    rate: int
    pitch: int


def make_italian_speakers(seed: int) -> tuple[ItalianSpeaker, ...]:
    """Eight speakers, evenly spread over rate and over pitch."""
    rng = generator_for(seed, "sample", "italian speakers")
    rates = rng.permutation(np.linspace(SLOWEST_RATE, FASTEST_RATE, NUM_SPEAKERS).round())
    pitches = rng.permutation(np.linspace(LOWEST_PITCH, HIGHEST_PITCH, NUM_SPEAKERS).round())
    return tuple(
        ItalianSpeaker(name=f"it-{number}", rate=int(rate), pitch=int(pitch))
        for number, (rate, pitch) in enumerate(zip(rates, pitches, strict=True), 1)
    )


class ItalianVoice:
    """Speaks Italian, one call after the other: the same calls in the same order give the same samples.

    espeak-ng keeps the state of its voice in global variables that nothing resets. Every ItalianVoice
    therefore loads a copy of the library of its own, which starts from the beginning.
    """

    def __enter__(self) -> Self:
        """Loads the library."""
        with ExitStack() as stack:
            folder = tempfile.TemporaryDirectory(prefix="dmlm-espeak-", ignore_cleanup_errors=True)
            self._start(Path(stack.enter_context(folder)))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        """Removes the copy."""
        self._library.espeak_Terminate()
        self._stack.close()

    def _start(self, folder: Path) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise MissingDependencyError(
                'the Italian sample voice needs espeakng-loader: pip install "dmlm[sample]"'
            ) from error
        copy = str(shutil.copy(espeakng_loader.get_library_path(), folder))
        self._library = ctypes.CDLL(copy)
        data_path = espeakng_loader.get_data_path().encode()
        self._rate_hz = self._library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, data_path, 0)
        if self._rate_hz <= 0 or self._library.espeak_SetVoiceByName(b"it") != 0:
            raise DmlmError(
                f"espeak-ng has no Italian voice in {data_path.decode()}; reinstall espeakng-loader"
            )
        self._chunks: list[bytes] = []
        # Kept on the object: espeak-ng holds only the address.
        self._callback = _Callback(self._receive)
        self._library.espeak_SetSynthCallback(self._callback)

    def speak(self, text: str, speaker: ItalianSpeaker) -> Waveform:
        """Waveform of `text` at 16 kHz."""
        import soxr

        self._chunks.clear()
        self._library.espeak_SetParameter(ESPEAK_RATE, speaker.rate, 0)
        self._library.espeak_SetParameter(ESPEAK_PITCH, speaker.pitch, 0)
        data = text.encode()
        size = ctypes.c_size_t(len(data) + 1)
        status = self._library.espeak_Synth(data, size, 0, 1, 0, ESPEAK_CHARS_UTF8, None, None)
        spoken = np.frombuffer(b"".join(self._chunks), np.int16).astype(np.float32) / 2**15
        if status != 0 or not spoken.size:
            raise DmlmError(
                f"espeak-ng could not speak {text!r} (status {status}); reinstall espeakng-loader"
            )
        return level(soxr.resample(spoken, self._rate_hz, SAMPLING_RATE_HZ))

    def _receive(
        self, samples: "ctypes._Pointer[ctypes.c_short] | None", count: int, events: int | None
    ) -> int:
        if samples and count > 0:
            self._chunks.append(ctypes.string_at(samples, 2 * count))
        return 0
