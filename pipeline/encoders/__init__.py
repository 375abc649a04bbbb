"""Pretrained encoders: waveforms to activations, any layer."""

from enum import StrEnum


class WindowMode(StrEnum):
    """What an encoder of fixed windows sees behind the end of a recording."""

    EXACT = "exact"
    """Nothing: several times faster on short recordings."""
    PADDED = "padded"
    """Silence up to 30 seconds, as Whisper was trained; the frames of the silence are dropped."""
