"""Languages as corpora write them -> the codes that have a token.

Looked at when a source is read: what has none would only stop the training, after all the encoding.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Final

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Broken, Skipped, SourceItem
from dmlm.pipeline.vocabulary import LANGUAGES

# fmt: off
ISO_639_3: Final[Mapping[str, str]] = dict(zip((
    "ara", "cat", "ces", "cym", "dan", "deu", "ell", "eng", "spa", "est", "fas", "fin",
    "fra", "hin", "hun", "ind", "ita", "jpn", "kor", "lit", "lav", "mon", "nld", "nor",
    "pol", "por", "ron", "rus", "slk", "slv", "swe", "tam", "tur", "ukr", "vie", "zho",
), LANGUAGES, strict=True))
# fmt: on
"""Code of two letters by that of three."""

_SUBTAGS = re.compile(r"[-_]")


def short_code(name: str) -> str:
    """Code in lower case and without a region; of two letters where those are known to stand for it."""
    primary = _SUBTAGS.split(name)[0].lower()
    return ISO_639_3.get(primary, primary)


@cache
def language_code(name: str) -> str:
    """Code of two letters for a code of two or three letters, with or without a region, such as `en-US`.

    Raises:
        ConfigError: No token stands for it.
    """
    code = short_code(name)
    if code not in LANGUAGES:
        raise ConfigError(f"language {name[:40]!r} has no token; known are {', '.join(LANGUAGES)}")
    return code


def with_known_languages(item: SourceItem) -> SourceItem:
    """The item with the two-letter codes of its texts' languages; speech alone may be of any language.

    Raises:
        ConfigError: A text's language has no token.
    """
    if isinstance(item, Skipped | Broken):
        return item
    texts = {"language": "text", "translation_language": "translation"}
    written = {
        name: language
        for name, text in texts.items()
        if (language := getattr(item, name, None)) is not None and getattr(item, text)
    }
    try:
        known = {name: language_code(language) if language else None for name, language in written.items()}
    except ConfigError as error:
        advice = "give --language, or another column by --columns"
        if item.source != "hf":
            advice = "leave out the language of such texts"
        raise ConfigError(f"{item.source}: {item.split}: {item.key}: {error}; {advice}") from None
    return item if known == written else replace(item, **known)  # type: ignore[arg-type]
