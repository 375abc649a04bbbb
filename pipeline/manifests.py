"""Typed reading of the packaged manifests: what a corpus is, where to get it, which weights are pinned."""

import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from importlib import resources
from reprlib import repr as short_repr
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.suggestions import did_you_mean

MANIFEST_PACKAGE = "dmlm.data_manifests"
WEIGHTS = "weights"

Partition = Literal["train", "dev", "test"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitManifest:
    """One official split of a corpus."""

    name: str
    partition: Partition
    expected_count: int | None = None
    """Of the whole split, in what `CorpusManifest.counted` names; None: not known, or in its `pairs`."""
    expected_hours: float | None = None
    url: str | None = None
    sha256: str | None = None
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
    title: str
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
    return _build(WeightsManifest, _parse_yaml(_read(WEIGHTS), "weights.yaml"), "weights.yaml")


def parse_corpus_manifest(text: str, where: str) -> CorpusManifest:
    """Corpus manifest from YAML text; `where` names it in errors.

    Raises:
        ConfigError: Not YAML, or a key that is unknown, missing or of a wrong type.
    """
    return _build(CorpusManifest, _parse_yaml(text, where), where)


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


def _build(kind: type[T], content: object, where: str) -> T:
    """Dataclass `kind` from a mapping with exactly its keys."""
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where}: expected a mapping, found {type(content).__name__}")
    hints = get_type_hints(kind)
    for key in content:
        if key not in hints:
            raise ConfigError(f"{where}: unknown key {key!r}{did_you_mean(str(key), hints)}")
    required = [field.name for field in fields(kind) if field.default is MISSING]  # type: ignore[arg-type]
    for key in required:
        if key not in content:
            raise ConfigError(f"{where}: key {key!r} is missing")
    return kind(**{key: _convert(value, hints[key], f"{where}: {key}") for key, value in content.items()})


def _convert(value: object, hint: Any, where: str) -> object:
    """Value of the type `hint`; errors show little of it, for a few lines of YAML can unfold to gigabytes."""
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where}: expected a list, found {short_repr(value)}")
        (item_hint, _) = get_args(hint)
        return tuple(_convert(item, item_hint, f"{where}[{i}]") for i, item in enumerate(value))
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ConfigError(
                f"{where}: expected one of {', '.join(get_args(hint))}, found {short_repr(value)}"
            )
        return value
    if hasattr(hint, "__dataclass_fields__"):
        return _build(hint, value, where)
    if isinstance(value, bool) or not isinstance(value, hint):
        name = str(hint) if isinstance(hint, types.UnionType) else hint.__name__
        raise ConfigError(f"{where}: expected {name}, found {short_repr(value)}")
    return value
