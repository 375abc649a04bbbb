"""The data types that flow through the house, in the order of the flow.

source -> Utterance | ImageCaption | TextLine | UnitLine | Skipped | Broken
       -> waveform or pixels -> Activations -> Units -> Sample -> shard

Suffixes of arrays: F frame, P image position (raster order), N text position, D width.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

TokenArray = npt.NDArray[np.int32]
"""1-D modality-local token ids."""
Waveform = npt.NDArray[np.float32]
"""1-D mono samples in [-1, 1]."""
Pixels = npt.NDArray[np.uint8]
"""Height × width × 3, RGB."""


class Modality(StrEnum):
    """A kind of token, in the order of the vocabulary."""

    TEXT = "text"
    SPEECH = "speech"
    IMAGE = "image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterance:
    """A stretch of speech in a corpus, with what the corpus says about it."""

    key: str
    """Unique within the data set; letters, digits, `_` and `-` only (it names tar members)."""
    source: str
    split: str
    audio_path: Path
    start_seconds: float = 0.0
    end_seconds: float | None = None
    """None: to the end of the recording."""
    text: str | None = None
    """As the corpus has it; None or empty: speech only."""
    language: str | None = None
    """Language spoken, an ISO code such as `en`."""
    translation: str | None = None
    translation_language: str | None = None
    speaker: str | None = None
    recording_id: str | None = None
    overlap_seconds: float | None = None
    """Seconds during which somebody else speaks too; None: the corpus does not say."""
    speed: float = 1.0
    """How fast it is played; pitch follows, as with a tape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageCaption:
    """An image and one caption of it; several captions of an image follow each other."""

    key: str
    source: str
    split: str
    image_path: Path
    image_id: str
    text: str | None = None
    language: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """An item that the corpus itself leaves out: counted and named, never an error."""

    key: str
    source: str
    split: str
    reason: str
    recording_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """An item whose annotation cannot be read: quarantined, counts against the budget."""

    key: str
    source: str
    split: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TextLine:
    """Text without speech or image."""

    key: str
    source: str
    split: str
    text: str
    language: str | None = None
    translation: str | None = None
    translation_language: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitInventory:
    """Speech units that somebody else made: all that is known of their tokenizer."""

    name: str
    """Units of one name fit together; whoever gives the name vouches for that."""
    num_tokens: int

    @property
    def fingerprint(self) -> dict[str, str | int | float | bool | None]:
        """What data sets of these units are compared by."""
        return {"tokenizer": "units", "name": self.name, "num_tokens": self.num_tokens}


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitLine:
    """Speech that comes as units already."""

    key: str
    source: str
    split: str
    units: str
    """Decimal ids with spaces between them, each in the range of the inventory."""
    inventory: UnitInventory
    text: str | None = None
    language: str | None = None


SourceItem = Utterance | ImageCaption | TextLine | UnitLine | Skipped | Broken


@dataclass(frozen=True, slots=True, eq=False)
class Activations:
    """What an encoder made of one recording, before it is quantised."""

    activations_FD: "torch.Tensor"
    """float32, on the encoder's device."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One sample of a shard: token arrays and the json beside them."""

    key: str
    source: str
    split: str
    text: str | None = None
    """Raw text of the corpus, before the text rule."""
    language: str | None = None
    translation: str | None = None
    translation_language: str | None = None
    speaker: str | None = None
    recording_id: str | None = None
    duration_seconds: float | None = None
    overlap_seconds: float | None = None
    image_id: str | None = None
    speech_tokens: TokenArray | None = None
    """One unit per encoder frame, not de-duplicated."""
    image_tokens: TokenArray | None = None
    text_tokens: TokenArray | None = None
    translation_tokens: TokenArray | None = None
