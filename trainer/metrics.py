"""What a run says about itself: the plan before it, a line of figures while it runs, a table at its end.

Suffixes: M modality.
"""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dmlm.pipeline.progress import Progress
from dmlm.pipeline.storage import write_bytes
from dmlm.trainer.config import Recipe
from dmlm.trainer.loss import NUM_MODALITIES
from dmlm.trainer.mix import Group
from dmlm.trainer.step import StepResult
from dmlm.trainer.tasks import MODALITIES

METRICS_NAME = "metrics.jsonl"
NUM_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Figures of some steps: a line of `metrics.jsonl`."""

    step: int
    """Steps done."""
    loss: float
    """Mean over the steps."""
    loss_by_modality: Mapping[str, float]
    """Mean cross-entropy in nats."""
    share_by_modality: Mapping[str, float]
    """Of the tokens that carry loss."""
    share_by_task: Mapping[str, float]
    """Of all tokens."""
    learning_rate: float
    gradient_norm: float
    """Before clipping."""
    fill: float
    """Tokens, as a share of the capacity of the packed rows."""
    num_tokens: int
    num_sequences: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Throughput, everything included."""
        return self.num_tokens / self.seconds

    def line(self) -> str:
        """The figures for the console."""
        losses = " ".join(f"{modality} {loss:.3f}" for modality, loss in self.loss_by_modality.items())
        tasks = " ".join(f"{task} {share:.0%}" for task, share in self.share_by_task.items())
        modalities = " ".join(f"{modality} {share:.0%}" for modality, share in self.share_by_modality.items())
        return (
            f"loss {self.loss:.3f} ({losses}), {self.tokens_per_second:.0f} tokens/s "
            f"({tasks}; loss on {modalities}), fill {self.fill:.2f}, lr {self.learning_rate:.1e}"
        )


class MetricsWindow:
    """Sums over steps."""

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._sums_M, self._num_tokens_M = np.zeros(NUM_MODALITIES), np.zeros(NUM_MODALITIES, np.int64)
        self._tokens_by_task: Counter[str] = Counter()
        self._num_sequences = self._num_rows = 0
        self._start = time.monotonic()

    def add(self, result: StepResult) -> None:
        """Takes in one step."""
        self._losses.append(result.loss)
        self._sums_M += result.sums_M
        self._num_tokens_M += result.num_tokens_M
        self._tokens_by_task.update(result.tokens_by_task)
        self._num_sequences += result.num_sequences
        self._num_rows += result.num_rows

    def record(self, step: int, max_tokens: int, last: StepResult) -> Record:
        """Figures of the steps so far; `last` is the last of them, `max_tokens` the capacity of a row."""
        num_tokens = self._tokens_by_task.total()
        loss_tokens_M = self._num_tokens_M
        means_M = self._sums_M / np.maximum(loss_tokens_M, 1)
        present = [m for m in range(NUM_MODALITIES) if loss_tokens_M[m]]
        return Record(
            step=step,
            loss=float(np.mean(self._losses)),
            loss_by_modality={MODALITIES[m]: float(means_M[m]) for m in present},
            share_by_modality={MODALITIES[m]: float(loss_tokens_M[m] / loss_tokens_M.sum()) for m in present},
            share_by_task={task: n / num_tokens for task, n in self._tokens_by_task.most_common() if n},
            learning_rate=last.learning_rate,
            gradient_norm=last.gradient_norm,
            fill=num_tokens / (self._num_rows * max_tokens),
            num_tokens=num_tokens,
            num_sequences=self._num_sequences,
            seconds=time.monotonic() - self._start,
        )


class RunLog:
    """Writes `metrics.jsonl` and the console's lines."""

    def __init__(self, run_dir: Path, recipe: Recipe, first_step: int) -> None:
        """Goes on behind step `first_step`; records of later steps, which will be made again, are dropped."""
        self._path, self._recipe = run_dir / METRICS_NAME, recipe
        kept = [line for line in self._lines() if json.loads(line)["step"] <= first_step]
        write_bytes(self._path, "".join(f"{line}\n" for line in kept).encode())
        self._window, self._total = MetricsWindow(), MetricsWindow()
        self._progress = Progress("train", total=recipe.num_steps - first_step, unit="steps")
        self.last: Record | None = None
        """The newest record; None before the first."""
        self.total: Record | None = None
        """Of all steps, once the last one is in."""

    def add(self, num_done: int, result: StepResult) -> None:
        """Takes in the step that made `num_done` steps complete."""
        max_tokens = self._recipe.batch.max_tokens
        self._window.add(result)
        self._total.add(result)
        if num_done % self._recipe.log_every_steps == 0 or num_done == self._recipe.num_steps:
            self.last = self._window.record(num_done, max_tokens, result)
            self._window = MetricsWindow()
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(self.last)) + "\n")
        self._progress.advance(note=self.last.line() if self.last else "")
        if num_done == self._recipe.num_steps:
            self.total = self._total.record(num_done, max_tokens, result)
            self._progress.close(self.total.line())

    def _lines(self) -> list[str]:
        if not self._path.is_file():
            return []
        # A killed run may leave a torn last line.
        return self._path.read_text(encoding="utf-8").split("\n")[:-1]


def describe_plan(groups: Sequence[Group], recipe: Recipe) -> str:
    """Table of what each entry of the mix will give, before the first step."""
    tokens_per_step = recipe.batch.num_micro_batches * recipe.batch.max_tokens
    epochs = [
        recipe.num_steps * tokens_per_step * group.weight / max(int(group.lengths_N.sum()), 1)
        for group in groups
    ]
    loss_tokens_M = np.array(epochs) @ np.stack([group.loss_tokens_M for group in groups])
    return "\n".join(
        [
            f"{recipe.num_steps} steps of at most {tokens_per_step} tokens",
            f"{'task':<16}{'samples':>9}{'tokens/sample':>15}{'epochs':>8}{'share':>8}   tokens with loss",
            *(_plan_row(group, n) for group, n in zip(groups, epochs, strict=True)),
            f"{'all':<56}   {_shares(loss_tokens_M)}",
            *(_describe_refused(group, recipe) for group in groups if group.refused),
        ]
    )


def _plan_row(group: Group, epochs: float) -> str:
    num_samples = len(group.rows_N)
    mean_length = group.lengths_N.sum() / max(num_samples, 1)
    return (
        f"{group.name:<16}{num_samples:>9}{mean_length:>15.1f}{epochs:>8.1f}{group.weight:>8.1%}"
        f"   {_shares(group.loss_tokens_M)}"
    )


def _shares(tokens_M: npt.NDArray[np.number]) -> str:
    return " ".join(
        f"{modality} {n / tokens_M.sum():.1%}" for modality, n in zip(MODALITIES, tokens_M, strict=True) if n
    )


def _describe_refused(group: Group, recipe: Recipe) -> str:
    named = [f"{key} ({length})" for key, length in list(group.refused.items())[:NUM_NAMED]]
    more = f" and {len(group.refused) - NUM_NAMED} more" if len(group.refused) > NUM_NAMED else ""
    return (
        f"{group.name}: {len(group.refused)} samples refused, over {recipe.sequence.max_length} tokens: "
        f"{', '.join(named)}{more}"
    )
