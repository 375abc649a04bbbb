"""`tokenize`: plan -> independent shard tasks -> publish.

Run again after a kill it keeps what is finished and ends with the same bytes as an undisturbed run. So any
part of the tasks may be done elsewhere before: `tokenize_share` does one, `executors` start many.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.manifests import load_manifest
from dmlm.pipeline.progress import Progress
from dmlm.pipeline.quarantine import BadSampleBudget, LedgerEntry
from dmlm.pipeline.remote.datasets import send_dataset, send_shard
from dmlm.pipeline.remote.folder import RemoteFolder
from dmlm.pipeline.samples import Modality, Sample, SourceItem, TextLine, UnitLine, Utterance
from dmlm.pipeline.shards import CODEBOOK_NAME, FinishedShard, write_shard
from dmlm.pipeline.shards.format import FORMAT_VERSION
from dmlm.pipeline.sources import DEFAULT_OPTIONS, Source, SourceOptions, describe_options, open_source
from dmlm.pipeline.storage import write_json
from dmlm.pipeline.tokenization.completeness import nothing_to_tokenize, warn_of_other_counts
from dmlm.pipeline.tokenization.item_encoding import NOTHING_KNOWN, ItemEncoder, require
from dmlm.pipeline.tokenization.output_folder import (
    claim_folder,
    claim_remote,
    copy_codebook,
    files_are_whole,
    find_finished,
    publish,
    withdraw,
)
from dmlm.pipeline.tokenization.report import REPORT_NAME, TokenizeReport
from dmlm.pipeline.tokenization.reuse import EarlierDataset, open_earlier_dataset
from dmlm.pipeline.tokenization.shard_tasks import Recipe, ShardTask, plan_shards, task_sha256
from dmlm.pipeline.tokenizers.choosing import (
    AS_IN_CODEBOOK,
    TokenizerChoice,
    check_idle_choice,
    chosen_codebook,
)
from dmlm.pipeline.tokenizers.pretrained import TRANSFORMERS, add_terms
from dmlm.pipeline.tokenizers.registry import Tokenizers, load_tokenizers
from dmlm.pipeline.vocabulary import Vocabulary

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """What to tokenize, with what, into which folder."""

    source: str
    root: Path
    """Folder that holds the corpus folder, or the corpus folder itself."""
    codebook_dir: Path | None
    """None: every tokenizer needed is in `choice`."""
    out_dir: Path
    remote: RemoteFolder | None = None
    """Where the data set is published; `out_dir` is its mirror then."""
    choice: TokenizerChoice = AS_IN_CODEBOOK
    unit_backend: str = TRANSFORMERS
    """What computes the Seamless codec."""
    splits: tuple[str, ...] | None = None
    """None: all."""
    options: SourceOptions = DEFAULT_OPTIONS
    limit: int | None = None
    """Items of each split to take, from its first; None: all."""
    samples_per_shard: int = 1000
    """A kill costs at most the work of one shard; training wants many more shards than readers."""
    device: str = "auto"
    reuse_dir: Path | None = None
    """Data set of the same items to take the tokens from whose tokenizer is the same."""

    def __post_init__(self) -> None:
        for name in ("limit", "samples_per_shard"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} is {value}, must be at least 1")


def tokenize(
    config: TokenizeConfig, spread: Callable[[TokenizeConfig], None] | None = None
) -> TokenizeReport:
    """Turns a corpus into a data set of token shards.

    Args:
        config: What to tokenize.
        spread: Has shards finished elsewhere, see `executors`; what it leaves is done here. None: all is.

    Raises:
        ConfigError: The corpus, the codebook or a part of it is not there, or `out_dir` holds something else.
        FingerprintMismatchError: `out_dir` holds a data set of other settings, which is left as it is, or
            `reuse_dir` one of other items.
        ShardCorruptError: `reuse_dir` is not finished, or a shard of it is damaged.
        BadSampleBudgetError: Too many broken samples; finished shards stay for the next run.
        OSError, StorageError: The disk is full, or it or `remote` fails; nothing partial is published.
    """
    start = time.monotonic()
    with chosen_codebook(
        config.codebook_dir, config.choice, device=config.device, unit_backend=config.unit_backend
    ) as codebook_dir:
        return _tokenize(config, codebook_dir, spread, start)


def tokenize_share(config: TokenizeConfig, index: int, num_shares: int) -> None:
    """Finishes every `num_shares`-th shard of the plan, from number `index` on, and publishes nothing.

    The primitive of all engines: it needs nothing but the corpus, the codebook and the folder, may be run
    anywhere, beside the other shares, and again. `tokenize` then keeps what is finished, and publishes.

    Raises:
        ConfigError: `index` is none of the shares, or as `tokenize` has it; so do other errors.
    """
    if not 0 <= index < num_shares:
        raise ConfigError(f"task {index} of {num_shares}: must be from 0 to {num_shares - 1}")
    with chosen_codebook(
        config.codebook_dir, config.choice, device=config.device, unit_backend=config.unit_backend
    ) as codebook_dir:
        plan = plan_tokenization(config, codebook_dir)
        earlier = _open_earlier(config, plan)
        _claim(config, plan, is_alone=False)
        mine = dict(islice(plan.tasks.items(), index, None, num_shares))
        _, finished = find_finished(config.out_dir, mine, list(plan.tasks), config.remote)
        if len(finished) < len(mine):
            withdraw(config.out_dir)  # a repaired file gives its shard other bytes than the card says
        if config.remote is not None:  # a killed run may have finished some that it did not upload
            for shard in finished.values():
                send_shard(config.remote, shard.record.name)
        for _ in _finish_shards(config, plan, mine, finished, earlier):
            pass


def _tokenize(
    config: TokenizeConfig,
    codebook_dir: Path,
    spread: Callable[[TokenizeConfig], None] | None,
    start: float,
) -> TokenizeReport:
    plan = plan_tokenization(config, codebook_dir)
    if config.limit is None:
        warn_of_other_counts(config.source, config.root, plan.tasks.values())
    earlier = _open_earlier(config, plan)
    _claim(config, plan, is_alone=True)
    card, finished = find_finished(config.out_dir, plan.tasks, list(plan.tasks), config.remote)
    if card and len(finished) == len(plan.tasks) and files_are_whole(config.out_dir, card):
        _logger.warning("%s is complete already: nothing to do", config.out_dir)
        if config.remote is not None:
            send_dataset(config.remote, card)
        return TokenizeReport.of(card.totals, time.monotonic() - start, new_audio_seconds=0.0)
    kept = set(finished)
    withdraw(config.out_dir)
    copy_codebook(codebook_dir, config.out_dir / CODEBOOK_NAME, plan.modalities, plan.encoder.units)
    terms = Tokenizers(config.out_dir / CODEBOOK_NAME).terms
    licence = add_terms(load_manifest(config.source).licence, terms)
    if spread is not None and len(finished) < len(plan.tasks):
        spread(config)
        _, finished = find_finished(config.out_dir, plan.tasks, list(plan.tasks), config.remote)
    shards = list(_finish_shards(config, plan, plan.tasks, finished, earlier))
    card = publish(config.out_dir, config.source, shards, plan.recipe, plan.vocabulary, licence)
    if config.remote is not None:
        send_dataset(config.remote, card)
    new = (shard for sha256, shard in zip(plan.tasks, shards, strict=True) if sha256 not in kept)
    new_audio_seconds = math.fsum(shard.footer.audio_seconds for shard in new)
    report = TokenizeReport.of(card.totals, time.monotonic() - start, new_audio_seconds)
    write_json(config.out_dir / REPORT_NAME, asdict(report))
    return report


@dataclass(frozen=True, kw_only=True)
class TokenizePlan:
    """All that a run does: which tasks, with which tokenizers."""

    encoder: ItemEncoder
    recipe: Recipe
    vocabulary: Vocabulary
    tasks: Mapping[str, ShardTask]
    """By the sha256 of what the shard is made from, in order."""

    @property
    def modalities(self) -> set[Modality]:
        """Parts of the codebook that the data set is made with."""
        ready_made = {Modality.SPEECH} if self.encoder.units else set()
        return {Modality(name) for name in self.recipe["fingerprints"]} - ready_made


def plan_tokenization(config: TokenizeConfig, codebook_dir: Path) -> TokenizePlan:
    """Opens the source and the tokenizers that it needs, and says which shards there will be.

    Raises:
        ConfigError: The corpus or a tokenizer is not there, or there is nothing to tokenize.
    """
    tokenizers = load_tokenizers(codebook_dir, config.device, config.unit_backend)
    source = open_source(config.source, config.root, config.splits, config.options)
    items = list(source.iter_items(config.limit))
    tasks = plan_shards(config.source, items, config.samples_per_shard)
    has_speech = any(task.utterances for task in tasks)
    has_images = any(task.image_paths for task in tasks)
    units = next((item.inventory for item in items if isinstance(item, UnitLine)), None)
    has_texts = any(isinstance(item, TextLine) for item in items)
    if not (has_speech or has_images or units or has_texts):
        raise nothing_to_tokenize(config.source, config.root, items)
    check_idle_choice(config.choice, config.unit_backend, config.source, has_speech, has_images)
    encoder = ItemEncoder(
        speech=require(tokenizers.speech, Modality.SPEECH) if has_speech else None,
        image=require(tokenizers.image, Modality.IMAGE) if has_images else None,
        text=tokenizers.text,
        text_rule=source.text_rule,
        units=units,
    )
    recipe = {
        "format_version": FORMAT_VERSION,
        "settings": _settings(config, source, items),
        "text_rule": source.text_rule,
        "fingerprints": encoder.fingerprints,
    }
    return TokenizePlan(
        encoder=encoder,
        recipe=recipe,
        vocabulary=encoder.vocabulary,
        tasks={task_sha256(task, recipe): task for task in tasks},
    )


def _settings(config: TokenizeConfig, source: Source, items: Iterable[SourceItem]) -> dict[str, Any]:
    """Settings as resolved: what was left open is filled in."""
    pairs = {
        f"{item.language}_{item.translation_language}"
        for item in items
        if isinstance(item, Utterance) and item.translation
    }
    return {
        "source": config.source,
        "splits": list(source.splits),
        **({"revision": source.revision} if source.revision else {}),
        **describe_options(config.options),
        "lang_pair": pairs.pop() if len(pairs) == 1 else None,
        "limit": config.limit,
        "samples_per_shard": config.samples_per_shard,
    }


def _claim(config: TokenizeConfig, plan: TokenizePlan, *, is_alone: bool) -> None:
    places = {"root": config.root, "codebook": config.codebook_dir, "reuse": config.reuse_dir}
    whereabouts = {"device": config.device, **{name: str(place) for name, place in places.items()}}
    if config.remote is not None:
        claim_remote(config.remote, plan.recipe)
    claim_folder(config.out_dir, plan.recipe, whereabouts, is_alone=is_alone)


def _open_earlier(config: TokenizeConfig, plan: TokenizePlan) -> EarlierDataset | None:
    if config.reuse_dir is None:
        return None
    if config.reuse_dir.resolve() == config.out_dir.resolve():
        raise ConfigError(f"--reuse {config.reuse_dir}: is --out itself; choose another --out")
    return open_earlier_dataset(config.reuse_dir, plan.encoder, plan.recipe, plan.tasks.values())


def _finish_shards(
    config: TokenizeConfig,
    plan: TokenizePlan,
    tasks: Mapping[str, ShardTask],
    finished: Mapping[str, FinishedShard],
    earlier: EarlierDataset | None,
) -> Iterator[FinishedShard]:
    """Yields the shards of some tasks of the plan, in order; writes those that are not finished yet."""
    budget = BadSampleBudget(sum(len(task.items) for task in plan.tasks.values()))
    num_files = sum(task.num_files for task in tasks.values())
    progress = Progress(f"tokenize {config.source}", num_files, "files")
    for sha256, task in tasks.items():
        if sha256 in finished:
            budget.keep(finished[sha256].footer.ledger)
            progress.advance(task.num_files)
            yield finished[sha256]
        else:
            known = earlier.look_up(task) if earlier else NOTHING_KNOWN
            results = plan.encoder.encode(task, progress.advance, known)
            budget.spend(results)
            shard = write_shard(
                config.out_dir,
                task.name,
                [result for result in results if isinstance(result, Sample)],
                plan.vocabulary,
                task_sha256=sha256,
                num_in=len(task.items),
                ledger=tuple(result for result in results if isinstance(result, LedgerEntry)),
            )
            if config.remote is not None:
                send_shard(config.remote, task.name)
            yield shard
    progress.close()
    budget.summarise()
