"""Sources by name: finds the corpus folder, checks the splits, opens it."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.languages import with_known_languages
from dmlm.pipeline.manifests import CorpusManifest, load_manifest
from dmlm.pipeline.samples import Broken, SourceItem, Utterance
from dmlm.pipeline.source_names import SOURCE_NAMES
from dmlm.pipeline.sources import ami, coco, covost, hf, hub, jsonl, librispeech, text, units
from dmlm.pipeline.sources.interface import DEFAULT_OPTIONS, Corpus, Source, SourceOptions
from dmlm.pipeline.suggestions import did_you_mean

_MODULES: tuple[Corpus, ...] = (librispeech, ami, covost, coco, jsonl, hf, text, units)
_CORPORA: Mapping[str, Corpus] = dict(zip(SOURCE_NAMES, _MODULES, strict=True))

_CHOICES: Mapping[str, Callable[[Path, SourceOptions], tuple[SourceOptions, ...]]] = {
    "covost": covost.every_choice,
    "coco": coco.every_choice,
}
"""Of corpora that may hold several of what `open_source` opens one of."""
_BY_SPLITS: Mapping[str, Callable[[Path, Sequence[str], SourceOptions], SourceOptions]] = {
    "coco": coco.with_partition_of
}
"""Of those of them whose splits tell which one is meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _CorpusSource:
    name: str
    text_rule: str
    splits: tuple[str, ...]
    corpus: Corpus
    corpus_dir: Path
    options: SourceOptions

    @property
    def revision(self) -> str | None:
        """See `Source`."""
        return hub.commit_of(self.corpus_dir)

    def iter_items(self, limit: int | None = None) -> Iterator[SourceItem]:
        """See `Source`; the rest of a split is not read."""
        for split in self.splits:
            yield from islice(self._iter_split(split), limit)

    def _iter_split(self, split: str) -> Iterator[SourceItem]:
        """Reasons name files relative to the corpus: they go into data sets, which hold no local path."""
        for item in map(with_known_languages, self.corpus.iter_split(self.corpus_dir, split, self.options)):
            match item:
                case Utterance():
                    yield from _at_speeds(item, self.options.speeds)
                case Broken():
                    reason = item.reason.replace(f"{self.corpus_dir}{os.sep}", "")
                    yield replace(item, reason=reason)
                case _:
                    yield item


def _at_speeds(item: Utterance, speeds: Sequence[float]) -> Iterator[Utterance]:
    """The utterance at each speed; the key tells which, in percent. Overlap lasts as long as it is heard."""
    for speed in speeds:
        key = item.key if speed == 1 else f"{item.key}-sp{100 * speed:.0f}"
        overlap = item.overlap_seconds and item.overlap_seconds / speed
        yield replace(item, key=key, speed=speed, overlap_seconds=overlap)


def open_source(
    name: str,
    root: Path,
    splits: Sequence[str] | None = None,
    options: SourceOptions = DEFAULT_OPTIONS,
) -> Source:
    """Opens a corpus.

    Args:
        name: One of `SOURCE_NAMES`.
        root: Folder that holds `LibriSpeech/ ami/ covost/ coco/`, or the corpus folder itself; for your own
            files the folder that holds them, or one file.
        splits: Splits in the order wanted; None: all that are there, sorted.
        options: Settings that only some corpora need.

    Raises:
        ConfigError: Unknown source or split, or the corpus is not at `root`.
    """
    _check_name(name)
    corpus, manifest = _CORPORA[name], load_manifest(name)
    corpus_dir = hub.pinned(_locate(name, root))
    if splits and name in _BY_SPLITS:
        options = _BY_SPLITS[name](corpus_dir, splits, options)
    present = corpus.find_splits(corpus_dir, options)
    asked = tuple(dict.fromkeys(splits)) if splits else present
    for split in asked:
        if split not in present:
            raise ConfigError(
                f"{name}: no split {split!r} in {corpus_dir}; there are {', '.join(present)}"
                f"{where_to_get(manifest, split)}"
            )
    return _CorpusSource(
        name=name,
        text_rule=manifest.text_rule,
        splits=asked,
        corpus=corpus,
        corpus_dir=corpus_dir,
        options=options,
    )


def every_choice(name: str, root: Path, options: SourceOptions) -> tuple[SourceOptions, ...]:
    """Options for each language pair or partition that is there; just `options` where they name one.

    Raises:
        ConfigError: Unknown source, or the corpus is not at `root`.
    """
    _check_name(name)
    return _CHOICES[name](_locate(name, root), options) if name in _CHOICES else (options,)


def sources_present(root: Path) -> list[str]:
    """Names of the corpora that have their folder under `root`, in the order of `SOURCE_NAMES`.

    Sources without a folder of their own, which read any user's files, are never among them.
    """
    folders = {name: load_manifest(name).corpus_dir for name in SOURCE_NAMES}
    return [name for name, folder in folders.items() if folder and _CORPORA[name].is_present(root / folder)]


def _check_name(name: str) -> None:
    if name not in _CORPORA:
        raise ConfigError(
            f"unknown source {name!r}: one of {', '.join(SOURCE_NAMES)}{did_you_mean(name, SOURCE_NAMES)}"
        )


def _locate(name: str, root: Path) -> Path:
    corpus, manifest = _CORPORA[name], load_manifest(name)
    candidates = [root / manifest.corpus_dir, root] if manifest.corpus_dir else [root]
    for candidate in candidates:
        if corpus.is_present(candidate):
            return candidate
    if not root.exists():
        raise ConfigError(f"{name}: no folder {root}; give --root or set DMLM_DATA")
    places = " or ".join(map(str, candidates))
    raise ConfigError(
        f"{name}: expected {corpus.EXPECTED} in {places}, found no such files{where_to_get(manifest)}"
    )


def where_to_get(manifest: CorpusManifest, split: str | None = None) -> str:
    """End of a message: where an official split is, or the whole corpus; nothing about any other split."""
    known = next((known for known in manifest.splits if known.name == split), None)
    if split and not known:
        return ""  # nobody has it
    place = known.url if known and known.url else manifest.download
    if known and known.md5:
        place = f"{place} (md5 {known.md5})"
    return f"; get it: {place}" if place else ""
