"""What a source is, and what a corpus must provide to become one.

A corpus is a module with `EXPECTED`, `is_present`, `find_splits` and `iter_split`; the registry does
the rest.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import SourceItem

_KEY = re.compile(r"[A-Za-z0-9_-]+")
_NOT_IN_KEY = re.compile(r"[^A-Za-z0-9_-]")
MIN_SPEED, MAX_SPEED = 0.5, 2.0
"""Beyond these nobody would say it is speech."""

CocoPartition = Literal["2014", "2017", "karpathy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """Settings that only some corpora need; `check_options` refuses them for the others.

    Raises:
        ConfigError: A speed is out of range.
    """

    lang_pair: str | None = None
    """CoVoST: which pair, such as `it_en`, with or without regions; None: the only one present."""
    microphone: Literal["ihm-mix", "ihm", "sdm"] = "ihm-mix"
    """AMI: mix of the headsets, each speaker's own headset, or one distant microphone."""
    truncated_words: Literal["keep", "drop"] = "keep"
    """AMI: words that the speaker broke off."""
    coco_splits: CocoPartition | None = None
    """COCO: which partition; None: the one that the splits asked for are of, else Karpathy's when its file is
    there, else the only year present."""
    language: str | None = None
    """text, units and hf: language of all texts, an ISO code such as `en`."""
    columns: str | None = None
    """hf: columns by field of `jsonl`, such as `text=sentence,key=id`; None: by type and usual names."""
    num_units: int | None = None
    """units: size of their codebook; None: the largest id and one."""
    units_name: str | None = None
    """units: what made them; None: a hash of the files, so that only their own splits fit together."""
    speeds: tuple[float, ...] = (1.0,)
    """Speech: every utterance once at each of these speeds."""

    def __post_init__(self) -> None:
        for speed in self.speeds:
            if not MIN_SPEED <= speed <= MAX_SPEED:
                raise ConfigError(f"--speed {speed}: must be in [{MIN_SPEED}, {MAX_SPEED}]")
        if len({f"{100 * speed:.0f}" for speed in self.speeds}) < len(self.speeds):
            raise ConfigError("--speed: two of them are the same percentage; give each once")


DEFAULT_OPTIONS = SourceOptions()
_READERS: Final[Mapping[str, Collection[str]]] = {
    "lang_pair": ("covost",),
    "microphone": ("ami",),
    "truncated_words": ("ami",),
    "coco_splits": ("coco",),
    "language": ("hf", "text", "units"),
    "columns": ("hf",),
    "num_units": ("units",),
    "units_name": ("units",),
    "speeds": ("librispeech", "ami", "covost", "jsonl", "hf"),
}
"""The sources that read each option."""


def check_options(options: SourceOptions, sources: Collection[str]) -> None:
    """Raises ConfigError for an option that none of the sources reads."""
    for name in _changed(options):
        if not {*sources} & {*_READERS[name]}:
            option = "--speed" if name == "speeds" else f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"{option}: not read by --source {', '.join(sources)}, only by {', '.join(_READERS[name])}; "
                "leave it out"
            )


def _changed(options: SourceOptions) -> dict[str, Any]:
    defaults = asdict(DEFAULT_OPTIONS)
    return {name: value for name, value in asdict(options).items() if value != defaults[name]}


def describe_options(options: SourceOptions) -> dict[str, Any]:
    """The language pair, and whatever else differs from the defaults."""
    changed = _changed(options)
    if "speeds" in changed:
        changed["speeds"] = list(options.speeds)
    return {"lang_pair": options.lang_pair, **changed}


def read_options(settings: Mapping[str, Any]) -> SourceOptions:
    """Options from settings that hold what `describe_options` gave."""
    named = {name: settings[name] for name in SourceOptions.__slots__ if name in settings}
    return SourceOptions(**named | {"speeds": tuple(named.get("speeds", DEFAULT_OPTIONS.speeds))})


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

    @property
    def revision(self) -> str | None:
        """Commit of a data set at a hub; None for what lies in folders, or where the hub was never asked."""

    def iter_items(self, limit: int | None = None) -> Iterator[SourceItem]:
        """Yields all items lazily, what is broken or left out too; `limit`: only the first of each split."""


class Corpus(Protocol):
    """The true on-disk layout of one corpus; modules of this package are such.

    A corpus whose manifest names no folder may be a single file too; `corpus_dir` is that file then.
    """

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
