"""`evaluate`: decode held-out samples of a task, score them, and show that the model listens or looks.

shards -> references -> generate -> hypotheses -> scores -> FILE and FILE.samples.jsonl
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmlm.pipeline.devices import open_device
from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.progress import track
from dmlm.pipeline.samples import Modality
from dmlm.pipeline.storage import check_writable
from dmlm.pipeline.tokenizers.text import load_text_tokenizer
from dmlm.trainer.checkpoint import Checkpoint, load_checkpoint, resolve_checkpoint
from dmlm.trainer.decoding import DecodingConfig
from dmlm.trainer.decoding.generation import Generated, Speed, generate
from dmlm.trainer.scoring import Scores, warn_of_few_images
from dmlm.trainer.scoring.evaluation_report import (
    EvaluationReport,
    ScoredUtterance,
    check_same_settings,
    default_out_path,
    shareable_name,
)
from dmlm.trainer.scoring.references import (
    SCORED_TASKS,
    Reference,
    ScoredShard,
    TrainingTexts,
    choose_splits,
    open_matching_shards,
    read_references,
    read_training_texts,
)
from dmlm.trainer.scoring.task_scoring import (
    SCORERS,
    Scorer,
    check_scorer,
    clean_texts,
    score_groups,
    score_neighbours,
    score_subsets,
    score_words,
)
from dmlm.trainer.trained_tasks import warn_of_untrained

if TYPE_CHECKING:
    from dmlm.trainer.scoring.speech_evaluation import SpeechTools

__all__ = ["EvaluateConfig", "EvaluationReport", "ScoredUtterance", "evaluate", "speech_folder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """What to score with what."""

    checkpoint: Path
    """A checkpoint, or a run folder whose newest checkpoint is used."""
    shards: tuple[Path, ...]
    out_path: Path | None = None
    """None: `default_out_path`, where scores that other settings made are not written over."""
    task: str = "asr"
    splits: tuple[str, ...] | None = None
    """None: the test splits that the checkpoint was not trained on, or else its other held-out ones."""
    keys: tuple[str, ...] = ("*",)
    """Globs on the keys of the samples."""
    train_shards: tuple[Path, ...] = ()
    """Data sets whose training splits are searched for the references, besides those of `shards` that the
    checkpoint was trained on."""
    vocoder: Path | None = None
    """Of t2s: what makes waveforms of units."""
    root: Path | None = None
    """Of t2s: the corpora, to hear the recordings too."""
    listener: str = "whisper:tiny.en"
    """Of t2s: the Whisper that hears."""
    limit: int | None = None
    """Samples of each split of each data set to score, from the first; None: all."""
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    device: str = "auto"


def evaluate(config: EvaluateConfig) -> EvaluationReport:
    """Scores a checkpoint; writes the scores and, beside them, `.samples.jsonl` with every sample.

    Of t2s, what the model says goes to `.speech/0001.wav` and so on, in the order of the samples.

    Raises:
        ConfigError: There is no checkpoint, no such task, nothing to score, nobody to hear a language, no
            recording to be heard, or no `out_path` where there are scores that other settings made.
        FingerprintMismatchError: Checkpoint and shards, or the vocoder, were made with different tokenizers.
        ShardCorruptError: A data set is not finished or damaged.
        MissingDependencyError: A scorer's package is not installed.
        OSError: `out_path` is a folder, or cannot be written.
    """
    start = time.monotonic()
    _check_task(config)
    path = resolve_checkpoint(config.checkpoint)
    out_path = _choose_out_path(config, path)
    checkpoint = load_checkpoint(path, str(open_device(config.device)))
    shards = open_matching_shards(config.shards, checkpoint, config.task)
    splits = choose_splits(shards, config.splits, config.task, checkpoint.settings.recipe)
    references = _read_all(config, shards, splits)
    asked = {reference.language for reference in references}
    warn_of_untrained(checkpoint.settings.trained, config.task, asked, path)
    train_shards = open_matching_shards(config.train_shards, checkpoint, config.task)
    trained = {dataset.sha256 for dataset in checkpoint.settings.datasets}
    seen = [shard for shard in shards if shard.dataset_sha256 in trained]
    training = read_training_texts([*seen, *train_shards], checkpoint)
    tools = _open_speech_tools(checkpoint, config, references)
    datasets = {"datasets": _identify(shards), "train_datasets": _identify(train_shards)}
    settings = _settings(config, checkpoint, splits, tools) | datasets
    if config.out_path is None:
        check_same_settings(out_path, settings)
    score = _scorer(config.task, tools)
    check_scorer(score, references)
    outputs, seconds = _generate(checkpoint, config, references)
    hypotheses, heard = _read_outputs(checkpoint, references, outputs, tools, speech_folder(out_path))
    utterances = tuple(
        _record(
            config.task,
            reference,
            hypotheses[place],
            training=training,
            output=outputs[place],
            others={name: texts[place] for name, texts in heard.items()},
        )
        for place, reference in enumerate(references)
    )
    report = EvaluationReport(
        task=config.task,
        metrics=score(references, hypotheses),
        neighbour=score_neighbours(score, references, hypotheses),
        subsets=score_subsets(score, references, utterances),
        groups=score_groups(score, references, hypotheses),
        controls={n: _scorer(config.task, tools, n)(references, texts) for n, texts in heard.items()},
        speed=Speed.of(outputs, seconds, _audio_seconds(config.task, references)),
        utterances=utterances,
        seconds=time.monotonic() - start,
    )
    report.write(out_path, settings)
    return report


def speech_folder(out_path: Path) -> Path:
    """Where `evaluate` of t2s writes what the model says."""
    return out_path.with_name(f"{out_path.name}.speech")


def _check_task(config: EvaluateConfig) -> None:
    if config.task not in SCORED_TASKS:
        raise ConfigError(f"task {config.task!r} cannot be scored: one of {', '.join(SCORED_TASKS)}")
    if config.task == "t2s" and config.vocoder is None:
        raise ConfigError("--task t2s needs --vocoder: what `dmlm-cli train-vocoder` wrote")


def _choose_out_path(config: EvaluateConfig, checkpoint: Path) -> Path:
    out_path = config.out_path or default_out_path(checkpoint, config.task)
    if config.out_path is None:
        sys.stderr.write(f"--out not given: using {out_path}\n")
    check_writable(out_path)
    return out_path


def _read_all(
    config: EvaluateConfig, shards: Sequence[ScoredShard], splits: Sequence[str]
) -> list[Reference]:
    references = list(read_references(shards, splits, config.task, config.keys, config.limit))
    if not references:
        raise ConfigError(
            f"no sample for the task {config.task} in the splits {', '.join(splits)} "
            f"with a key like {' or '.join(config.keys)}"
        )
    if config.task == "i2t":
        warn_of_few_images(len(references))
    return references


def _record(
    task: str,
    reference: Reference,
    hypothesis: str,
    *,
    training: TrainingTexts,
    output: Generated,
    others: Mapping[str, str],
) -> ScoredUtterance:
    return ScoredUtterance(
        key=reference.sample.key,
        source=reference.sample.source,
        split=reference.sample.split,
        references=tuple(clean_texts(reference)),
        hypothesis=hypothesis,
        is_in_training=training.has_text_of(reference),
        has_known_words=training.has_words_of(reference),
        score=score_words(task, reference, hypothesis),
        num_tokens=len(output.tokens),
        is_finished=output.is_finished,
        others=others,
    )


def _open_speech_tools(
    checkpoint: Checkpoint, config: EvaluateConfig, references: Sequence[Reference]
) -> "SpeechTools | None":
    """Of t2s: opened early, so that a wrong one, or a wrong root, is refused before hours of decoding."""
    if config.task != "t2s":
        return None
    from dmlm.trainer.scoring.speech_evaluation import open_speech_tools

    assert config.vocoder is not None, "checked before anything is loaded"
    return open_speech_tools(
        checkpoint,
        references,
        vocoder_dir=config.vocoder,
        listener=config.listener,
        root=config.root,
        device=config.device,
    )


def _generate(
    checkpoint: Checkpoint, config: EvaluateConfig, references: Sequence[Reference]
) -> tuple[list[Generated], float]:
    samples = [reference.sample for reference in references]
    start = time.perf_counter()
    outputs = generate(checkpoint, config.task, samples, config.decoding)
    by_index = {o.index: o for o in track(outputs, "decode", total=len(samples), unit="samples")}
    return [by_index[index] for index in range(len(samples))], time.perf_counter() - start


def _read_outputs(
    checkpoint: Checkpoint,
    references: Sequence[Reference],
    outputs: Sequence[Generated],
    tools: "SpeechTools | None",
    speech_dir: Path,
) -> tuple[list[str], dict[str, list[str]]]:
    """Texts of the outputs, and of speech what is heard in its controls."""
    tokens = [output.tokens for output in outputs]
    if tools is not None:
        from dmlm.trainer.scoring.speech_evaluation import hear_speech

        return hear_speech(checkpoint, references, tokens, tools, speech_dir=speech_dir)
    tokenizer = load_text_tokenizer(checkpoint.codebook_dir / Modality.TEXT)
    return [tokenizer.decode(part).strip() for part in tokens], {}


def _audio_seconds(task: str, references: Sequence[Reference]) -> float:
    if task not in ("asr", "s2tt"):
        return 0.0
    return sum(reference.sample.duration_seconds or 0.0 for reference in references)


def _scorer(task: str, tools: "SpeechTools | None", control: str | None = None) -> Scorer:
    """Scorer of the task; in the signatures of speech, or of a control of it, stands who heard and spoke."""
    scorer = SCORERS[task]
    if tools is None:
        return scorer
    made_by = tools.signature(control)

    def score(references: Sequence[Reference], hypotheses: Sequence[str]) -> Scores:
        scores = scorer(references, hypotheses)
        signatures = {name: f"{text}|{made_by}" for name, text in scores.signatures.items()}
        return replace(scores, signatures=signatures)

    return score


def _settings(
    config: EvaluateConfig, checkpoint: Checkpoint, splits: Sequence[str], tools: "SpeechTools | None"
) -> dict[str, Any]:
    """What made the scores, for whoever reads them: no folders of this machine."""
    settings = {
        "checkpoint": shareable_name(checkpoint.path),
        "step": checkpoint.step,
        "shards": [shareable_name(directory) for directory in config.shards],
        "train_shards": [shareable_name(directory) for directory in config.train_shards],
        "splits": list(splits),
        "keys": list(config.keys),
        "limit": config.limit,
        "decoding": asdict(config.decoding),
        "device": str(checkpoint.model.device),
    }
    if tools is None or config.vocoder is None:
        return settings
    return settings | {
        "vocoder": shareable_name(config.vocoder),
        **tools.to_json(),
        "root": shareable_name(config.root) if config.root else None,
    }


def _identify(shards: Sequence[ScoredShard]) -> list[str]:
    """The sha256 of each data set, as a checkpoint remembers those of its training."""
    return sorted({shard.dataset_sha256 for shard in shards})
