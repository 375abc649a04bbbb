"""`tokenize`: plan -> independent shard tasks -> publish.

Run again after a kill it keeps what is finished and ends with the same bytes as an undisturbed run. So any
part of the tasks may be done elsewhere before: `tokenize_share` does one, `executors` start many.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.manifests import load_manifest
from dmlm.pipeline.progress import Progress
from dmlm.pipeline.quarantine import BadSampleBudget, LedgerEntry
from dmlm.pipeline.remote.datasets import fetch_shards, send_dataset, send_shard
from dmlm.pipeline.samples import Sample
from dmlm.pipeline.shards import CODEBOOK_NAME, FinishedShard, write_shard
from dmlm.pipeline.storage import write_json
from dmlm.pipeline.tokenization.claiming import claim_folder, claim_remote
from dmlm.pipeline.tokenization.completeness import warn_of_other_counts
from dmlm.pipeline.tokenization.item_encoding import NOTHING_KNOWN
from dmlm.pipeline.tokenization.output_folder import (
    copy_codebook,
    files_are_whole,
    find_finished,
    find_shard,
    publish,
    withdraw,
)
from dmlm.pipeline.tokenization.planning import TokenizeConfig, TokenizePlan, plan_tokenization
from dmlm.pipeline.tokenization.report import REPORT_NAME, TokenizeReport
from dmlm.pipeline.tokenization.reuse import EarlierDataset, open_earlier_dataset
from dmlm.pipeline.tokenization.shard_tasks import ShardTask
from dmlm.pipeline.tokenizers.choosing import chosen_codebook
from dmlm.pipeline.tokenizers.pretrained import add_terms
from dmlm.pipeline.tokenizers.registry import Tokenizers

_logger = logging.getLogger(__name__)


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
        _, finished = find_finished(config.out_dir, mine, plan.tasks, config.remote)
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
    card, finished = find_finished(config.out_dir, plan.tasks, plan.tasks, config.remote)
    if card and len(finished) == len(plan.tasks) and files_are_whole(config.out_dir, card):
        _logger.warning("%s is complete already: nothing to do", config.out_dir)
        report = TokenizeReport.of(card.totals, time.monotonic() - start, new_audio_seconds=0.0)
        if not (config.out_dir / REPORT_NAME).is_file():  # killed behind the card
            write_json(config.out_dir / REPORT_NAME, asdict(report))
        if config.remote is not None:
            send_dataset(config.remote, card)
        return report
    kept = set(finished)
    withdraw(config.out_dir)
    codebook = config.out_dir / CODEBOOK_NAME
    codebook_files = copy_codebook(codebook_dir, codebook, plan.modalities, plan.encoder.units)
    terms = Tokenizers(codebook).terms
    licence = add_terms(load_manifest(config.source).licence, terms)
    if spread is not None and len(finished) < len(plan.tasks):
        spread(config)
        if config.remote is not None:
            fetch_shards(config.remote, [task.name for task in plan.tasks.values()])
        _, finished = find_finished(config.out_dir, plan.tasks, plan.tasks)
    shards = list(_finish_shards(config, plan, plan.tasks, finished, earlier))
    card = publish(
        config.out_dir, config.source, shards, plan.recipe, plan.vocabulary, licence, codebook_files
    )
    new = (shard for sha256, shard in zip(plan.tasks, shards, strict=True) if sha256 not in kept)
    new_audio_seconds = math.fsum(shard.footer.audio_seconds for shard in new)
    report = TokenizeReport.of(card.totals, time.monotonic() - start, new_audio_seconds)
    write_json(config.out_dir / REPORT_NAME, asdict(report))
    if config.remote is not None:
        send_dataset(config.remote, card)
    return report


def _claim(config: TokenizeConfig, plan: TokenizePlan, *, is_alone: bool) -> None:
    places = {"root": config.root, "codebook": config.codebook_dir, "reuse": config.reuse_dir}
    whereabouts = {"device": config.device} | {
        # A path need not be UTF-8.
        name: os.fsencode(str(place)).decode(errors="backslashreplace")
        for name, place in places.items()
    }
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
    num_inputs = sum(task.num_inputs for task in tasks.values())
    num_kept = sum(tasks[sha256].num_inputs for sha256 in finished)
    progress = Progress(f"tokenize {config.source}", num_inputs, "inputs", num_before=num_kept)
    for sha256, task in tasks.items():
        if sha256 in finished:
            budget.keep(finished[sha256].footer.ledger)
            yield finished[sha256]
        else:
            known = earlier.look_up(task) if earlier else NOTHING_KNOWN
            results = plan.encoder.encode(task, progress.advance, known)
            progress.advance(task.num_lines)
            budget.spend(results)
            # Another run may have finished it meanwhile, and published it.
            shard = find_shard(config.out_dir, task, sha256) or _write(config, plan, task, sha256, results)
            if config.remote is not None:
                send_shard(config.remote, task.name)
            yield shard
    progress.close()
    budget.summarise()


def _write(
    config: TokenizeConfig,
    plan: TokenizePlan,
    task: ShardTask,
    sha256: str,
    results: Sequence[Sample | LedgerEntry],
) -> FinishedShard:
    return write_shard(
        config.out_dir,
        task.name,
        [result for result in results if isinstance(result, Sample)],
        plan.vocabulary,
        task_sha256=sha256,
        num_in=len(task.items),
        ledger=tuple(result for result in results if isinstance(result, LedgerEntry)),
    )
