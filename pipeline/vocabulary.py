"""The shared vocabulary: text | special and task tokens | speech | image | padding.

Ranges are half-open; the order never changes, and the fingerprint is frozen in every checkpoint.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np

from dmlm.pipeline.errors import ConfigError, CorruptInputError
from dmlm.pipeline.samples import Modality, TokenArray
from dmlm.pipeline.storage import sha256_json

PAD_TO_MULTIPLE = 64

# fmt: off
LANGUAGES = (
    "ar", "ca", "cs", "cy", "da", "de", "el", "en", "es", "et", "fa", "fi",
    "fr", "hi", "hu", "id", "it", "ja", "ko", "lt", "lv", "mn", "nl", "no",
    "pl", "pt", "ro", "ru", "sk", "sl", "sv", "ta", "tr", "uk", "vi", "zh",
)
# fmt: on
"""Languages with a token of their own; a fixed list, so that data sets never change the order."""

MODALITY_TAGS = ("<speech>", "</speech>", "<image>", "</image>")
TASK_TOKENS = ("<asr>", "<s2tt>", "<t2s>", "<i2t>")
SPECIAL_TOKENS = (*MODALITY_TAGS, *TASK_TOKENS, *(f"<{language}>" for language in LANGUAGES))
"""Of new vocabularies. A checkpoint keeps those that it was trained with."""

_TAG = re.compile(r"</?[a-z0-9_]{1,32}>")
_SIZES = ("num_text", "num_speech", "num_image", "bos_id", "eos_id")


@dataclass(frozen=True, slots=True)
class TokenRange:
    """Half-open range [start, stop) of ids."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __contains__(self, token_id: int) -> bool:
        return self.start <= token_id < self.stop


@dataclass(frozen=True)
class Vocabulary:
    """Sizes of the modalities and the ranges that follow from them."""

    num_text: int
    num_speech: int
    num_image: int
    bos_id: int
    eos_id: int
    special_tokens: tuple[str, ...] = SPECIAL_TOKENS

    @property
    def text(self) -> TokenRange:
        """Ids of the text tokenizer, unchanged."""
        return TokenRange(0, self.num_text)

    @property
    def special(self) -> TokenRange:
        """Modality, task and language tokens, right behind the text."""
        return TokenRange(self.text.stop, self.text.stop + len(self.special_tokens))

    @property
    def speech(self) -> TokenRange:
        """Speech units."""
        return TokenRange(self.special.stop, self.special.stop + self.num_speech)

    @property
    def image(self) -> TokenRange:
        """Image codes."""
        return TokenRange(self.speech.stop, self.speech.stop + self.num_image)

    @property
    def num_used(self) -> int:
        """Number of ids that mean something."""
        return self.image.stop

    @property
    def size(self) -> int:
        """Rows of the embedding: `num_used` rounded up to a multiple of 64."""
        return -(-self.num_used // PAD_TO_MULTIPLE) * PAD_TO_MULTIPLE

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of sizes, special tokens and their order."""
        return sha256_json(self.to_json())

    def range_of(self, modality: Modality) -> TokenRange:
        """Range of a modality's own ids."""
        return {
            Modality.TEXT: self.text,
            Modality.SPEECH: self.speech,
            Modality.IMAGE: self.image,
        }[modality]

    def special_id(self, token: str) -> int:
        """Id of a special token such as `<asr>`.

        Raises:
            ConfigError: This vocabulary has no such token.
        """
        if token not in self.special_tokens:
            known = " ".join(self.special_tokens)
            raise ConfigError(f"this vocabulary has no token {token}; its special tokens are {known}")
        return self.special.start + self.special_tokens.index(token)

    def to_global(self, modality: Modality, tokens: TokenArray) -> TokenArray:
        """Shifts modality-local ids into the shared vocabulary.

        Raises:
            CorruptInputError: An id lies outside the modality's range.
        """
        ids = self.range_of(modality)
        check_ids(tokens, len(ids), modality)
        return (tokens + np.int32(ids.start)).astype(np.int32)

    def added_tokens(self) -> list[str]:
        """Names of all ids behind the text, in order: what a Hugging Face tokenizer must add."""
        speech = [f"<speech_{i}>" for i in range(self.num_speech)]
        image = [f"<image_{i}>" for i in range(self.num_image)]
        return [*self.special_tokens, *speech, *image]

    def sizes_to_json(self) -> dict[str, int]:
        """What a data set depends on: its ids are those of each modality, special tokens come in training."""
        return {name: getattr(self, name) for name in _SIZES}

    def to_json(self) -> dict[str, Any]:
        """Content of `vocabulary.json`."""
        return {**self.sizes_to_json(), "special_tokens": list(self.special_tokens)}

    @classmethod
    def sizes_from_json(cls, content: object) -> Self:
        """A vocabulary of these sizes, and nothing else in `content`.

        Raises:
            CorruptInputError: A size is missing, unknown or no count.
        """
        if (
            not isinstance(content, Mapping)
            or sorted(content) != sorted(_SIZES)
            or not all(type(size) is int and size >= 0 for size in content.values())
        ):
            raise CorruptInputError(f"sizes of the vocabulary: {', '.join(_SIZES)} must be counts")
        return cls(**content)

    @classmethod
    def from_json(cls, content: object) -> Self:
        """Reads `vocabulary.json`; its special tokens may be those of another version.

        Raises:
            CorruptInputError: A field is missing, unknown or of a wrong type.
        """
        if not isinstance(content, Mapping):
            raise CorruptInputError("vocabulary.json: must be an object")
        tokens = content.get("special_tokens")
        if not (isinstance(tokens, list) and all(isinstance(t, str) and _TAG.fullmatch(t) for t in tokens)):
            raise CorruptInputError("vocabulary.json: special_tokens must be tags such as <asr>")
        if len(set(tokens)) < len(tokens) or not set(MODALITY_TAGS) <= set(tokens):
            raise CorruptInputError(
                f"vocabulary.json: special_tokens must name {', '.join(MODALITY_TAGS)}, and no token twice"
            )
        sizes = {name: size for name, size in content.items() if name != "special_tokens"}
        return replace(cls.sizes_from_json(sizes), special_tokens=tuple(tokens))


def check_ids(tokens: TokenArray, num_tokens: int, modality: Modality) -> None:
    """Raises CorruptInputError unless every id is in [0, num_tokens)."""
    # As unsigned numbers negative ids are the largest, so that one pass sees both ends.
    if tokens.size and int(tokens.view(np.uint32).max()) >= num_tokens:
        raise CorruptInputError(
            f"{modality} ids must be in [0, {num_tokens}), found [{tokens.min()}, {tokens.max()}]"
        )
