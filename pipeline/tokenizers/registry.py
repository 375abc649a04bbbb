"""The tokenizers of a codebook folder: what `build-codebook` wrote and `tokenize` uses.

DIR/codebook.json names the settings of the build and the sha256 of every file in DIR/speech, DIR/image
and DIR/text. Speech and image hold a fitted codebook, or name a tokenizer that needs no fit. The folder may
be copied anywhere.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from dmlm.pipeline.encoders import Precision, WindowMode
from dmlm.pipeline.errors import ConfigError, CorruptInputError
from dmlm.pipeline.samples import Modality
from dmlm.pipeline.storage import has_sha256, sha256_file, write_json
from dmlm.pipeline.tokenizers import ImageTokenizer, SpeechTokenizer, TextTokenizer
from dmlm.pipeline.tokenizers.pretrained import (
    TRANSFORMERS,
    open_image_part,
    open_speech_part,
    read_part,
    read_terms,
)
from dmlm.pipeline.weights_terms import WeightsTerms

CARD = "codebook.json"
UNITS = "units.json"
"""In DIR/speech of a data set whose speech came as units: what is known of their tokenizer."""


@dataclass(frozen=True)
class Tokenizers:
    """The tokenizers of one codebook folder, each loaded when it is first asked for."""

    directory: Path
    device: str = "auto"
    unit_backend: str = TRANSFORMERS
    """What computes the Seamless codec."""
    window: WindowMode | None = None
    """What a fitted codebook is used with; None: what it was fitted with."""
    precision: Precision | None = None
    """The same."""

    @cached_property
    def speech(self) -> SpeechTokenizer | None:
        """None when the codebook was built without speech.

        Raises:
            ConfigError: The weights cannot be found, or the backend is not one that these units have.
            FingerprintMismatchError: The weights found are not those that the codebook was fitted on.
        """
        directory = self.directory / Modality.SPEECH
        if not directory.is_dir():
            return None
        if part := read_part(directory):
            return open_speech_part(part, self.device, self.unit_backend)
        if (directory / UNITS).is_file():
            raise ConfigError(f"{directory}: these units were made elsewhere; dmlm cannot make more of them")
        if self.unit_backend != TRANSFORMERS:
            raise ConfigError(
                f"unit backend {self.unit_backend}: only the Seamless codec has it; {directory} is a codebook"
            )
        from dmlm.pipeline.codebooks.codebook import load_codebook
        from dmlm.pipeline.tokenizers.kmeans import open_kmeans_tokenizer

        return open_kmeans_tokenizer(
            load_codebook(directory), self.device, window=self.window, precision=self.precision
        )

    @cached_property
    def image(self) -> ImageTokenizer | None:
        """None when the codebook was built without images."""
        directory = self.directory / Modality.IMAGE
        if not directory.is_dir():
            return None
        part = read_part(directory)
        return open_image_part(part, self.device) if part else _load_patch_tokenizer(directory)

    @cached_property
    def text(self) -> TextTokenizer:
        """Every codebook has one."""
        from dmlm.pipeline.tokenizers.text import load_text_tokenizer

        return load_text_tokenizer(self.directory / Modality.TEXT)

    @property
    def terms(self) -> list[WeightsTerms]:
        """Licences of the weights that are named, or that a codebook was fitted on, as far as known."""
        found = [read_terms(self.directory / modality) for modality in (Modality.SPEECH, Modality.IMAGE)]
        return [terms for terms in found if terms]


def is_codebook(directory: Path) -> bool:
    """Whether `build-codebook` finished there."""
    return (directory / CARD).is_file()


def load_tokenizers(directory: Path, device: str = "auto", unit_backend: str = TRANSFORMERS) -> Tokenizers:
    """Opens a codebook folder: every file is checked at once, tokenizers are loaded when needed.

    Raises:
        ConfigError: There is no codebook.
        CorruptInputError: A file is missing or not what `build-codebook` wrote.
    """
    for name, sha256 in read_card(directory)["files"].items():
        path = directory / name
        if not has_sha256(path, sha256):
            raise CorruptInputError(f"{path}: missing, or changed since the build; build the codebook again")
    return Tokenizers(directory, device, unit_backend)


def read_card(directory: Path) -> Mapping[str, Any]:
    """Content of DIR/codebook.json: `settings` of the build and `files`, relative path to sha256.

    Raises:
        ConfigError: There is no codebook.
        CorruptInputError: The card is damaged.
    """
    if not is_codebook(directory):
        raise ConfigError(f"{directory}: no codebook; run `dmlm-cli build-codebook --out {directory}`")
    try:
        card = json.loads((directory / CARD).read_bytes())
        names = [PurePosixPath(name) for name in dict(card["files"])]
        is_whole = isinstance(card["settings"], dict)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptInputError(f"{directory / CARD}: damaged ({error}); build the codebook again") from error
    if not is_whole or any(name.is_absolute() or ".." in name.parts for name in names):
        raise CorruptInputError(f"{directory / CARD}: damaged; build the codebook again")
    return dict(card)


def write_card(directory: Path, settings: Mapping[str, Any]) -> None:
    """Writes DIR/codebook.json, which makes the files of the folder a codebook."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    files = {path.relative_to(directory).as_posix(): sha256_file(path) for path in paths}
    write_json(directory / CARD, {"settings": dict(settings), "files": files})


def _load_patch_tokenizer(directory: Path) -> ImageTokenizer:
    from dmlm.pipeline.codebooks.codebook import load_codebook
    from dmlm.pipeline.tokenizers.patch import PatchTokenizer

    return PatchTokenizer(load_codebook(directory))
