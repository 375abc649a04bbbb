"""What a run tells while it goes on: lines on the console, `metrics.jsonl`, `validation.jsonl`, trackers.

Only the first rank has one.
"""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Final

from dmlm.pipeline.progress import Progress
from dmlm.pipeline.storage import write_bytes
from dmlm.trainer.step import StepResult
from dmlm.trainer.watching.metrics import MetricsWindow, Record
from dmlm.trainer.watching.plan import Operations, Plan
from dmlm.trainer.watching.symptoms import Symptoms
from dmlm.trainer.watching.tables import format_table
from dmlm.trainer.watching.trackers import Tracker
from dmlm.trainer.watching.validation import History, Validation

METRICS_NAME: Final = "metrics.jsonl"
VALIDATION_NAME: Final = "validation.jsonl"
MAX_SHOWN: Final = 160


class RunLog:
    """Takes in the steps and validations of a run, in order."""

    def __init__(
        self,
        run_dir: Path,
        plan: Plan,
        operations: Operations,
        trackers: Sequence[Tracker],
        first_step: int,
        state: Mapping[str, Any],
    ) -> None:
        """Goes on behind step `first_step`; lines of later steps, which will be made again, are dropped.

        `state`: what the method of that name gave at that step; where it is empty or of other tasks, the next
        line and the totals begin with the next step.
        """
        self._run_dir, self._plan, self._trackers = run_dir, plan, trackers
        self._symptoms = Symptoms(plan.recipe)
        for line in _drop_later(run_dir / METRICS_NAME, first_step):
            if line.keys() == {field.name for field in fields(Record)}:  # not of another version
                self._symptoms.look(Record(**line))
        _drop_later(run_dir / VALIDATION_NAME, first_step)
        self._operations = operations
        self._window, self._total = MetricsWindow(plan, operations), MetricsWindow(plan, operations)
        self._window.restore(state)
        self._total.restore(state.get("total", {}))
        self._progress = Progress("train", total=plan.recipe.num_steps, unit="steps", num_before=first_step)
        self.last: Record | None = None
        """The newest record; None before the first."""
        self.total: Record | None = None
        """Of all steps, once the last one is in."""

    def add(self, num_done: int, result: StepResult) -> None:
        """Takes in the step that made `num_done` steps complete."""
        recipe = self._plan.recipe
        self._window.add(result)
        self._total.add(result)
        if num_done % recipe.log_every_steps == 0 or num_done == recipe.num_steps:
            self._add_record(self._window.record(num_done, result))
            self._window = MetricsWindow(self._plan, self._operations)
        self._progress.advance(note=self.last.line() if self.last else "")
        if num_done == recipe.num_steps:
            self.total = self._total.record(num_done, result)
            self._progress.close(self.total.line())

    def add_validation(self, validation: Validation) -> None:
        """Takes in a validation, which costs no throughput."""
        self._window.leave_out(validation.seconds)
        self._total.leave_out(validation.seconds)
        _append(self._run_dir / VALIDATION_NAME, asdict(validation))
        _say(describe_validation(validation))
        answers = "\n".join(_describe_answers(validation))
        for tracker in self._trackers:
            tracker.add_figures(validation.step, validation.figures())
            if answers:
                tracker.add_text(validation.step, "validation/answers", answers)

    def state(self) -> dict[str, Any]:
        """Plain json: figures of the steps since the last line, and of all."""
        return {**self._window.state(), "total": self._total.state()}

    def close(self) -> None:
        """Closes the trackers."""
        for tracker in self._trackers:
            tracker.close()

    def _add_record(self, record: Record) -> None:
        self.last = replace(record, warnings=self._symptoms.look(record))
        _append(self._run_dir / METRICS_NAME, asdict(self.last))
        for warning in self.last.warnings:
            _say(f"warning: step {record.step}: {warning}")
        for tracker in self._trackers:
            tracker.add_figures(record.step, record.figures())


class NoLog:
    """The log of the other ranks."""

    last: Final = None
    total: Final = None

    def add(self, num_done: int, result: StepResult) -> None:
        """Tells nobody."""

    def add_validation(self, validation: Validation) -> None:
        """Tells nobody."""

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def close(self) -> None:
        """Closes nothing."""


def read_history(run_dir: Path, last_step: int, set_sha256: str) -> History:
    """The validations of a run up to step `last_step`; the best of those on the sequences of `set_sha256`."""
    lines = _read_lines(run_dir / VALIDATION_NAME, last_step)
    newest_step = lines[-1]["step"] if lines else 0
    # Older lines do not tell on which sequences; taken as these, they cost no run its best checkpoint.
    same = [line for line in lines if line.get("set_sha256", set_sha256) == set_sha256]
    judged = [line for line in same if not math.isnan(line["loss"])]
    if not judged:
        return History(newest_step=newest_step)
    best = min(judged, key=lambda line: line["loss"])
    return History(best_step=best["step"], best_loss=best["loss"], newest_step=newest_step)


def describe_validation(validation: Validation) -> str:
    """Losses and answers for the console."""
    modalities = list(dict.fromkeys(m for loss in validation.tasks.values() for m in loss.nats_per_token))
    rows = [
        [
            task,
            str(loss.num_sequences),
            *(_figure(loss.nats_per_token.get(modality)) for modality in modalities),
            _figure(loss.nats_per_character),
        ]
        for task, loss in validation.tasks.items()
    ]
    best = " (the best so far)" if validation.is_best else ""
    headline = f"validation: step {validation.step}, loss {validation.loss:.4f}{best}"
    return "\n".join(
        [
            f"{headline}, {validation.seconds:.1f} s",
            *format_table(["nats per token", "samples", *modalities, "per character"], rows),
            *_describe_answers(validation),
        ]
    )


def _describe_answers(validation: Validation) -> Iterable[str]:
    for answer in validation.answers:
        yield f"{answer.task} {answer.key}"
        yield f"  expected  {_shorten(answer.expected)}"
        yield f"  given     {_shorten(answer.given)}"


def _shorten(text: str) -> str:
    """One line that no terminal takes for a command."""
    printable = "".join(c if c.isprintable() else "�" for c in text)
    return printable if len(printable) <= MAX_SHOWN else printable[: MAX_SHOWN - 1] + "…"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _say(text: str) -> None:
    # A live line of progress is written over.
    sys.stderr.write(("\r\033[K" if sys.stderr.isatty() else "") + text + "\n")
    sys.stderr.flush()


def _read_lines(path: Path, last_step: int) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    # A killed run may leave a last line that is torn, also inside a character.
    lines = map(json.loads, path.read_bytes().split(b"\n")[:-1])
    return [line for line in lines if line["step"] <= last_step]


def _drop_later(path: Path, last_step: int) -> list[dict[str, Any]]:
    """Removes the lines of later steps; returns those left."""
    lines = _read_lines(path, last_step)
    if path.is_file():
        write_bytes(path, "".join(_encode(line) for line in lines).encode())
    return lines


def _append(path: Path, content: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(_encode(content))


def _encode(content: Mapping[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"
