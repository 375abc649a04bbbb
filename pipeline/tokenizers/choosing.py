"""`tokenize --speech-tokenizer … --image-tokenizer … --text-tokenizer …`: parts in place of a codebook's.

What comes out is a codebook folder as any other, so that training, scoring and transcription need not know.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Modality
from dmlm.pipeline.tokenizers.pretrained import TRANSFORMERS, check_name, name_image_part, name_speech_part
from dmlm.pipeline.tokenizers.registry import load_tokenizers, read_card, write_card
from dmlm.pipeline.tokenizers.text import BPE, NUM_BYTES, load_text_tokenizer, train_bpe


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerChoice:
    """Tokenizers named one by one; None: the codebook's."""

    speech: str | None = None
    """`seamless` or `seamless:DIR`."""
    image: str | None = None
    """`dalle` or `dalle:DIR`."""
    image_resolution: int | None = None
    text: str | None = None
    """A Hugging Face name or folder, a GGUF file, or `bpe:256` (bytes)."""

    def __post_init__(self) -> None:
        if self.speech is not None:
            check_name(self.speech, Modality.SPEECH)
        if self.image is not None:
            check_name(self.image, Modality.IMAGE)
        elif self.image_resolution is not None:
            raise ConfigError("--image-resolution belongs to --image-tokenizer; a codebook has its own")
        if self.text is not None and self.text.startswith(BPE) and self.text != f"{BPE}{NUM_BYTES}":
            raise ConfigError(
                f"text tokenizer {self.text}: merges are learnt by `dmlm-cli build-codebook`; only "
                f"{BPE}{NUM_BYTES} (bytes) has none"
            )

    @property
    def modalities(self) -> set[Modality]:
        """Those that are chosen here."""
        names = {Modality.SPEECH: self.speech, Modality.IMAGE: self.image, Modality.TEXT: self.text}
        return {modality for modality, name in names.items() if name is not None}

    def replaces_codebook(self, *, has_text_only: bool) -> bool:
        """Whether nothing is left that a codebook would be needed for."""
        return self.text is not None and (has_text_only or bool(self.speech or self.image))

    def build_settings(self) -> dict[str, Any]:
        """The same choice as settings of `build-codebook`."""
        settings = {
            "speech_tokenizer": self.speech,
            "image_tokenizer": self.image,
            "image_resolution": self.image_resolution,
            "text_tokenizer": self.text,
        }
        return {name: value for name, value in settings.items() if value is not None}


AS_IN_CODEBOOK = TokenizerChoice()


@contextmanager
def chosen_codebook(
    codebook_dir: Path | None,
    choice: TokenizerChoice,
    *,
    device: str = "auto",
    unit_backend: str = TRANSFORMERS,
) -> Iterator[Path]:
    """Yields a codebook folder with the parts of `codebook_dir` and, in their place, those chosen.

    Raises:
        ConfigError: A part cannot be opened, or there is no text tokenizer.
    """
    if not choice.modalities and codebook_dir is not None:
        yield codebook_dir
        return
    if codebook_dir is None and choice.text is None:
        raise ConfigError("no text tokenizer: give --codebook or --text-tokenizer")
    with TemporaryDirectory() as scratch:
        directory = Path(scratch)
        _write_choice(directory, choice, device, unit_backend)
        settings = dict(read_card(codebook_dir)["settings"]) if codebook_dir else {}
        if codebook_dir is not None:
            _copy_others(codebook_dir, directory, choice)
        chosen = {name: value for name, value in asdict(choice).items() if value is not None}
        write_card(directory, {**settings, "chosen": chosen})
        yield directory


def check_idle_choice(
    choice: TokenizerChoice, unit_backend: str, source: str, has_speech: bool, has_images: bool
) -> None:
    """Raises ConfigError for what is asked for and has nothing to work on: that is a mistake."""
    asked_for = {
        "--speech-tokenizer": choice.speech and not has_speech,
        "--unit-backend": unit_backend != TRANSFORMERS and not has_speech,
        "--image-tokenizer": choice.image and not has_images,
    }
    for option, is_idle in asked_for.items():
        if is_idle:
            raise ConfigError(f"{option}: {source} has nothing to encode with it; leave it out")


def _write_choice(directory: Path, choice: TokenizerChoice, device: str, unit_backend: str) -> None:
    if choice.text is not None:
        is_bytes = choice.text.startswith(BPE)
        tokenizer = train_bpe([], NUM_BYTES) if is_bytes else load_text_tokenizer(choice.text)
        tokenizer.save(directory / Modality.TEXT)
    if choice.speech is not None:
        name_speech_part(choice.speech, device, unit_backend).save(directory / Modality.SPEECH)
    if choice.image is not None:
        name_image_part(choice.image, choice.image_resolution, device).save(directory / Modality.IMAGE)


def _copy_others(source: Path, directory: Path, choice: TokenizerChoice) -> None:
    load_tokenizers(source)  # checks every file
    for modality in set(Modality) - choice.modalities:
        if (source / modality).is_dir():
            shutil.copytree(source / modality, directory / modality)
