"""`evaluate`: decode held-out samples, score them, and show that the model listens.

shards -> references -> units -> hypotheses -> scores -> FILE and FILE.samples.jsonl
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

import dmlm
from dmlm.pipeline.devices import open_device
from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.progress import track
from dmlm.pipeline.storage import write_bytes, write_json
from dmlm.pipeline.text_rules import apply_text_rule
from dmlm.trainer.checkpoint import Checkpoint, load_checkpoint, resolve_checkpoint
from dmlm.trainer.references import (
    Reference,
    choose_splits,
    open_matching_shards,
    read_references,
    training_text_hashes,
)
from dmlm.trainer.scoring import AsrMetrics, UtteranceScore, score_utterance, sum_scores
from dmlm.trainer.transcription import transcribe_units

_PACKAGES: Final = ("torch", "transformers", "jiwer", "openai-whisper")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """What to score with what."""

    checkpoint: Path
    """A checkpoint, or a run folder whose newest checkpoint is used."""
    shards: tuple[Path, ...]
    out_path: Path
    task: str = "asr"
    splits: tuple[str, ...] | None = None
    """None: every split that the checkpoint was not trained on."""
    train_shards: tuple[Path, ...] = ()
    """Data sets, besides `shards`, whose training splits are searched for the references."""
    limit: int | None = None
    """Utterances to score, from the first; None: all."""
    batch_size: int = 32
    device: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredUtterance:
    """One line of `FILE.samples.jsonl`."""

    key: str
    source: str
    split: str
    reference: str
    """After the text rule of its source."""
    hypothesis: str
    is_in_training: bool
    """The same text occurs in the training data searched."""
    score: UtteranceScore

    def to_json(self) -> dict[str, Any]:
        """Content of the line."""
        edits = self.score.words_raw
        return {
            "key": self.key,
            "source": self.source,
            "split": self.split,
            "reference": self.reference,
            "hypothesis": self.hypothesis,
            "is_in_training": self.is_in_training,
            "wer": self.score.words.rate if self.score.words else None,
            "wer_raw": edits.rate,
            "num_words": edits.num_reference,
            "num_substitutions": edits.num_substitutions,
            "num_deletions": edits.num_deletions,
            "num_insertions": edits.num_insertions,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """Scores of a checkpoint."""

    task: str
    metrics: AsrMetrics
    neighbour: AsrMetrics
    """Each reference against what the model hears in the units of another text: near 1 if it listens."""
    unseen: AsrMetrics | None
    """Without references that occur in the training data; None: none of them does, or all do."""
    groups: Mapping[str, AsrMetrics]
    """By `source/split`."""
    utterances: tuple[ScoredUtterance, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Result file, apart from settings and versions."""
        neighbour = {"wer_neighbour": self.neighbour.wer, "wer_raw_neighbour": self.neighbour.wer_raw}
        return {
            "task": self.task,
            "metrics": asdict(self.metrics) | neighbour,
            "metrics_unseen": asdict(self.unseen) if self.unseen else None,
            "groups": {name: asdict(metrics) for name, metrics in self.groups.items()},
            "num_samples": len(self.utterances),
            "seconds": round(self.seconds, 3),
        }

    def table(self) -> str:
        """A few lines for people."""
        rows = {**self.groups, "all": self.metrics, "neighbour's units": self.neighbour}
        if self.unseen:
            rows["text not in training"] = self.unseen
        width = max(map(len, rows))
        return "\n".join(
            [
                f"{self.task}: {len(self.utterances)} utterances in {self.seconds:.1f} s",
                f"{'':{width}}  utterances       WER   WER raw       CER",
                *(f"{name:{width}}  {_describe(metrics)}" for name, metrics in rows.items()),
            ]
        )


def evaluate(config: EvaluateConfig) -> EvaluationReport:
    """Scores a checkpoint; writes `config.out_path` and, beside it, `.samples.jsonl` with every utterance.

    Raises:
        ConfigError: There is no checkpoint, no such task, or nothing to score.
        FingerprintMismatchError: Checkpoint and shards were made with different tokenizers.
        ShardCorruptError: A data set is not finished or damaged.
        MissingDependencyError: jiwer or openai-whisper is not installed.
    """
    start = time.monotonic()
    if config.task != "asr":
        raise ConfigError(f"task {config.task!r} cannot be scored: only asr can")
    checkpoint = load_checkpoint(resolve_checkpoint(config.checkpoint), str(open_device(config.device)))
    trained_splits = checkpoint.settings.recipe.splits
    shards = open_matching_shards(config.shards, checkpoint)
    splits = choose_splits(shards, config.splits, trained_splits)
    references = list(islice(read_references(shards, splits), config.limit))
    if not references:
        raise ConfigError(f"no utterance with speech units and text in the splits {', '.join(splits)}")
    hypotheses = _transcribe(checkpoint, references, config.batch_size)
    training_shards = [*shards, *open_matching_shards(config.train_shards, checkpoint)]
    training_texts = training_text_hashes(training_shards, trained_splits)
    utterances = tuple(
        _score_utterance(reference, hypothesis, reference.text_hash in training_texts)
        for reference, hypothesis in zip(references, hypotheses, strict=True)
    )
    report = EvaluationReport(
        task=config.task,
        metrics=sum_scores(utterance.score for utterance in utterances),
        neighbour=_score_neighbours(references, hypotheses),
        unseen=_score_unseen(utterances),
        groups=_score_groups(utterances),
        utterances=utterances,
        seconds=time.monotonic() - start,
    )
    _write(config, checkpoint, splits, report)
    return report


def _transcribe(checkpoint: Checkpoint, references: Sequence[Reference], batch_size: int) -> list[str]:
    units, languages = [r.units for r in references], [r.language for r in references]
    texts = transcribe_units(checkpoint, units, languages, batch_size)
    by_index = dict(track(texts, "decode", total=len(references), unit="utterances"))
    return [by_index[index] for index in range(len(references))]


def _score_utterance(reference: Reference, hypothesis: str, is_in_training: bool) -> ScoredUtterance:
    return ScoredUtterance(
        key=reference.key,
        source=reference.source,
        split=reference.split,
        reference=apply_text_rule(reference.text_rule, reference.text),
        hypothesis=hypothesis,
        is_in_training=is_in_training,
        score=_score_text(reference, hypothesis),
    )


def _score_text(reference: Reference, hypothesis: str) -> UtteranceScore:
    return score_utterance(reference.text, hypothesis, reference.text_rule, reference.language)


def _score_neighbours(references: Sequence[Reference], hypotheses: Sequence[str]) -> AsrMetrics:
    """Scores each reference with the units of the next utterance of its language that has another text.

    Nothing needs decoding again: a prompt holds units and language only, so it would be the neighbour's own.
    """
    scores = []
    for index, reference in enumerate(references):
        for other in chain(range(index + 1, len(references)), range(index)):
            neighbour = references[other]
            if neighbour.language == reference.language and neighbour.text_hash != reference.text_hash:
                scores.append(_score_text(reference, hypotheses[other]))
                break
    return sum_scores(scores)


def _score_unseen(utterances: Sequence[ScoredUtterance]) -> AsrMetrics | None:
    unseen = [utterance.score for utterance in utterances if not utterance.is_in_training]
    num_seen = len(utterances) - len(unseen)
    if num_seen:
        _logger.warning(
            "%d of %d references occur word for word in the training data; the samples file marks them",
            num_seen,
            len(utterances),
        )
    return sum_scores(unseen) if num_seen and unseen else None


def _score_groups(utterances: Sequence[ScoredUtterance]) -> dict[str, AsrMetrics]:
    groups: dict[str, list[UtteranceScore]] = {}
    for utterance in utterances:
        groups.setdefault(f"{utterance.source}/{utterance.split}", []).append(utterance.score)
    return {name: sum_scores(scores) for name, scores in groups.items()}


def _write(
    config: EvaluateConfig, checkpoint: Checkpoint, splits: Sequence[str], report: EvaluationReport
) -> None:
    lines = [json.dumps(u.to_json(), ensure_ascii=False) + "\n" for u in report.utterances]
    write_bytes(config.out_path.with_name(f"{config.out_path.name}.samples.jsonl"), "".join(lines).encode())
    settings = {
        "checkpoint": str(checkpoint.path),
        "step": checkpoint.step,
        "shards": [str(directory) for directory in config.shards],
        "splits": list(splits),
        "limit": config.limit,
        "batch_size": config.batch_size,
    }
    write_json(config.out_path, report.to_json() | {"settings": settings, "versions": _versions()})


def _versions() -> dict[str, str]:
    versions = {"dmlm": dmlm.__version__}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def _describe(metrics: AsrMetrics) -> str:
    rates = (metrics.wer, metrics.wer_raw, metrics.cer)
    cells = ("-" if rate is None else f"{100 * rate:.1f} %" for rate in rates)
    return f"{metrics.num_utterances:10}" + "".join(f"{cell:>10}" for cell in cells)
