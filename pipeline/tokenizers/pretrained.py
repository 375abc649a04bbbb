"""Tokenizers that need no fit, such as the Seamless codec: a part of a codebook folder *names* them.

DIR/speech/pretrained.json or DIR/image/pretrained.json holds the name that opens the tokenizer again, its
settings and the fingerprint that it must have; the weights stay where they are.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

from dmlm.pipeline.errors import ConfigError, CorruptInputError, FingerprintMismatchError
from dmlm.pipeline.samples import Modality
from dmlm.pipeline.storage import user_cache_dir, write_json
from dmlm.pipeline.tokenizers import Fingerprint, ImageTokenizer, SpeechTokenizer
from dmlm.pipeline.weights_terms import TERMS, WeightsTerms, load_terms

TRANSFORMERS, FAIRSEQ2 = "transformers", "fairseq2"
DEFAULT_RESOLUTION = 128

PART = "pretrained.json"

_logger = logging.getLogger(__name__)

_ROUNDING_ONLY = {"backend", "batch_seconds", "batch_size"}
"""Parts of a fingerprint that a run may choose anew: they tell data sets apart, not tokenizers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainedPart:
    """Which tokenizer a part of a codebook folder stands for."""

    name: str
    """`seamless`, `dalle`, or one of them with the folder of its weights, as in `dalle:PATH`."""
    resolution: int | None = None
    """Of images."""
    fingerprint: Fingerprint = field(default_factory=dict)
    """What the tokenizer said when the part was written."""

    @property
    def terms(self) -> WeightsTerms:
        """Licence of the weights."""
        return TERMS[self.name.partition(":")[0]]

    def save(self, directory: Path) -> None:
        """Writes the part."""
        write_json(directory / PART, asdict(self))


def open_speech_part(part: PretrainedPart, device: str, unit_backend: str) -> SpeechTokenizer:
    """Opens the tokenizer that `part` names.

    Raises:
        ConfigError: Its weights are not found, or it is not a speech tokenizer.
        FingerprintMismatchError: The weights are not those of the part.
    """
    check_name(part.name, Modality.SPEECH)
    tokenizer = _open_seamless(_place(part), device, unit_backend)
    _check_fingerprint(part, tokenizer.fingerprint)
    return tokenizer


def open_image_part(part: PretrainedPart, device: str) -> ImageTokenizer:
    """Opens the tokenizer that `part` names.

    Raises:
        ConfigError: Its weights are not found, it has no such resolution, or it is not an image tokenizer.
        FingerprintMismatchError: The weights are not those of the part.
    """
    check_name(part.name, Modality.IMAGE)
    tokenizer = _open_dalle(_place(part), part.resolution or DEFAULT_RESOLUTION, device)
    _check_fingerprint(part, tokenizer.fingerprint)
    return tokenizer


def name_speech_part(name: str, device: str, unit_backend: str = TRANSFORMERS) -> PretrainedPart:
    """Part that names a speech tokenizer such as `seamless:DIR`; opens it once.

    Raises:
        ConfigError: There is no such tokenizer, or its weights are not found.
    """
    part = PretrainedPart(name=absolute_name(name))
    fingerprint = open_speech_part(part, device, unit_backend).fingerprint
    return PretrainedPart(name=part.name, fingerprint=dict(fingerprint))


def name_image_part(name: str, resolution: int | None, device: str) -> PretrainedPart:
    """Part that names an image tokenizer such as `dalle:DIR`; opens it once.

    Raises:
        ConfigError: There is no such tokenizer or resolution, or its weights are not found.
    """
    part = PretrainedPart(name=absolute_name(name), resolution=resolution or DEFAULT_RESOLUTION)
    fingerprint = open_image_part(part, device).fingerprint
    return PretrainedPart(name=part.name, resolution=part.resolution, fingerprint=dict(fingerprint))


def read_part(directory: Path) -> PretrainedPart | None:
    """The tokenizer that a part of a codebook folder names; None when it holds a codebook of its own.

    Raises:
        CorruptInputError: The part is damaged.
    """
    path = directory / PART
    if not path.is_file():
        return None
    try:
        part = PretrainedPart(**json.loads(path.read_bytes()))
        is_whole = isinstance(part.fingerprint, dict) and part.name.partition(":")[0] in TERMS
    except (ValueError, TypeError, AttributeError) as error:
        raise CorruptInputError(f"{path}: damaged ({error}); build the codebook again") from error
    if not is_whole:
        raise CorruptInputError(f"{path}: names {part.name}, which this dmlm does not know")
    return part


def read_terms(directory: Path) -> WeightsTerms | None:
    """Licence of the weights behind a part of a codebook folder; None: none that dmlm knows of.

    Raises:
        CorruptInputError: The part is damaged.
    """
    part = read_part(directory)
    return load_terms(directory) if part is None else part.terms


def check_name(name: str, modality: Modality) -> None:
    """Raises ConfigError unless `name` is a tokenizer of that modality that needs no fit."""
    known = [tokenizer for tokenizer, terms in TERMS.items() if terms.modality is modality]
    if name.partition(":")[0] not in known:
        raise ConfigError(
            f"{modality} tokenizer {name}: must be {' or '.join(known)}, or {known[0]}:DIR; others are "
            "fitted by `dmlm-cli build-codebook` and used by --codebook"
        )


def add_terms(licence: str, terms: Sequence[WeightsTerms]) -> str:
    """Licence of tokens: the corpus's and those of the weights; warns of those that forbid commercial use."""
    for entry in terms:
        if not entry.is_commercial:
            _logger.warning("%s; that binds whatever is trained on them, too", entry)
    return "; ".join([licence, *map(str, terms)])


def absolute_name(name: str) -> str:
    """The same tokenizer by a name that means the same from every working directory."""
    tokenizer, _, directory = name.partition(":")
    return f"{tokenizer}:{Path(directory).expanduser().resolve()}" if directory else name


def find_weights_dir(name: str) -> Path:
    """Folder of the weights: the one named, else `~/.cache/dmlm/TOKENIZER`.

    Raises:
        ConfigError: There is no such folder.
    """
    tokenizer, _, named = name.partition(":")
    directory = Path(named).expanduser() if named else user_cache_dir() / "dmlm" / tokenizer
    if not directory.is_dir():
        raise ConfigError(
            f"{tokenizer}: no folder {directory} with its weights; give another as {tokenizer}:DIR "
            "(docs/tokens.md says how to get them)"
        )
    return directory


# Naming a tokenizer and using it are two steps of one run; gigabytes are read once.
@lru_cache(maxsize=1)
def _open_seamless(name: str, device: str, unit_backend: str) -> SpeechTokenizer:
    directory = find_weights_dir(name)
    from dmlm.pipeline.tokenizers.seamless import open_seamless_tokenizer

    return open_seamless_tokenizer(directory, device=device, backend=unit_backend)


@lru_cache(maxsize=1)
def _open_dalle(name: str, resolution: int, device: str) -> ImageTokenizer:
    directory = find_weights_dir(name)
    from dmlm.pipeline.tokenizers.dalle import open_dalle_tokenizer

    return open_dalle_tokenizer(directory, resolution=resolution, device=device)


def _place(part: PretrainedPart) -> str:
    """Name to open; weights that moved are looked for in the cache, and the fingerprint is checked anyway."""
    tokenizer, _, directory = part.name.partition(":")
    has_moved = bool(part.fingerprint) and not Path(directory).is_dir()
    return tokenizer if has_moved else part.name


def _check_fingerprint(part: PretrainedPart, found: Fingerprint) -> None:
    if not part.fingerprint:
        return
    names = (part.fingerprint.keys() | found.keys()) - _ROUNDING_ONLY
    differing = sorted(name for name in names if part.fingerprint.get(name) != found.get(name))
    if differing:
        theirs = ", ".join(f"{name}={part.fingerprint.get(name)}" for name in differing)
        ours = ", ".join(f"{name}={found.get(name)}" for name in differing)
        raise FingerprintMismatchError(
            f"{part.name}: the codebook was made with {theirs}, but the weights there have {ours}"
        )
