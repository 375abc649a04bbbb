"""Typed reading of the packaged manifests: what a corpus is, where to get it, which weights are pinned."""

from dataclasses import dataclass
from importlib import resources
from typing import Literal

import yaml

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.strict_config import build_strictly
from dmlm.pipeline.suggestions import did_you_mean

MANIFEST_PACKAGE = "dmlm.data_manifests"
WEIGHTS = "weights"

Partition = Literal["train", "dev", "test"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitManifest:
    """One official split of a corpus."""

    name: str
    partition: Partition
    expected_count: int | None = None
    """Of the whole split, in what `CorpusManifest.counted` names; None: not known, or in its `pairs`."""
    expected_hours: float | None = None
    url: str | None = None
    md5: str | None = None
    """Checksum of the archive at `url`, as its publisher gives it."""
    recordings: tuple[str, ...] = ()
    """Recordings of the split, where a corpus is split by recording; empty: all that no other split names."""
    remark: str = ""
    """What else to know about the count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairManifest:
    """Samples of each whole split of one language pair."""

    name: str
    """Such as `zh_en`; no region."""
    train: int
    dev: int
    test: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusManifest:
    """A corpus: its licence, its place on disk, its text rule and its official splits."""

    name: str
    licence: str
    default_root: str
    """Folder that holds `corpus_dir`, relative to the working directory."""
    corpus_dir: str
    """Empty: the corpus has no folder of its own, it is whatever `--root` names."""
    text_rule: str
    splits: tuple[SplitManifest, ...]
    counted: Literal["samples", "recordings"] = "samples"
    """What the expected counts are counts of."""
    pairs: tuple[PairManifest, ...] = ()
    """Counts, where they depend on the language pair."""
    download: str = ""
    """Where the corpus can be had, for people; empty: the user brings it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedWeights:
    """Pretrained weights inside a Python package, pinned by version and sha256."""

    name: str
    """What `--encoder` calls them, such as `whisper:tiny.en`."""
    package: str
    """Import name of the package."""
    version: str
    path: str
    """File inside the package."""
    sha256: str
    format: str
    licence: str
    install: str
    """Command that installs the package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsManifest:
    """All pinned weights."""

    weights: tuple[PackagedWeights, ...]

    def find(self, name: str) -> PackagedWeights | None:
        """Weights of that name, or None."""
        return next((entry for entry in self.weights if entry.name == name), None)


def load_manifest(source: str) -> CorpusManifest:
    """Manifest of a corpus.

    Raises:
        ConfigError: No manifest of that name, or a key that is unknown, missing or of a wrong type.
    """
    names = _manifest_names()
    if source not in names:
        raise ConfigError(
            f"unknown corpus {source!r}: one of {', '.join(names)}{did_you_mean(source, names)}"
        )
    return parse_corpus_manifest(_read(source), f"{source}.yaml")


def load_weights_manifest() -> WeightsManifest:
    """Manifest of the pinned weights."""
    return build_strictly(WeightsManifest, _parse_yaml(_read(WEIGHTS), "weights.yaml"), "weights.yaml")


def parse_corpus_manifest(text: str, where: str) -> CorpusManifest:
    """Corpus manifest from YAML text; `where` names it in errors.

    Raises:
        ConfigError: Not YAML, or a key that is unknown, missing or of a wrong type.
    """
    return build_strictly(CorpusManifest, _parse_yaml(text, where), where)


def _manifest_names() -> list[str]:
    files = (entry.name for entry in resources.files(MANIFEST_PACKAGE).iterdir())
    return sorted(
        name.removesuffix(".yaml") for name in files if name.endswith(".yaml") and name != f"{WEIGHTS}.yaml"
    )


def _read(name: str) -> str:
    return (resources.files(MANIFEST_PACKAGE) / f"{name}.yaml").read_text(encoding="utf-8")


def _parse_yaml(text: str, where: str) -> object:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid YAML ({str(error).splitlines()[0]})") from error
