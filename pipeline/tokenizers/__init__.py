"""Tokenizers: waveforms, pixels and strings to modality-local token ids.

A tokenizer's `fingerprint` is a flat json-able mapping of everything that its ids depend on
(weights' sha256, layer, window mode, batch size, codebook sha256 ...). Two data sets fit together
only if their fingerprints are equal.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, Protocol

from dmlm.pipeline.errors import FingerprintMismatchError
from dmlm.pipeline.samples import Modality, Pixels, TokenArray, Waveform

Fingerprint = Mapping[str, str | int | float | bool | None]

UNITS_PER_SECOND: Final = 50
"""Of every speech tokenizer that dmlm has; units that somebody else made may be fewer or more."""


def first_difference(one: Fingerprint, other: Fingerprint) -> str | None:
    """Name of the first part, by the alphabet, in which two fingerprints differ; None where none does."""
    return next((name for name in sorted({*one, *other}) if one.get(name) != other.get(name)), None)


def check_same_tokens(
    modality: Modality, one: tuple[Path, Fingerprint], other: tuple[Path, Fingerprint]
) -> None:
    """Checks that two data sets, each its folder and its fingerprint of `modality`, fit together.

    Raises:
        FingerprintMismatchError: They do not; the message names both and says what would make them fit.
    """
    (here, ours), (there, theirs) = one, other
    name = first_difference(ours, theirs)
    if name is None:
        return
    advice = "run `dmlm-cli tokenize` on both with one --codebook"
    if _came_as_units(ours) and _came_as_units(theirs):
        advice = (
            "these units were made elsewhere: if both are of one codebook, run `dmlm-cli tokenize` on both "
            "with the same --units-name and --num-units"
        )
    elif _came_as_units(ours) or _came_as_units(theirs):
        units, others = (here, there) if _came_as_units(ours) else (there, here)
        raise FingerprintMismatchError(
            f"{modality} tokens differ: those of {units} were made elsewhere, and those of {others} by dmlm; "
            "use one of them"
        )
    raise FingerprintMismatchError(
        f"{modality} tokens differ: {name} is {ours.get(name)} in {here} and {theirs.get(name)} in {there}; "
        f"{advice}"
    )


def _came_as_units(fingerprint: Fingerprint) -> bool:
    return fingerprint.get("tokenizer") == "units"


class SpeechTokenizer(Protocol):
    """Waveforms to units."""

    @property
    def num_tokens(self) -> int:
        """Size of the codebook; every id is in [0, num_tokens)."""

    @property
    def sampling_rate_hz(self) -> int:
        """Rate that `encode` expects its waveforms in."""

    @property
    def fingerprint(self) -> Fingerprint:
        """Everything that the units depend on."""

    def encode(self, waveforms: Iterable[Waveform]) -> Iterator[TokenArray]:
        """Yields the units of each waveform, in the order given; batches are formed inside."""


class ImageTokenizer(Protocol):
    """Pixels to image tokens, and back to look at what they kept."""

    @property
    def num_tokens(self) -> int:
        """Number of codes; every id is in [0, num_tokens)."""

    @property
    def fingerprint(self) -> Fingerprint:
        """Everything that the tokens depend on."""

    def encode(self, images: Iterable[Pixels]) -> Iterator[TokenArray]:
        """Yields the tokens of each image in raster order, in the order given."""

    def decode(self, tokens: TokenArray) -> Pixels:
        """Image that the tokens stand for."""


class TextTokenizer(Protocol):
    """Strings to text tokens and back; the text rule was applied before."""

    @property
    def num_tokens(self) -> int:
        """Number of entries; every id is in [0, num_tokens)."""

    @property
    def bos_id(self) -> int:
        """Token that starts a sequence."""

    @property
    def eos_id(self) -> int:
        """Token that ends a sequence."""

    @property
    def fingerprint(self) -> Fingerprint:
        """Everything that the ids depend on."""

    def encode(self, text: str) -> TokenArray:
        """Ids of `text`, without BOS or EOS."""

    def decode(self, tokens: TokenArray) -> str:
        """Text of the ids; special tokens are left out."""

    def save(self, directory: Path) -> None:
        """Writes a folder that `load_text_tokenizer` and transformers' AutoTokenizer read."""
