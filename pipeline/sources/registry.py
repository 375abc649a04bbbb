"""Sources by name: finds the corpus folder, checks the splits, opens it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.manifests import load_manifest
from dmlm.pipeline.samples import SourceItem
from dmlm.pipeline.sources import ami, coco, covost, librispeech
from dmlm.pipeline.sources.interface import DEFAULT_OPTIONS, Corpus, Source, SourceOptions
from dmlm.pipeline.suggestions import did_you_mean

_CORPORA: Mapping[str, Corpus] = {
    "librispeech": librispeech,
    "ami": ami,
    "covost": covost,
    "coco": coco,
}

SOURCES = tuple(_CORPORA)
"""Names that `--source` accepts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _CorpusSource:
    name: str
    text_rule: str
    splits: tuple[str, ...]
    corpus: Corpus
    corpus_dir: Path
    options: SourceOptions

    def iter_items(self) -> Iterator[SourceItem]:
        for split in self.splits:
            yield from self.corpus.iter_split(self.corpus_dir, split, self.options)


def open_source(
    name: str,
    root: Path,
    splits: Sequence[str] | None = None,
    options: SourceOptions = DEFAULT_OPTIONS,
) -> Source:
    """Opens a corpus.

    Args:
        name: One of `SOURCES`.
        root: Folder that holds `LibriSpeech/ ami/ covost/ coco/`, or the corpus folder itself.
        splits: Splits in the order wanted; None: all that are there, sorted.
        options: Settings that only some corpora need.

    Raises:
        ConfigError: Unknown source or split, or the corpus is not at `root`.
    """
    if name not in _CORPORA:
        raise ConfigError(
            f"unknown source {name!r}: one of {', '.join(SOURCES)}{did_you_mean(name, SOURCES)}"
        )
    corpus, manifest = _CORPORA[name], load_manifest(name)
    corpus_dir = _locate(name, root)
    present = corpus.find_splits(corpus_dir, options)
    asked = tuple(dict.fromkeys(splits)) if splits else present
    for split in asked:
        if split not in present:
            raise ConfigError(f"{name}: no split {split!r} in {corpus_dir}; there are {', '.join(present)}")
    return _CorpusSource(
        name=name,
        text_rule=manifest.text_rule,
        splits=asked,
        corpus=corpus,
        corpus_dir=corpus_dir,
        options=options,
    )


def sources_present(root: Path) -> list[str]:
    """Names of the sources whose corpus folder is under `root`, in the order of `SOURCES`."""
    return [
        name for name, corpus in _CORPORA.items() if corpus.is_present(root / load_manifest(name).corpus_dir)
    ]


def _locate(name: str, root: Path) -> Path:
    if not root.is_dir():
        raise ConfigError(f"{name}: no folder {root}; give --root or set DMLM_DATA")
    corpus = _CORPORA[name]
    corpus_dir = root / load_manifest(name).corpus_dir
    for candidate in (corpus_dir, root):
        if corpus.is_present(candidate):
            return candidate
    raise ConfigError(f"{name}: expected {corpus.EXPECTED} in {corpus_dir} or {root}, found no such files")
