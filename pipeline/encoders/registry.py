"""Encoders by name: `whisper:tiny.en`, `hubert:PATH`, `mfcc`.

A new family is one file with an opener `open_…(name, *, layer, device)` and one line in `FAMILIES`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from dmlm.pipeline.encoders import AUTO, Layer, Precision, SpeechEncoder, WindowMode
from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.suggestions import did_you_mean

WHISPER = "whisper"


@dataclass(frozen=True, slots=True)
class EncoderFamily:
    """Where the opener of a family is, and what the family can be asked for."""

    module: str
    """Imported when an encoder of the family is opened, never before."""
    opener: str
    has_windows: bool = False
    """Whether it was trained on windows of a fixed length, so that `--window` means something."""
    has_precisions: bool = False
    """Whether it can compute in less than float32."""


FAMILIES: Mapping[str, EncoderFamily] = {
    WHISPER: EncoderFamily(
        "dmlm.pipeline.encoders.whisper", "open_whisper_encoder", has_windows=True, has_precisions=True
    ),
    "wav2vec2": EncoderFamily("dmlm.pipeline.encoders.wav2vec2", "open_wav2vec2_encoder"),
    "hubert": EncoderFamily("dmlm.pipeline.encoders.wav2vec2", "open_wav2vec2_encoder"),
    "wavlm": EncoderFamily("dmlm.pipeline.encoders.wav2vec2", "open_wav2vec2_encoder"),
    "mfcc": EncoderFamily("dmlm.pipeline.encoders.mfcc", "open_mfcc_encoder"),
}


def open_encoder(
    name: str,
    *,
    layer: Layer,
    window: WindowMode = WindowMode.EXACT,
    precision: Precision = Precision.FLOAT32,
    device: str = "auto",
) -> SpeechEncoder:
    """Encoder by `FAMILY:NAME`, `FAMILY:PATH` or a bare family; a name without a family is a Whisper's.

    Args:
        name: Such as `whisper:tiny.en`.
        layer: Output of that block, counted from 1; None: the last one, after its final norm; `auto`: the
            last but one of Whisper, the last one of others.
        window: What it sees behind the end of a recording; only Whisper can be padded.
        precision: What it computes in; only Whisper has another than float32.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        ConfigError: No such family, no such layer, window or precision of it, or its weights cannot be found.
        CorruptInputError: Its weights are damaged.
    """
    check_encoder(name, window, precision)
    family = FAMILIES[family_of(name)]
    options: dict[str, WindowMode | Precision] = {}
    if layer == AUTO and family_of(name) != WHISPER:
        layer = None
    if family.has_windows:
        options["window"] = window
    if family.has_precisions:
        options["precision"] = precision
    open_family = getattr(import_module(family.module), family.opener)
    encoder: SpeechEncoder = open_family(name, layer=layer, device=device, **options)
    return encoder


def check_encoder(name: str, window: WindowMode, precision: Precision = Precision.FLOAT32) -> None:
    """Raises ConfigError when no weights are needed to see that this cannot be opened."""
    family = family_of(name)
    if window is not WindowMode.EXACT and not FAMILIES[family].has_windows:
        raise ConfigError(
            f"window {window}: {family} has no windows to pad, only {WHISPER} has; use {WindowMode.EXACT}"
        )
    if precision is not Precision.FLOAT32 and not FAMILIES[family].has_precisions:
        raise ConfigError(
            f"precision {precision}: {family} computes in {Precision.FLOAT32}, only {WHISPER} not"
        )


def choose_precision(asked: str, name: str, device: str) -> Precision:
    """Precision by name; `auto` is bfloat16 for encoders that have it on a GPU, else float32.

    Raises:
        ConfigError: There is no such precision or device.
    """
    if asked == "auto":
        from dmlm.pipeline.devices import open_device

        is_fast = FAMILIES[family_of(name)].has_precisions and open_device(device).type == "cuda"
        return Precision.BFLOAT16 if is_fast else Precision.FLOAT32
    if asked not in list(Precision):
        raise ConfigError(f"precision {asked!r}: must be auto or one of {', '.join(Precision)}")
    return Precision(asked)


def family_of(name: str) -> str:
    """Family of an encoder.

    Raises:
        ConfigError: There is no such family.
    """
    family, separator, _ = name.partition(":")
    if family in FAMILIES:
        return family
    if separator and not Path(name).expanduser().exists():
        raise ConfigError(
            f"encoder {name}: {family} is no family of encoders; one of {', '.join(FAMILIES)}"
            f"{did_you_mean(family, FAMILIES)}"
        )
    return WHISPER


def absolute_encoder(name: str) -> str:
    """The same encoder by a name that means the same from every working directory."""
    family = family_of(name)
    rest = name.removeprefix(family).removeprefix(":")
    path = Path(rest).expanduser()
    return f"{family}:{path.resolve()}" if rest and path.exists() else name
