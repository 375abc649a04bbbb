"""What a source is, and what a corpus must provide to become one.

A corpus is a module with `EXPECTED`, `is_present`, `find_splits` and `iter_split`; the registry does
the rest.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from dmlm.pipeline.samples import SourceItem

_KEY = re.compile(r"[A-Za-z0-9_-]+")
_NOT_IN_KEY = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """Settings that only some corpora need; the others ignore them."""

    lang_pair: str | None = None
    """CoVoST: which pair, such as `it_en`; None: the only one present."""
    truncated_words: Literal["keep", "drop"] = "keep"
    """AMI: words that the speaker broke off."""


DEFAULT_OPTIONS = SourceOptions()


class Source(Protocol):
    """A corpus on disk, opened: some of its splits, in a stable order."""

    @property
    def name(self) -> str:
        """Name in the registry, such as `librispeech`."""

    @property
    def text_rule(self) -> str:
        """Rule that makes tokenizable text of the corpus' raw text."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that `iter_items` goes through, in that order."""

    def iter_items(self) -> Iterator[SourceItem]:
        """Yields all items lazily; what is broken or left out comes as an item too."""


class Corpus(Protocol):
    """The true on-disk layout of one corpus; modules of this package are such."""

    EXPECTED: str
    """Files that a corpus folder must hold, for error messages."""

    def is_present(self, corpus_dir: Path) -> bool:
        """Whether the folder holds this corpus."""

    def find_splits(self, corpus_dir: Path, options: SourceOptions) -> tuple[str, ...]:
        """Splits on disk, sorted."""

    def iter_split(self, corpus_dir: Path, split: str, options: SourceOptions) -> Iterator[SourceItem]:
        """Yields the items of one split in a stable order."""


def is_key(text: str) -> bool:
    """Whether `text` can be the key of a sample."""
    return _KEY.fullmatch(text) is not None


def to_key(text: str) -> str:
    """Key for something broken whose own name cannot be one."""
    return _NOT_IN_KEY.sub("_", text) or "_"
