"""Settings of `build-codebook`, and whatever of them can be refused before anything is read."""

import logging
import math
from dataclasses import dataclass, fields
from pathlib import Path

from dmlm.pipeline.codebooks.corpus_sampling import SourceShare
from dmlm.pipeline.codebooks.fitting import FitMode
from dmlm.pipeline.encoders import AUTO, Layer, WindowMode
from dmlm.pipeline.encoders.registry import check_encoder, choose_precision
from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.sources import DEFAULT_OPTIONS, SourceOptions
from dmlm.pipeline.tokenizers.patch import ENCODER as PATCH
from dmlm.pipeline.tokenizers.patch import patch_features
from dmlm.pipeline.tokenizers.pretrained import name_image_part, name_speech_part
from dmlm.pipeline.tokenizers.text import BPE, NUM_BYTES

KMEANS = "kmeans"
_OF_SPEECH_UNITS = ("encoder", "layer", "window", "precision", "num_clusters", "max_audio_seconds")
_OF_IMAGE_CODES = ("num_image_clusters",)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildCodebookConfig:
    """Settings of `build-codebook`; the defaults are the command's."""

    root: Path
    out_dir: Path
    sources: tuple[SourceShare, ...] = ()
    """Empty: every source under `root`, in equal shares."""
    splits: tuple[str, ...] | None = None
    """None: the training splits, or all where a corpus has none."""
    options: SourceOptions = DEFAULT_OPTIONS
    speech_tokenizer: str = KMEANS
    """Or `seamless[:DIR]`, which needs no fit."""
    encoder: str = "whisper:tiny.en"
    layer: Layer = AUTO
    """Block from 1; None: after the final norm; auto: the last but one of Whisper, the last of others."""
    window: str = "exact"
    precision: str = "auto"
    """What the encoder computes in, here and wherever the codebook is used; auto: bfloat16 on a GPU."""
    num_clusters: int = 500
    fit: str = FitMode.SAMPLE
    """Cluster a uniform sample held in memory, or let every vector of the stream count."""
    max_audio_seconds: float = 3_600.0
    """Speech that is encoded, drawn from all over the corpora: 180,000 frames; 0: all of it."""
    text_tokenizer: str = "bpe:400"
    image_tokenizer: str = PATCH
    """Or `dalle[:DIR]`, which needs no fit."""
    image_resolution: int = 128
    num_image_clusters: int = 512
    limit: int | None = None
    """Read only the first items of each split."""
    seed: int = 0
    device: str = "auto"


def check_config(config: BuildCodebookConfig) -> None:
    """Raises ConfigError for a setting that cannot be honoured; opens the weights that are only named."""
    if config.window not in list(WindowMode):
        raise ConfigError(f"window {config.window!r}: must be one of {', '.join(WindowMode)}")
    if config.fit not in list(FitMode):
        raise ConfigError(f"fit {config.fit!r}: must be one of {', '.join(FitMode)}")
    if not 0 <= config.max_audio_seconds < math.inf:
        raise ConfigError(
            f"max_audio_seconds {config.max_audio_seconds} (--audio-hours): must be a number; 0 is all audio"
        )
    precision = choose_precision(config.precision, config.encoder, config.device)
    check_encoder(config.encoder, WindowMode(config.window), precision)
    if config.speech_tokenizer != KMEANS:
        _refuse_settings(config, _OF_SPEECH_UNITS, config.speech_tokenizer)
        name_speech_part(config.speech_tokenizer, config.device)
    if config.image_tokenizer == PATCH:
        patch_features(config.image_resolution)
    else:
        _refuse_settings(config, _OF_IMAGE_CODES, config.image_tokenizer)
        name_image_part(config.image_tokenizer, config.image_resolution, config.device)
    if config.text_tokenizer.startswith(BPE):
        num_bpe_entries(config.text_tokenizer)


def num_bpe_entries(name: str) -> int:
    """N of `bpe:N`.

    Raises:
        ConfigError: N is no number from 256.
    """
    number = name.removeprefix(BPE)
    if not (number.isdecimal() and int(number) >= NUM_BYTES):
        raise ConfigError(f"text tokenizer {name}: bpe:N needs a number of entries from {NUM_BYTES}")
    return int(number)


def warn_of_unused(config: BuildCodebookConfig, *, has_speech: bool, has_images: bool) -> None:
    """Warns of settings of a modality that the sources lack."""
    unused = [
        *([] if has_speech else _changed(config, ("speech_tokenizer", *_OF_SPEECH_UNITS))),
        *([] if has_images else _changed(config, ("image_tokenizer", "image_resolution", *_OF_IMAGE_CODES))),
    ]
    for setting in unused:
        _logger.warning("%s has no effect: the sources hold nothing that it is for", setting)


def _refuse_settings(config: BuildCodebookConfig, names: tuple[str, ...], tokenizer: str) -> None:
    for setting in _changed(config, names):
        raise ConfigError(f"{setting}: {tokenizer} needs no fit and has no such setting")


def _changed(config: BuildCodebookConfig, names: tuple[str, ...]) -> list[str]:
    """Settings that are not the default, as a user should read them."""
    defaults = {field.name: field.default for field in fields(config)}
    options = {"max_audio_seconds": " (--audio-hours)"}
    return [
        f"{name} {getattr(config, name)}{options.get(name, '')}"
        for name in names
        if getattr(config, name) != defaults[name]
    ]
