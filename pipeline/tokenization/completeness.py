"""Whether a corpus is all there: what is found in it beside what its publisher counts."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.manifests import CorpusManifest, SplitManifest, load_manifest
from dmlm.pipeline.samples import Broken, Skipped, SourceItem, Utterance
from dmlm.pipeline.sources.registry import where_to_get
from dmlm.pipeline.synthesis.reports import FINISHED
from dmlm.pipeline.tokenization.shard_tasks import ShardTask

_logger = logging.getLogger(__name__)


def nothing_to_tokenize(source: str, root: Path, items: Sequence[SourceItem]) -> ConfigError:
    """Error for a corpus all of whose items are left out: the commonest reason, and where to get the rest."""
    return ConfigError(
        f"{source}: nothing to tokenize in {root}, {len(items)} items left out{_why_left_out(items)}"
        f"{where_to_get(load_manifest(source))}"
    )


def _why_left_out(items: Iterable[SourceItem]) -> str:
    """The commonest reason, whatever line or file it names first; an example where all differ."""
    reasons = [item.reason for item in items if isinstance(item, Skipped | Broken)]
    kinds = Counter(reason.partition(": ")[2] or reason for reason in reasons)
    for kind, count in kinds.most_common(1):
        return f", such as {reasons[0]}" if count == 1 else f", {count} of them: {kind}"
    return ""


def warn_of_other_counts(source: str, root: Path, tasks: Iterable[ShardTask]) -> None:
    """Warns of each official split that has another number of items than its publisher gives.

    What was left out does not count; what is broken does, but for a recording of which nothing can be used.
    A sample of `dmlm-cli sample` is no part of the corpus whose layout it has.
    """
    if any((folder / FINISHED).is_file() for folder in (root, root.parent)):
        return
    manifest = load_manifest(source)
    known = {split.name: split for split in manifest.splits}
    by_split: dict[str, list[SourceItem]] = defaultdict(list)
    for task in tasks:
        for item in task.items:
            by_split[item.split].append(item)
    for name, members in by_split.items():
        expected = _expected(manifest, known[name], members) if name in known else None
        num_found = _count(manifest, members)
        if expected is not None and num_found != expected:
            _logger.warning("%s", _describe(manifest, known[name], num_found, expected))


def _expected(manifest: CorpusManifest, split: SplitManifest, items: Sequence[SourceItem]) -> int | None:
    if not manifest.pairs:
        return split.expected_count
    names = {f"{i.language}_{i.translation_language}" for i in items if isinstance(i, Utterance)}
    counts = [getattr(pair, split.partition) for pair in manifest.pairs if pair.name in names]
    return counts[0] if counts else None


def _count(manifest: CorpusManifest, items: Iterable[SourceItem]) -> int:
    """Samples or recordings; an utterance that is taken at several speeds counts once."""
    kept = [item for item in items if not isinstance(item, Skipped)]
    utterances = [item for item in kept if isinstance(item, Utterance)]
    if manifest.counted == "recordings":
        return len({item.recording_id for item in utterances})
    num_speeds = len({item.speed for item in utterances}) or 1
    return len(kept) - len(utterances) + len(utterances) // num_speeds


def _describe(manifest: CorpusManifest, split: SplitManifest, num_found: int, expected: int) -> str:
    hours = f" ({split.expected_hours} h)" if split.expected_hours else ""
    remark = f" ({split.remark})" if split.remark else ""
    extent = "less" if num_found < expected else "more"
    return (
        f"{manifest.name} {split.name}: {num_found} {manifest.counted} found, {expected} published{hours}"
        f"{remark}: {extent} than the whole split"
    )
