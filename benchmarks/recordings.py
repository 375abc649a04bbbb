"""Recordings for the benchmarks: real ones where they are, else sample speech cut to the same lengths.

Real ones are slices of the corpora in $DMLM_REAL_DATA or in ../shared/data. `ami` are the segments that lie
within the recorded 30 s of each meeting, which are short; `ami-all` is cut from their audio to the lengths of
all segments in the annotations. Recordings over 30 s are left out: a loop would have to cut them.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr

from dmlm.pipeline.audio import SAMPLING_RATE_HZ, load_utterance
from dmlm.pipeline.samples import Utterance, Waveform
from dmlm.pipeline.sources import open_source

REPOSITORY = Path(__file__).parent.parent
MAX_SECONDS = 30.0
LENGTH_DECILES = {
    "librispeech": (2.35, 3.53, 4.3, 4.47, 5.55, 6.84, 7.96, 9.85, 13.05, 16.56, 22.75),
    "ami": (0.27, 0.44, 0.55, 0.63, 0.78, 0.99, 1.45, 1.81, 2.53, 4.24, 8.86),
    "ami-all": (0.3, 0.46, 0.59, 0.79, 1.2, 1.82, 2.77, 4.11, 6.4, 11.42, 30.0),
}
"""Seconds, from the shortest to the longest: 50 utterances of test-other, 66 segments, and 8,476 segments of
the 11 meetings annotated there, what is longer than 30 s counted as 30 s."""
SPLITS = {"librispeech": ("test-other",), "ami": None}
SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "Seven plus two is nine, not ten.",
    "She sells sea shells by the shore.",
)


def open_recordings(name: str, limit: int, scratch: Path) -> list[Utterance]:
    """At most `limit` recordings of a kind, evenly drawn; what has to be cut goes to `scratch` as FLAC."""
    root = Path(os.environ.get("DMLM_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    has_real = (root / "LibriSpeech" / "test-other").is_dir() and (root / "ami").is_dir()
    if has_real and name in SPLITS:
        items = [item for item in _iter_real(name, root) if _seconds(item) <= MAX_SECONDS]
        return [items[index] for index in _spread(len(items), limit)]
    speech = [load_utterance(item) for item in _iter_real("ami", root)] if has_real else list(_speak())
    return list(_cut(name, np.concatenate(speech), limit, scratch))


def _iter_real(name: str, root: Path) -> Iterator[Utterance]:
    for item in open_source(name, root, SPLITS[name]).iter_items():
        if isinstance(item, Utterance):
            yield item


def _seconds(item: Utterance) -> float:
    if item.end_seconds is None:
        return float(soundfile.info(item.audio_path).duration)
    return item.end_seconds - item.start_seconds


def _spread(num_items: int, limit: int) -> Sequence[int]:
    return np.linspace(0, num_items - 1, min(limit, num_items)).round().astype(int).tolist()


def _speak() -> Iterator[Waveform]:
    from hibari import Hibari

    voice = Hibari()
    for seed, sentence in enumerate(SENTENCES):
        waveform = np.asarray(voice(sentence, seed=seed), np.float32).ravel()
        yield soxr.resample(waveform, 24_000, SAMPLING_RATE_HZ)


def _cut(name: str, speech: Waveform, limit: int, scratch: Path) -> Iterator[Utterance]:
    """Recordings of the published lengths, each from another place of the speech, which is a ring."""
    deciles = LENGTH_DECILES[name]
    lengths = np.interp(np.linspace(0, len(deciles) - 1, limit), range(len(deciles)), deciles)
    starts = np.random.default_rng(0).integers(0, len(speech), limit)
    for index, (seconds, start) in enumerate(zip(lengths, starts, strict=True)):
        places = np.arange(start, start + round(seconds * SAMPLING_RATE_HZ)) % len(speech)
        path = scratch / f"{name}-{index:03d}.flac"
        soundfile.write(path, speech[places], SAMPLING_RATE_HZ)
        yield Utterance(key=path.stem, source=name, split="test", audio_path=path)
