"""`score`: plain text files of any system, scored as `evaluate` scores a checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.storage import write_json
from dmlm.trainer.scoring import (
    Scores,
    score_captions,
    score_translations,
    score_utterance,
    score_utterances,
    warn_of_few_images,
)
from dmlm.trainer.scoring.evaluation_report import (
    package_versions,
    score_table,
    shareable_name,
    write_samples,
)

FILE_TASKS: Final = ("asr", "s2tt", "i2t")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreConfig:
    """What to score."""

    task: str
    reference_paths: tuple[Path, ...]
    """One sample a line; further files hold second, third ... references."""
    hypothesis_path: Path
    language: str
    text_rule: str = "plain"
    """What both sides of asr go through before words are counted."""
    out_path: Path | None = None


def score_files(config: ScoreConfig) -> str:
    """Scores as a table; with `out_path`, also a json file and its `.samples.jsonl`.

    Raises:
        ConfigError: A file is missing, or has another number of lines, or there is no such task or rule.
        MissingDependencyError: A scorer's package is not installed.
    """
    hypotheses = _read_lines(config.hypothesis_path)
    references = _read_references(config.reference_paths, config.hypothesis_path, len(hypotheses))
    scores = _score(config, references, hypotheses)
    if config.out_path is not None:
        pairs = zip(references, hypotheses, strict=True)
        lines = [{"references": texts, "hypothesis": hypothesis} for texts, hypothesis in pairs]
        write_samples(config.out_path, lines)
        content = {"task": config.task, "metrics": scores.to_json(), "settings": _settings(config)}
        write_json(config.out_path, content | {"versions": package_versions()})
    return score_table({str(config.hypothesis_path): scores})


def _score(config: ScoreConfig, references: Sequence[list[str]], hypotheses: Sequence[str]) -> Scores:
    if config.task == "s2tt":
        return score_translations(references, hypotheses, config.language)
    if config.task == "i2t":
        warn_of_few_images(len(hypotheses))
        return score_captions(references, hypotheses, with_meteor=config.language == "en")
    if config.task != "asr" or len(config.reference_paths) > 1:
        raise ConfigError(f"task {config.task}: one of {', '.join(FILE_TASKS)}; asr has one reference file")
    pairs = zip(references, hypotheses, strict=True)
    return score_utterances(
        [score_utterance(texts[0], text, config.text_rule, config.language) for texts, text in pairs]
    )


def _read_references(paths: Sequence[Path], hypothesis_path: Path, num_lines: int) -> list[list[str]]:
    columns = [_read_lines(path) for path in paths]
    for path, column in zip(paths, columns, strict=True):
        if len(column) != num_lines:
            raise ConfigError(f"{path}: {len(column)} lines, {hypothesis_path} has {num_lines}")
    # The first reference may be empty, as a transcript of silence is; further ones are then missing.
    return [[texts[0], *filter(None, texts[1:])] for texts in zip(*columns, strict=True)]


def _read_lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    # Not splitlines(): it also breaks at characters that may stand within a sentence.
    return text.removesuffix("\n").split("\n") if text else []


def _settings(config: ScoreConfig) -> dict[str, Any]:
    return {
        "task": config.task,
        "reference_paths": [shareable_name(path) for path in config.reference_paths],
        "hypothesis_path": shareable_name(config.hypothesis_path),
        "language": config.language,
        "text_rule": config.text_rule,
    }
