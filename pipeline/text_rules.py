"""Text before tokens: one rule per source, named in the fingerprint; the raw text stays in the json."""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.suggestions import did_you_mean

APOSTROPHES = "'\u2019"

_AMI_MARKER = re.compile(r"<\w+>")
_AMI_LETTER_JOINT = re.compile(r"_(?='|s?$)")
"""The underscore of a spelt word that leads to nothing, a plural or a genitive: `A_B_`, `I_D_s`, `T_V_'s`."""


def apply_text_rule(rule: str, text: str) -> str:
    """Text as it is tokenized and scored under `rule`; may be empty.

    Raises:
        ConfigError: There is no such rule.
    """
    if rule not in TEXT_RULES:
        raise ConfigError(
            f"unknown text rule {rule!r}: one of {', '.join(TEXT_RULES)}{did_you_mean(rule, TEXT_RULES)}"
        )
    return TEXT_RULES[rule](text)


def text_hash(text: str) -> str:
    """First 16 hex digits of the sha256 of the lower-cased text without punctuation, to find duplicates."""
    bare = _without_punctuation(_lower(text).translate(_NO_APOSTROPHES))
    return hashlib.sha256(bare.encode()).hexdigest()[:16]


def _verbatim(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _lower(text: str) -> str:
    return _verbatim(text.lower())


def _plain(text: str) -> str:
    return _without_punctuation(_lower(text), kept=APOSTROPHES)


def _ami(text: str) -> str:
    """Spoken words only, lower case, spelt words as single letters."""
    spelt = " ".join(_AMI_LETTER_JOINT.sub("", word).replace("_", " ") for word in text.split())
    return _lower(" ".join(word for word in spelt.split() if _is_spoken(word)))


def _is_spoken(word: str) -> bool:
    return any(map(str.isalnum, word)) and not _AMI_MARKER.fullmatch(word)


def _without_punctuation(text: str, kept: str = "") -> str:
    """Punctuation and symbols become spaces; characters of `kept` survive inside words, as apostrophes."""
    characters = (
        character if character in kept or unicodedata.category(character)[0] not in "PS" else " "
        for character in text
    )
    words = ("".join(characters)).split()
    trimmed = (word.strip(kept).translate(_ASCII_APOSTROPHE) if kept else word for word in words)
    return " ".join(word for word in trimmed if word)


_NO_APOSTROPHES = dict.fromkeys(map(ord, APOSTROPHES))
_ASCII_APOSTROPHE = str.maketrans(APOSTROPHES, "'" * len(APOSTROPHES))

TEXT_RULES: Mapping[str, Callable[[str], str]] = {
    "verbatim": _verbatim,
    "lower": _lower,
    "plain": _plain,
    "ami": _ami,
}
"""Rules by name: what fingerprints and manifests call them."""
