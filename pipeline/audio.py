"""Safe decoding of audio: a stretch of a recording to a mono waveform at the rate asked for.

Limits are checked on the header, before anything is decoded, and what is decoded goes through in blocks:
beside the waveform itself only a few megabytes are in memory. The same bytes give the same samples.
"""

import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dmlm.pipeline.errors import AudioError
from dmlm.pipeline.samples import Utterance, Waveform

SAMPLING_RATE_HZ = 16_000
"""Rate that every speech tokenizer here works at."""

FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")
"""Containers that are decoded, in libsndfile's names; Opus and Vorbis come in OGG."""
MAX_CHANNELS = 2
"""The mean of a microphone array's channels is not speech that anybody heard, so arrays are refused."""
MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 192_000
MAX_UTTERANCE_SECONDS = 3_600
MAX_RECORDING_SECONDS = 12 * 3_600
MAX_OVERHANG_SECONDS = 0.01
"""So far may the end of a stretch lie beyond that of the recording: lists have rounded durations."""
MAX_EXPANSION = 200
"""Decoded bytes (16 bit) per byte of the file, for recordings of more than `MIN_EXPANDED_BYTES`."""
MIN_EXPANDED_BYTES = 16 << 20
"""Digital silence in FLAC expands 700-fold; where little comes out that is harmless."""
MAX_PEAK = 1e10
"""Full scale is 1, and 2^31 where 32 bits were not scaled; Whisper's features overflow from about 1e18 on."""
FRAMES_PER_SECOND = 100
"""An utterance must fill one frame of 10 ms."""
BLOCK_SAMPLES = 1 << 18
"""Decoded and resampled at a time; the waveform does not depend on it."""

_RIFF_SIZE_UNKNOWN = (0, 0xFFFF_FFFF, *range(0x7FFF_F000, 0x7FFF_F100))
"""What writers into a pipe leave in the RIFF header; SoX and eSpeak 2 GiB and their header."""
_OGG_PAGE = re.compile(rb"OggS\0([\0-\7]).{20}(.)", re.DOTALL)
"""Header of a page: its flags, and the size of the table that follows, of the sizes of its segments."""
_OGG_ENDS_STREAM = 4
_MAX_OGG_PAGE_BYTES = 27 + 255 + 255 * 255


def load_waveform(
    path: Path,
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
    sampling_rate_hz: int = SAMPLING_RATE_HZ,
) -> Waveform:
    """Mono float32 samples of a stretch of a recording: mean of the channels, resampled by soxr (HQ).

    Args:
        path: WAV, FLAC, MP3 or OGG (Vorbis, Opus).
        start_seconds: Where the stretch starts; everything before is skipped by seeking.
        end_seconds: Where it ends; None, or at most 10 ms beyond: at the end of the recording.
        sampling_rate_hz: Rate of the samples returned.

    Raises:
        AudioError: Missing, undecodable, cut off, too short, not finite or over a limit.
    """
    return _load(path, start_seconds, end_seconds, sampling_rate_hz, sampling_rate_hz // FRAMES_PER_SECOND)


def load_utterance(utterance: Utterance, sampling_rate_hz: int = SAMPLING_RATE_HZ) -> Waveform:
    """Mono float32 samples of an utterance at its speed.

    Raises:
        AudioError: As `load_waveform`.
    """
    # More samples than the rate asks for, played at that rate, are slower speech.
    rate_hz = round(sampling_rate_hz / utterance.speed)
    stretch = utterance.audio_path, utterance.start_seconds, utterance.end_seconds
    return _load(*stretch, rate_hz, sampling_rate_hz // FRAMES_PER_SECOND)


def _load(
    path: Path, start_seconds: float, end_seconds: float | None, sampling_rate_hz: int, min_samples: int
) -> Waveform:
    with _open_recording(path) as file:
        start, stop = _locate_stretch(path, file, start_seconds, end_seconds)
        rate_hz = file.samplerate
        blocks = _resample(_decode_mono(path, file, start, stop), rate_hz, sampling_rate_hz)
        # The resampler rounds the length its own way.
        waveform = _collect(blocks, 1 + math.ceil((stop - start) * sampling_rate_hz / rate_hz))
    if waveform.size < min_samples:
        heard_seconds = waveform.size / (min_samples * FRAMES_PER_SECOND)
        raise AudioError(f"{path}: {heard_seconds:.4f} s of audio, less than one frame of 10 ms")
    return waveform


def recording_seconds(path: Path) -> float:
    """Length of a recording by its header.

    Raises:
        AudioError: Missing, undecodable or over a limit.
    """
    with _open_recording(path) as file:
        return float(file.frames / file.samplerate)


@contextmanager
def _open_recording(path: Path) -> Iterator[Any]:
    import soundfile

    if not path.is_file():
        raise AudioError(f"{path}: no such file")
    if path.suffix.lower() == ".raw":
        raise AudioError(f"{path}: raw samples without a header; convert them to WAV or FLAC")
    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:  # a name need not be UTF-8
            _check_header(path, file)
            yield file
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{path}: cannot be decoded ({error.error_string})") from error
    except soundfile.SoundFileError as error:
        raise AudioError(f"{path}: cannot be decoded ({error})") from error


def _check_header(path: Path, file: Any) -> None:
    if file.format not in FORMATS:
        raise AudioError(f"{path}: format {file.format} is not one of {', '.join(FORMATS)}")
    if file.channels > MAX_CHANNELS:
        raise AudioError(f"{path}: {file.channels} channels; give one channel or a mix")
    if not MIN_RATE_HZ <= file.samplerate <= MAX_RATE_HZ:
        raise AudioError(
            f"{path}: sampling rate {file.samplerate} Hz is not in [{MIN_RATE_HZ}, {MAX_RATE_HZ}]"
        )
    if file.frames > MAX_RECORDING_SECONDS * file.samplerate:
        raise AudioError(f"{path}: the header states more than 12 h or no length at all")
    num_bytes = path.stat().st_size
    decoded_bytes = file.frames * file.channels * 2
    if decoded_bytes > max(MIN_EXPANDED_BYTES, MAX_EXPANSION * num_bytes):
        raise AudioError(
            f"{path}: {num_bytes} bytes claim to hold {decoded_bytes}; limit {MAX_EXPANSION}-fold"
        )
    if file.format.startswith("WAV"):
        _check_riff_size(path, num_bytes)
    if file.format == "OGG":
        _check_last_page(path, num_bytes)


def _check_riff_size(path: Path, num_bytes: int) -> None:
    """Refuses a WAV that was cut off: its header tells, but libsndfile reads it without a word."""
    with path.open("rb") as file:
        header = file.read(8)
    stated = int.from_bytes(header[4:8], "little")
    if header[:4] == b"RIFF" and stated not in _RIFF_SIZE_UNKNOWN and stated + 8 > num_bytes:
        raise AudioError(f"{path}: cut off, {num_bytes} of {stated + 8} bytes are there")


def _check_last_page(path: Path, num_bytes: int) -> None:
    """Refuses an OGG that was cut off: libsndfile reads what is there as if it were all."""
    with path.open("rb") as file:
        file.seek(max(0, num_bytes - _MAX_OGG_PAGE_BYTES))
        tail = file.read()
    pages = list(_OGG_PAGE.finditer(tail))
    if pages and pages[-1][1][0] & _OGG_ENDS_STREAM:
        start = pages[-1].end()
        body = start + pages[-1][2][0]
        if body + sum(tail[start:body]) <= len(tail):
            return
    raise AudioError(f"{path}: cut off, the page that ends an OGG stream is not there or not whole")


def _locate_stretch(
    path: Path, file: Any, start_seconds: float, end_seconds: float | None
) -> tuple[int, int]:
    """Half-open range of the file's own samples."""
    rate_hz = file.samplerate
    if file.frames == 0:
        raise AudioError(f"{path}: holds no audio")
    start = round(start_seconds * rate_hz)
    end = file.frames if end_seconds is None else round(end_seconds * rate_hz)
    stop = min(end, file.frames)
    if not 0 <= start < stop or end - stop > MAX_OVERHANG_SECONDS * rate_hz:
        raise AudioError(
            f"{path}: no stretch from {start / rate_hz:.10g} to {end / rate_hz:.10g} s "
            f"in a recording of {file.frames / rate_hz:.10g} s"
        )
    if stop - start > MAX_UTTERANCE_SECONDS * rate_hz:
        raise AudioError(f"{path}: {(stop - start) / rate_hz:.0f} s, limit {MAX_UTTERANCE_SECONDS} s; cut it")
    return start, stop


def _decode_mono(path: Path, file: Any, start: int, stop: int) -> Iterator[Waveform]:
    """Yields the samples from `start` to `stop`, the mean of the channels."""
    file.seek(start)
    for position in range(start, stop, BLOCK_SAMPLES):
        num_samples = min(BLOCK_SAMPLES, stop - position)
        samples = file.read(num_samples, dtype="float32", always_2d=True)
        if len(samples) < num_samples:
            num_decoded = position - start + len(samples)
            raise AudioError(f"{path}: cut off, {num_decoded} of {stop - start} samples can be decoded")
        if not np.abs(samples).max() <= MAX_PEAK:  # nor NaN
            raise AudioError(f"{path}: holds samples that are NaN or infinite, or louder than {MAX_PEAK:.0e}")
        yield samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)


def _resample(blocks: Iterable[Waveform], rate_hz: int, target_rate_hz: int) -> Iterator[Waveform]:
    import soxr

    if rate_hz == target_rate_hz:
        yield from blocks
        return
    stream = soxr.ResampleStream(rate_hz, target_rate_hz, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.empty(0, np.float32), last=True)


def _collect(blocks: Iterable[Waveform], max_samples: int) -> Waveform:
    """One waveform of all blocks, without holding them beside it."""
    waveform = np.empty(max_samples, np.float32)
    size = 0
    for block in blocks:
        waveform[size : size + len(block)] = block
        size += len(block)
    return waveform[:size]
