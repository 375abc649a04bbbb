"""`tokenize --dry-run`: what a run would give and cost, from some inputs of each split, really encoded."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

from dmlm.pipeline.quarantine import LedgerEntry
from dmlm.pipeline.randomness import generator_for
from dmlm.pipeline.samples import Broken, ImageCaption, Sample, Skipped, SourceItem
from dmlm.pipeline.shards import FinishedShard, TokenCounts, write_shard
from dmlm.pipeline.shards.ustar import END_OF_TAR
from dmlm.pipeline.tokenization.completeness import warn_of_other_counts
from dmlm.pipeline.tokenization.planning import TokenizeConfig, TokenizePlan, plan_tokenization
from dmlm.pipeline.tokenization.shard_tasks import ShardTask
from dmlm.pipeline.tokenizers.choosing import chosen_codebook

INPUTS_PER_SPLIT = 20
NAME = "dry-run"


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitEstimate:
    """What a split would give, scaled up from the inputs that were encoded."""

    split: str
    num_inputs: int
    """Stretches of audio, images, and lines of text or units."""
    num_measured: int
    audio_seconds: float
    num_tokens: TokenCounts
    num_bytes: int
    """Of the tars and their indexes."""
    seconds: float
    """On this machine, as it is now."""
    num_items: int
    """Samples that the inputs measured should have given."""
    reasons: tuple[str, ...]
    """Why some of them could not be used, one each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRunReport:
    """Estimates of all splits."""

    splits: tuple[SplitEstimate, ...]

    def table(self) -> str:
        """A few lines for people."""
        lines = [_describe(split) for split in self.splits]
        if len(lines) > 1:
            hours = sum(split.audio_seconds for split in self.splits) / 3600
            num_bytes = sum(split.num_bytes for split in self.splits)
            seconds = sum(split.seconds for split in self.splits)
            num_tokens = sum((split.num_tokens for split in self.splits), TokenCounts())
            lines.append(
                f"all: {hours:.1f} h of audio, {num_tokens.describe()}, {num_bytes / 1e6:.1f} MB, "
                f"{seconds / 3600:.2f} h to do"
            )
        return "\n".join([*lines, "estimated; nothing was written"])


def estimate_run(config: TokenizeConfig) -> DryRunReport:
    """Encodes some of each split and says what the whole run would give; writes nothing into `out_dir`.

    Raises:
        ConfigError: The corpus, the codebook or a part of it is not there.
    """
    with chosen_codebook(
        config.codebook_dir, config.choice, device=config.device, unit_backend=config.unit_backend
    ) as codebook_dir:
        plan = plan_tokenization(config, codebook_dir)
        if config.limit is None:
            warn_of_other_counts(config.source, config.root, plan.tasks.values())
        splits = _group_by_split(item for task in plan.tasks.values() for item in task.items)
        return DryRunReport(splits=tuple(_measure(plan, name, groups) for name, groups in splits.items()))


def _group_by_split(items: Iterable[SourceItem]) -> dict[str, list[list[SourceItem]]]:
    """Items that will be encoded, by split; those of one file together."""

    def file_of(item: SourceItem) -> Path | str:
        return item.image_path if isinstance(item, ImageCaption) else item.key

    kept = (item for item in items if not isinstance(item, Skipped | Broken))
    splits: dict[str, list[list[SourceItem]]] = {}
    for _, group in groupby(kept, key=file_of):
        members: list[SourceItem] = list(group)
        splits.setdefault(members[0].split, []).append(members)
    return splits


def _measure(plan: TokenizePlan, split: str, groups: list[list[SourceItem]]) -> SplitEstimate:
    rng = generator_for(0, NAME, split)
    drawn = sorted(rng.permutation(len(groups))[:INPUTS_PER_SPLIT])
    items = tuple(item for index in drawn for item in groups[index])
    # The first file pays for what is loaded late.
    plan.encoder.encode(ShardTask(name="warm-up", items=tuple(groups[drawn[0]])), lambda: None)
    start = time.monotonic()
    results = plan.encoder.encode(ShardTask(name=NAME, items=items), lambda: None)
    seconds = time.monotonic() - start
    samples = [result for result in results if isinstance(result, Sample)]
    ledger = tuple(result for result in results if isinstance(result, LedgerEntry))
    shard, index_bytes = _write(plan, samples, ledger)
    # The index of a single sample is mostly names of columns, which every shard has once.
    fixed_bytes = _write(plan, samples[:1])[1] + len(END_OF_TAR)
    sample_bytes = shard.record.tar_bytes + index_bytes - fixed_bytes
    num_shards = sum(any(item.split == split for item in task.items) for task in plan.tasks.values())
    scale = len(groups) / len(drawn)
    return SplitEstimate(
        split=split,
        num_inputs=len(groups),
        num_measured=len(drawn),
        audio_seconds=shard.footer.audio_seconds * scale,
        num_tokens=TokenCounts(**_scaled(asdict(shard.record.num_tokens), scale)),
        num_bytes=round(sample_bytes * scale) + fixed_bytes * num_shards,
        seconds=seconds * scale,
        num_items=len(items),
        reasons=tuple(entry.reason for entry in ledger),
    )


def _write(
    plan: TokenizePlan, samples: list[Sample], ledger: tuple[LedgerEntry, ...] = ()
) -> tuple[FinishedShard, int]:
    """A shard that is removed again, and the size of its index in bytes."""
    num_in = len(samples) + len(ledger)
    with TemporaryDirectory() as scratch:
        shard = write_shard(
            Path(scratch), NAME, samples, plan.vocabulary, task_sha256="", num_in=num_in, ledger=ledger
        )
        return shard, (Path(scratch) / f"{NAME}.parquet").stat().st_size


def _scaled(counts: Mapping[str, int], scale: float) -> dict[str, int]:
    return {name: round(count * scale) for name, count in counts.items()}


def _describe(split: SplitEstimate) -> str:
    audio = f"{split.audio_seconds / 3600:.2f} h of audio, " if split.audio_seconds else ""
    estimate = (
        f"{split.split}: {audio}{split.num_tokens.describe()}, {split.num_bytes / 1e6:.1f} MB, "
        f"{split.seconds:.0f} s to do (measured on {split.num_measured} of {split.num_inputs} inputs)"
    )
    if not split.reasons:
        return estimate
    num_unusable = f"{len(split.reasons)} of {split.num_items} samples measured could not be used"
    return f"{estimate}\n{split.split}: {num_unusable}: {split.reasons[0]}"
