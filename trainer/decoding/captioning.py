"""Images to captions with a trained checkpoint: image files -> codes -> prompts -> text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dmlm.pipeline.devices import open_device
from dmlm.pipeline.errors import ConfigError, ImageError
from dmlm.pipeline.images import load_image
from dmlm.pipeline.samples import Pixels, Sample, TokenArray
from dmlm.pipeline.tokenizers.registry import Tokenizers
from dmlm.trainer.checkpoint import Checkpoint, load_checkpoint, resolve_checkpoint
from dmlm.trainer.decoding import DecodingConfig
from dmlm.trainer.decoding.generation import GREEDY, GeneratedText, generate_texts
from dmlm.trainer.trained_tasks import choose_language

FILES_AT_ONCE: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """What an image shows, or why it could not be read."""

    path: Path
    text: str = ""
    is_finished: bool = True
    """False: it was cut by a limit, or there was no room for it."""
    error: ImageError | None = None


def caption(
    checkpoint_dir: Path,
    files: Sequence[Path],
    device: str = "auto",
    language: str | None = None,
    *,
    decoding: DecodingConfig = GREEDY,
) -> Iterator[Caption]:
    """Captions image files, in the order given.

    A file that cannot be read gives a caption with an error, and the next file comes all the same.

    Args:
        checkpoint_dir: A checkpoint, or a run folder whose newest checkpoint is used.
        files: JPEG, PNG or WebP.
        device: auto, cpu, cuda or cuda:N.
        language: Of the captions; the prompt names it, as in training. `none`: it names none. None: the only
            one that the model was trained in, or English among several.
        decoding: How tokens are chosen.

    Raises:
        ConfigError: There is no checkpoint, it knows no images, or it was not trained to caption them, or not
            in the language.
        CheckpointError: The checkpoint is damaged.
    """
    checkpoint = load_checkpoint(resolve_checkpoint(checkpoint_dir), str(open_device(device)))
    tokenizer = Tokenizers(checkpoint.codebook_dir, device).image
    if tokenizer is None:
        raise ConfigError(f"{checkpoint.path}: was trained without images")
    language = choose_language(checkpoint.settings.trained, "i2t", language, checkpoint.path)
    for start in range(0, len(files), FILES_AT_ONCE):
        errors: dict[int, ImageError] = {}
        part = files[start : start + FILES_AT_ONCE]
        codes = list(tokenizer.encode(_load(part, errors)))
        texts = iter(_describe(checkpoint, codes, language, decoding, first_number=start))
        for number, path in enumerate(part):
            if number in errors:
                yield Caption(path=path, error=errors[number])
                continue
            found = next(texts)
            yield Caption(path=path, text=found.text, is_finished=found.is_finished)


def _load(files: Sequence[Path], errors: dict[int, ImageError]) -> Iterator[Pixels]:
    """Yields images one by one; notes by number those that cannot be read."""
    for number, path in enumerate(files):
        try:
            yield load_image(path)
        except ImageError as error:
            errors[number] = error


def _describe(
    checkpoint: Checkpoint,
    codes: Sequence[TokenArray],
    language: str | None,
    decoding: DecodingConfig,
    *,
    first_number: int,
) -> list[GeneratedText]:
    samples = [
        Sample(key=str(index), source="", split="", language=language, image_tokens=tokens)
        for index, tokens in enumerate(codes)
    ]
    return generate_texts(checkpoint, "i2t", samples, decoding, first_number)
