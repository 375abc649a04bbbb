"""Pretrained encoders: waveforms to activations, any layer.

How to add one: a file with an opener, a line in `encoders/registry.py`, a line in the README.
"""

from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Literal, Protocol

from dmlm.pipeline.samples import Activations, Waveform
from dmlm.pipeline.tokenizers import Fingerprint

if TYPE_CHECKING:
    import torch


class WindowMode(StrEnum):
    """What an encoder of fixed windows sees behind the end of a recording."""

    EXACT = "exact"
    """Nothing: several times faster on short recordings."""
    PADDED = "padded"
    """Silence up to 30 seconds, as Whisper was trained; the frames of the silence are dropped."""


AUTO: Final = "auto"
Layer = int | Literal["auto"] | None
"""Block counted from 1; None: the last one, after the final norm; auto: the encoder's choice."""


class Precision(StrEnum):
    """What an encoder computes in; distances to centroids are in float32 always."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    """Several times faster on a GPU; docs/codebooks.md says how many units differ."""


class SpeechEncoder(Protocol):
    """Waveforms to activations of one layer, whose frames k-means turns into units."""

    sampling_rate_hz: int
    """Rate that the waveforms must have."""
    batch_seconds: float
    """Most audio that goes through at once; results depend on it by rounding only. 0: no batches."""
    device: "torch.device"
    """Where the frames are."""
    num_layers: int
    """Blocks of the whole model, which `layer` may name; 0: it has none."""

    @property
    def fingerprint(self) -> Fingerprint:
        """Everything that the activations depend on, rounding aside."""

    def encode(self, waveforms: Iterable[Waveform]) -> Iterator[Activations]:
        """Yields the activations of each recording, in the order given; batches are formed inside."""
        for activations_FD in self.map_frames(waveforms, lambda activations_FD: activations_FD):
            yield Activations(activations_FD)

    def map_frames(
        self, waveforms: Iterable[Waveform], function: "Callable[[torch.Tensor], torch.Tensor]"
    ) -> "Iterator[torch.Tensor]":
        """Yields `function` of each recording's frames; it maps [F, D] to [F, …], each frame by itself."""
