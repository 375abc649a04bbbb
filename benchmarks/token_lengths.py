"""Lengths like those of the corpora: seconds of speech, and tokens of text and images per sample.

The shapes follow what is published of the corpora: LibriSpeech's utterances crowd below 17 s (12.3 s on
average) with 15 letters a second, AMI's segments are short with a long tail, a COCO caption has about 52
letters, clips of CoVoST 2 are taken as 2 to 8 s. Speech has 50 units a second, an image 256 codes, text a
token for every two letters (`bpe:400`).
"""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import numpy as np


class Lengths(NamedTuple):
    """Tokens of one sample."""

    speech: int = 0
    image: int = 0
    text: int = 0


def draw_librispeech(rng: np.random.Generator) -> Lengths:
    seconds = min(rng.normal(14.3, 1.3), 17.0) if rng.random() < 0.7 else rng.uniform(2, 14)
    return Lengths(speech=int(seconds * 50), text=int(seconds * 15 / 2))


def draw_ami(rng: np.random.Generator) -> Lengths:
    seconds = float(np.clip(rng.lognormal(0.5, 0.9), 0.3, 30))
    return Lengths(speech=int(seconds * 50), text=max(int(seconds * 14 / 2), 1))


def draw_covost(rng: np.random.Generator) -> Lengths:
    seconds = rng.uniform(2, 8)
    return Lengths(speech=int(50 * seconds), text=int(7 * seconds))


def draw_coco(rng: np.random.Generator) -> Lengths:
    return Lengths(image=256, text=int(rng.integers(20, 40)))


CORPORA: Final[Mapping[str, Callable[[np.random.Generator], Lengths]]] = {
    "librispeech": draw_librispeech,
    "ami": draw_ami,
    "coco": draw_coco,
}
