"""The shared vocabulary: text | special and task tokens | speech | image | padding.

Ranges are half-open; the order never changes, and the fingerprint is frozen in every checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

from dmlm.pipeline.errors import CorruptInputError
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

TASK_TOKENS = ("<asr>", "<s2tt>", "<t2s>", "<i2t>")
SPECIAL_TOKENS = (
    *("<speech>", "</speech>", "<image>", "</image>"),
    *TASK_TOKENS,
    *(f"<{language}>" for language in LANGUAGES),
)


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

    @property
    def text(self) -> TokenRange:
        """Ids of the text tokenizer, unchanged."""
        return TokenRange(0, self.num_text)

    @property
    def special(self) -> TokenRange:
        """Modality, task and language tokens, right behind the text."""
        return TokenRange(self.text.stop, self.text.stop + len(SPECIAL_TOKENS))

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
        """Id of a special token such as `<asr>`; KeyError when there is none."""
        return self.special.start + _SPECIAL_INDEX[token]

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
        return [*SPECIAL_TOKENS, *speech, *image]

    def to_json(self) -> dict[str, Any]:
        """Content of `vocabulary.json`."""
        return {
            "num_text": self.num_text,
            "special_tokens": list(SPECIAL_TOKENS),
            "num_speech": self.num_speech,
            "num_image": self.num_image,
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Reads `vocabulary.json`.

        Raises:
            CorruptInputError: A field is missing, of a wrong type, or the special tokens differ.
        """
        names = ("num_text", "num_speech", "num_image", "bos_id", "eos_id")
        if not isinstance(content, Mapping):
            raise CorruptInputError("vocabulary.json: must be an object")
        counts = {name: value for name in names if type(value := content.get(name)) is int and value >= 0}
        if len(counts) < len(names):
            raise CorruptInputError(f"vocabulary.json: {', '.join(names)} must be counts")
        if content.get("special_tokens") != list(SPECIAL_TOKENS):
            raise CorruptInputError("vocabulary.json: special tokens differ from this version's")
        return cls(**counts)


def check_ids(tokens: TokenArray, num_tokens: int, modality: Modality) -> None:
    """Raises CorruptInputError unless every id is in [0, num_tokens)."""
    # As unsigned numbers negative ids are the largest, so that one pass sees both ends.
    if tokens.size and int(tokens.view(np.uint32).max()) >= num_tokens:
        raise CorruptInputError(
            f"{modality} ids must be in [0, {num_tokens}), found [{tokens.min()}, {tokens.max()}]"
        )


_SPECIAL_INDEX = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
