"""`verify --reencode N`: some samples are made again from the corpus and compared token by token.

They are made by the code of `tokenize` with the codebook inside the data set, together and one by one: a
file's batch-mates are others each time, so rounding may differ. Rounding moves few tokens and spreads them;
damage and mixed-up files show as more, or as one sample that differs widely.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from dmlm.pipeline.encoders import Precision, WindowMode
from dmlm.pipeline.errors import CorruptInputError, FingerprintMismatchError
from dmlm.pipeline.randomness import generator_for
from dmlm.pipeline.samples import Modality, Sample, SourceItem, TokenArray
from dmlm.pipeline.shards import CODEBOOK_NAME, DatasetCard, load_dataset_card, open_shard
from dmlm.pipeline.shards.format import MODALITY_OF, token_members
from dmlm.pipeline.sources import read_options
from dmlm.pipeline.tokenization.item_encoding import ItemEncoder
from dmlm.pipeline.tokenization.output_folder import check_same_items
from dmlm.pipeline.tokenization.planning import TokenizeConfig, TokenizePlan, plan_tokenization
from dmlm.pipeline.tokenization.shard_tasks import ShardTask
from dmlm.pipeline.tokenizers import Fingerprint
from dmlm.pipeline.tokenizers.pretrained import TRANSFORMERS
from dmlm.pipeline.tokenizers.registry import Tokenizers

MAX_SHARE: Final = 0.001
"""Of all units, or of all image tokens: more is no rounding. Of text, nothing may differ."""
MAX_SHARE_OF_SAMPLE: Final = 0.05
ALWAYS_ALLOWED: Final = 2
"""Tokens, where a share of few would be less than one."""

_TITLES: Final = {Modality.SPEECH: "units", Modality.IMAGE: "image tokens", Modality.TEXT: "text tokens"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReencodeConfig:
    """Which data set to try, and where its corpus is."""

    directory: Path
    root: Path
    num_samples: int
    seed: int = 0
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class Tally:
    """Tokens that differ, out of how many."""

    num_different: int = 0
    num_tokens: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.num_different + other.num_different, self.num_tokens + other.num_tokens)

    def exceeds(self, share: float) -> bool:
        """Whether more differ than that share, few tokens aside."""
        return self.num_different > max(ALWAYS_ALLOWED, share * self.num_tokens)

    def __str__(self) -> str:
        if not self.num_tokens:
            return "-"
        share = self.num_different / self.num_tokens
        return f"{self.num_different} of {self.num_tokens} ({share:.3%})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Samples made again in one way, against the data set."""

    way: str
    samples: Mapping[str, Mapping[Modality, Tally]]
    """By key."""
    is_judged: bool = True
    """False: another tokenizer, for comparison only."""

    def total(self, modality: Modality) -> Tally:
        """Of all samples."""
        return sum((tallies[modality] for tallies in self.samples.values()), Tally())

    def faults(self) -> Iterator[str]:
        """What rounding cannot explain."""
        if not self.is_judged:
            return
        for modality, title in _TITLES.items():
            total = self.total(modality)
            if total.exceeds(MAX_SHARE) or (modality is Modality.TEXT and total.num_different):
                yield f"{self.way}: {total} {title} differ"
        for key, tallies in self.samples.items():
            for modality in (Modality.SPEECH, Modality.IMAGE):
                if tallies[modality].exceeds(MAX_SHARE_OF_SAMPLE):
                    yield f"{self.way}: {key}: {tallies[modality]} {_TITLES[modality]} differ"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReencodeReport:
    """How far samples made again differ from those of the data set."""

    name: str
    comparisons: tuple[Comparison, ...]

    def table(self) -> str:
        """A line for each way, for people."""
        num_samples = len(self.comparisons[0].samples)
        rows = [[f"{num_samples} samples again", *_TITLES.values()]]
        rows += [
            [comparison.way, *(str(comparison.total(modality)) for modality in _TITLES)]
            for comparison in self.comparisons
        ]
        return "\n".join("".join(f"{cell:<26}" for cell in row).rstrip() for row in rows)

    def check(self) -> None:
        """Raises CorruptInputError when more differs than rounding can explain."""
        faults = [fault for comparison in self.comparisons for fault in comparison.faults()]
        if faults:
            raise CorruptInputError(
                f"{self.name}: more than rounding: {'; '.join(faults[:3])} ({len(faults)} findings); "
                "tokenize again, on the device and versions that will be used"
            )


def reencode(config: ReencodeConfig) -> ReencodeReport:
    """Makes some samples of a data set again, spread over its shards, and compares them.

    Raises:
        ConfigError: The corpus is not at `root`, or the weights of a tokenizer are not there.
        FingerprintMismatchError: `root` holds other items or files, or a tokenizer is not what it was.
        ShardCorruptError: The data set is not finished, or damaged.
    """
    card = load_dataset_card(config.directory)
    plan = plan_tokenization(_as_tokenized(config, card), config.directory / CODEBOOK_NAME)
    _check_same_origin(config.directory, card, plan)
    stored = {sample.key: sample for sample in _draw(config, card)}
    items = [item for task in plan.tasks.values() for item in task.items if item.key in stored]
    ways = [_compare("together", plan.encoder, [items], stored)]
    ways.append(_compare("one by one", plan.encoder, [[item] for item in items], stored))
    for way, tokenizers in _other_tokenizers(config, card.fingerprints.get(Modality.SPEECH, {})):
        encoder = replace(plan.encoder, speech=tokenizers.speech)
        ways.append(replace(_compare(f"({way})", encoder, [items], stored), is_judged=False))
    return ReencodeReport(name=str(config.directory), comparisons=tuple(ways))


def _other_tokenizers(config: ReencodeConfig, speech: Fingerprint) -> Iterator[tuple[str, Tokenizers]]:
    """Yields the same tokenizers in the other window mode and the other precision, where there are any."""
    open_tokenizers = partial(Tokenizers, config.directory / CODEBOOK_NAME, config.device)
    if "window" in speech:
        (window,) = set(WindowMode) - {speech["window"]}
        yield f"window {window}", open_tokenizers(window=window)
    if "precision" in speech:
        (precision,) = set(Precision) - {speech["precision"]}
        yield str(precision), open_tokenizers(precision=precision)


def _as_tokenized(config: ReencodeConfig, card: DatasetCard) -> TokenizeConfig:
    """Settings of the run that made the data set."""
    settings = card.settings
    backend = card.fingerprints.get(Modality.SPEECH, {}).get("backend", TRANSFORMERS)
    return TokenizeConfig(
        source=settings["source"],
        root=config.root,
        codebook_dir=config.directory / CODEBOOK_NAME,
        out_dir=config.directory,
        unit_backend=str(backend),
        splits=tuple(settings["splits"]),
        options=read_options(settings),
        limit=settings["limit"],
        samples_per_shard=settings["samples_per_shard"],
        device=config.device,
    )


def _check_same_origin(directory: Path, card: DatasetCard, plan: TokenizePlan) -> None:
    check_same_items(directory, card, plan.recipe, plan.tasks.values())
    for modality, fingerprint in plan.recipe["fingerprints"].items():
        if fingerprint != card.fingerprints[modality]:
            raise FingerprintMismatchError(
                f"{directory}: its {modality} tokenizer is {dict(card.fingerprints[modality])}, "
                f"here it is {fingerprint}"
            )


def _draw(config: ReencodeConfig, card: DatasetCard) -> Iterator[Sample]:
    """Yields one sample out of each of `num_samples` equal stretches of the data set."""
    num_drawn = min(config.num_samples, card.num_out)
    edges = np.linspace(0, card.num_out, num_drawn + 1).astype(np.int64)
    drawn = generator_for(config.seed, "reencode", card.name).integers(edges[:-1], edges[1:])
    start = 0
    for record in card.shards:
        rows = drawn[(drawn >= start) & (drawn < start + record.num_samples)] - start
        shard = open_shard(config.directory, record.name)
        yield from (shard.read_sample(int(row)) for row in rows)
        start += record.num_samples


def _compare(
    way: str, encoder: ItemEncoder, groups: Sequence[Sequence[SourceItem]], stored: Mapping[str, Sample]
) -> Comparison:
    """Encodes each group of items by itself; an item that fails now differs in all its tokens."""
    tasks = [ShardTask(name="again", items=tuple(group)) for group in groups]
    results = [result for task in tasks for result in encoder.encode(task, lambda: None)]
    made = {result.key: result for result in results if isinstance(result, Sample)}
    samples = {key: _count(sample, made.get(key)) for key, sample in stored.items()}
    return Comparison(way=way, samples=samples)


def _count(stored: Sample, made: Sample | None) -> dict[Modality, Tally]:
    there = dict(token_members(stored))
    here = dict(token_members(made)) if made else {}
    nothing = np.zeros(0, dtype=np.int32)
    tallies = dict.fromkeys(_TITLES, Tally())
    for name in there.keys() | here.keys():
        tallies[MODALITY_OF[name]] += _differ(there.get(name, nothing), here.get(name, nothing))
    return tallies


def _differ(there: TokenArray, here: TokenArray) -> Tally:
    """Position by position; what one has more than the other differs."""
    num_tokens, num_both = max(len(there), len(here)), min(len(there), len(here))
    num_equal = int(np.count_nonzero(there[:num_both] == here[:num_both]))
    return Tally(num_tokens - num_equal, num_tokens)
