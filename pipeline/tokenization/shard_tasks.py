"""Items of a source -> independent shard tasks.

A task holds consecutive items; its content depends on its items and the recipe only, never on other tasks, so
tasks may be done in any order, by anybody, again after a kill, and give the same bytes.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from dmlm.pipeline.samples import Broken, ImageCaption, Skipped, SourceItem, TextLine, UnitLine, Utterance
from dmlm.pipeline.storage import sha256_json

Recipe = Mapping[str, Any]
"""Json-able settings, text rule and tokenizer fingerprints: all that tokens depend on beside the items."""

MAX_SKIPPED: Final = 50
"""Skipped items of a shard for each sample that it may hold: they are all in the footer of its index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """The items of one shard, in order."""

    name: str
    items: tuple[SourceItem, ...]

    @property
    def utterances(self) -> list[Utterance]:
        """Items with audio."""
        return [item for item in self.items if isinstance(item, Utterance)]

    @property
    def image_paths(self) -> list[Path]:
        """Distinct images, in order."""
        return list(dict.fromkeys(item.image_path for item in self.items if isinstance(item, ImageCaption)))

    @property
    def num_lines(self) -> int:
        """Lines of text or units: nothing is loaded for them."""
        return sum(isinstance(item, TextLine | UnitLine) for item in self.items)

    @property
    def num_inputs(self) -> int:
        """Stretches of audio, images, and lines."""
        return len(self.utterances) + len(self.image_paths) + self.num_lines


def plan_shards(name: str, items: Iterable[SourceItem], samples_per_shard: int) -> list[ShardTask]:
    """Tasks `name`-000000, `name`-000001 ...; the captions of an image stay together.

    Skipped items go along with their neighbours and fill no shard, unless they are `MAX_SKIPPED` times as
    many as its samples may be. A key seen before is broken.
    """
    shards: list[list[SourceItem]] = [[]]
    num_filled = num_skipped = 0
    for group in _group_captions(_refuse_second_keys(items)):
        size = sum(not isinstance(item, Skipped) for item in group)
        is_full = size and num_filled and num_filled + size > samples_per_shard
        if is_full or num_skipped >= MAX_SKIPPED * samples_per_shard:
            shards.append([])
            num_filled = num_skipped = 0
        shards[-1].extend(group)
        num_filled += size
        num_skipped += len(group) - size
    return [ShardTask(name=f"{name}-{number:06d}", items=tuple(shard)) for number, shard in enumerate(shards)]


def _group_captions(items: Iterable[SourceItem]) -> Iterator[list[SourceItem]]:
    def image_or_key(item: SourceItem) -> Path | str:
        return item.image_path if isinstance(item, ImageCaption) else item.key

    for _, group in groupby(items, key=image_or_key):
        yield list(group)


def _refuse_second_keys(items: Iterable[SourceItem]) -> Iterator[SourceItem]:
    splits: dict[str, str] = {}
    for item in items:
        if isinstance(item, Skipped):
            yield item
        elif item.key in splits:
            reason = f"an item of {item.split} whose key is already that of an item of {splits[item.key]}"
            yield Broken(key=item.key, source=item.source, split=item.split, reason=reason)
        else:
            splits[item.key] = item.split
            yield item


def task_sha256(task: ShardTask, recipe: Recipe) -> str:
    """What the shard is made from: the recipe, the items, and the size of each file they name.

    Files count by name and size, so that moving a corpus changes nothing and replacing a broken file does.
    """
    sizes: dict[Path, int | None] = {}
    return sha256_json([recipe, task.name, [_describe(item, sizes) for item in task.items]])


def _describe(item: SourceItem, sizes: dict[Path, int | None]) -> dict[str, Any]:
    description = {"kind": type(item).__name__, **asdict(item)}
    for name, value in description.items():
        if isinstance(value, Path):
            if value not in sizes:
                sizes[value] = value.stat().st_size if value.is_file() else None
            description[name] = [value.name, sizes[value]]
    return description
