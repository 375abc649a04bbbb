"""`score`: plain text files of any system, scored as `evaluate` scores a checkpoint.

Lines are `key<TAB>text`, joined by key, or texts alone, joined by place.
"""

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.languages import short_code
from dmlm.pipeline.storage import write_json
from dmlm.pipeline.vocabulary import LANGUAGES
from dmlm.trainer.scoring import (
    Scores,
    score_captions,
    score_translations,
    score_utterance,
    score_utterances,
    warn_of_few_images,
)
from dmlm.trainer.scoring.evaluation_report import (
    TITLES,
    package_versions,
    samples_path,
    score_table,
    shareable_name,
    write_samples,
)

FILE_TASKS: Final = ("asr", "s2tt", "i2t")
NUM_NAMED: Final = 5
"""Keys that a message names at most."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreConfig:
    """What to score."""

    task: str
    reference_paths: tuple[Path, ...]
    """Of lines with keys, a sample has a reference in each line with its key. Of lines without, further files
    hold second, third ... references."""
    hypothesis_path: Path
    language: str
    """Code of two or three letters, with or without a region."""
    text_rule: str = "plain"
    """What both sides of asr go through before words are counted."""
    out_path: Path | None = None


def score_files(config: ScoreConfig) -> str:
    """Scores as a table, and how they were made; with `out_path`, also a json file and its `.samples.jsonl`.

    Raises:
        ConfigError: A file is missing, has another number of lines or other keys, there is no such task or
            rule, a sample of asr has several references, the language is no code, or `out_path` would write
            over a file that is scored.
        MissingDependencyError: A scorer's package is not installed.
    """
    config = replace(config, language=_read_language(config.language))
    _check_out_path(config)
    samples = _read_samples(config)
    scores = _score(config, samples)
    if config.out_path is not None:
        write_samples(config.out_path, [sample.to_json() for sample in samples])
        content = {"task": config.task, "metrics": scores.to_json(), "settings": _settings(config)}
        write_json(config.out_path, content | {"versions": package_versions()})
    signatures = [f"{TITLES[name]}: {text}" for name, text in scores.signatures.items()]
    return "\n".join([score_table({str(config.hypothesis_path): scores}), *signatures])


def _check_out_path(config: ScoreConfig) -> None:
    if config.out_path is None:
        return
    written = {path.resolve() for path in (config.out_path, samples_path(config.out_path))}
    for path in (*config.reference_paths, config.hypothesis_path):
        if path.resolve() in written:
            raise ConfigError(
                f"--out {config.out_path} would write over {path}, which is scored; name another"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    key: str | None
    """None: lines have none."""
    references: list[str]
    hypothesis: str

    def to_json(self) -> dict[str, Any]:
        key = {} if self.key is None else {"key": self.key}
        return key | {"references": self.references, "hypothesis": self.hypothesis}


def _score(config: ScoreConfig, samples: Sequence[_Sample]) -> Scores:
    references, hypotheses = [sample.references for sample in samples], [s.hypothesis for s in samples]
    if config.task == "s2tt":
        return score_translations(references, hypotheses, config.language)
    if config.task == "i2t":
        warn_of_few_images(len(hypotheses))
        return score_captions(references, hypotheses, with_meteor=config.language == "en")
    if config.task != "asr":
        raise ConfigError(f"task {config.task!r}: give one of {', '.join(FILE_TASKS)}")
    _check_single_references(samples)
    pairs = zip(references, hypotheses, strict=True)
    return score_utterances(
        [score_utterance(texts[0], text, config.text_rule, config.language) for texts, text in pairs]
    )


def _check_single_references(samples: Sequence[_Sample]) -> None:
    for number, sample in enumerate(samples, start=1):
        if len(sample.references) > 1:
            place = f"line {number}" if sample.key is None else f"key {sample.key}"
            raise ConfigError(
                f"{place} has {len(sample.references)} references, and asr has one reference a sample: "
                "leave the others out"
            )


def _read_language(name: str) -> str:
    """The code by which scorers know a language; one without a token may be scored, too."""
    code = short_code(name)
    if not re.fullmatch("[a-z]{2,3}", code):
        raise ConfigError(f"language {name[:40]!r}: give its code of two or three letters, such as de")
    if code not in LANGUAGES:
        _logger.warning("language %r is not known: its words are taken to be parted by spaces", name)
    return code


def _read_samples(config: ScoreConfig) -> list[_Sample]:
    paths = (*config.reference_paths, config.hypothesis_path)
    files = [_read_lines(path) for path in paths]
    keyed = [path for path, lines in zip(paths, files, strict=True) if any("\t" in line for line in lines)]
    if not keyed:
        return list(_join_places(paths, files))
    for path, lines in zip(paths, files, strict=True):
        if lines and path not in keyed:
            raise ConfigError(f"{keyed[0]} has lines of key<TAB>text and {path} has none; give both keys")
    return list(_join_keys(paths, files))


def _join_places(paths: Sequence[Path], files: Sequence[list[str]]) -> Iterator[_Sample]:
    """Samples of files that have a line for each; the hypotheses are the last one."""
    *columns, hypotheses = files
    for path, column in zip(paths, columns, strict=False):
        if len(column) != len(hypotheses):
            raise ConfigError(f"{path}: {len(column)} lines, {paths[-1]} has {len(hypotheses)}")
    for texts, hypothesis in zip(zip(*columns, strict=True), hypotheses, strict=True):
        yield _Sample(key=None, references=_present(texts), hypothesis=hypothesis)


def _join_keys(paths: Sequence[Path], files: Sequence[list[str]]) -> Iterator[_Sample]:
    """Samples in the order of the references."""
    *columns, answers = [list(_split_keys(*file)) for file in zip(paths, files, strict=True)]
    references: dict[str, list[str]] = {}
    for key, text in (line for column in columns for line in column):
        references.setdefault(key, []).append(text)
    hypotheses = dict(answers)
    _check_keys(paths[-1], Counter(key for key, _ in answers), references)
    for key, texts in references.items():
        yield _Sample(key=key, references=_present(texts), hypothesis=hypotheses[key])


def _split_keys(path: Path, lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(lines, start=1):
        key, tab, text = line.partition("\t")
        if not (key and tab):
            raise ConfigError(f"{path}: line {number} is not key<TAB>text, as other lines are: {line[:60]!r}")
        yield key, text


def _check_keys(path: Path, keys: Mapping[str, int], wanted: Collection[str]) -> None:
    """Raises ConfigError, naming keys, unless there is each wanted key once, and no other."""
    problems = {
        "has several lines of": [key for key, num_lines in keys.items() if num_lines > 1],
        "lacks": [key for key in wanted if key not in keys],
        "has keys that no reference has:": [key for key in keys if key not in wanted],
    }
    for problem, found in problems.items():
        if found:
            more = f" and {len(found) - NUM_NAMED} more" if len(found) > NUM_NAMED else ""
            raise ConfigError(f"{path}: {problem} {', '.join(found[:NUM_NAMED])}{more}")


def _present(texts: Sequence[str]) -> list[str]:
    """An empty reference is missing where there are others; alone, it is such as a transcript of silence."""
    return [text for text in texts if text] or [""]


def _read_lines(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig")  # a byte order mark is no part of the first key
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error}); convert it") from error
    # Not splitlines(): it also breaks at characters that may stand within a sentence, such as a lone \r.
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []


def _settings(config: ScoreConfig) -> dict[str, Any]:
    return {
        "task": config.task,
        "reference_paths": [shareable_name(path) for path in config.reference_paths],
        "hypothesis_path": shareable_name(config.hypothesis_path),
        "language": config.language,
        "text_rule": config.text_rule,
    }
