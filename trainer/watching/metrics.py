"""Figures of the steps of a run, added up.

StepResult -> MetricsWindow -> Record: a line of `metrics.jsonl` and of the console

Suffixes: K task (a place in TASKS), M modality.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dmlm.trainer.data.tasks import MODALITIES, TASKS
from dmlm.trainer.loss import NUM_MODALITIES, NUM_TASKS
from dmlm.trainer.step import StepResult
from dmlm.trainer.watching.plan import Operations, Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Figures of some steps: a line of `metrics.jsonl`."""

    step: int
    """Steps done."""
    loss: float
    """Mean over the steps."""
    loss_by_modality: Mapping[str, float]
    """Mean cross-entropy in nats."""
    loss_share_by_modality: Mapping[str, float]
    """Of the loss."""
    loss_share_by_task: Mapping[str, float]
    """Of the loss."""
    loss_tokens_by_modality: Mapping[str, int]
    """Tokens that carry loss."""
    loss_tokens_by_task: Mapping[str, int]
    """The same."""
    share_by_modality: Mapping[str, float]
    """Of the tokens that carry loss."""
    share_by_task: Mapping[str, float]
    """Of all tokens."""
    learning_rate: float
    gradient_norm: float
    """Before clipping."""
    padding: float
    """Free places, as a share of the capacity of the packed rows."""
    num_tokens: int
    num_sequences: int
    seconds: float
    """Time that the steps took, saving included and validation not."""
    tokens_per_second: float
    flops_per_second: float
    mfu: float | None
    """Of what the devices can do in bfloat16; None where that is not known."""
    warnings: tuple[str, ...] = ()
    """What these steps gave cause to warn of."""

    def line(self) -> str:
        """The figures for the console."""
        losses = ", ".join(
            f"{modality} {loss:.3f} ({self.loss_share_by_modality[modality]:.0%})"
            for modality, loss in self.loss_by_modality.items()
        )
        return (
            f"loss {self.loss:.3f}: {losses}; {self.speed()}, padding {self.padding:.1%}, "
            f"lr {self.learning_rate:.1e}"
        )

    def speed(self) -> str:
        """Throughput for the console."""
        share = "" if self.mfu is None else f" (MFU {self.mfu:.1%})"
        return f"{self.tokens_per_second:.0f} tokens/s, {self.flops_per_second / 1e9:.4g} GFLOP/s{share}"

    def figures(self) -> Iterator[tuple[str, float]]:
        """Name and value of everything that makes a curve."""
        names = ("loss", "learning_rate", "gradient_norm", "padding", "tokens_per_second", "flops_per_second")
        yield from ((name, getattr(self, name)) for name in names)
        if self.mfu is not None:
            yield "mfu", self.mfu
        groups = {
            "loss": self.loss_by_modality,
            "loss_share": self.loss_share_by_modality,
            "loss_share_of_task": self.loss_share_by_task,
            "token_share_of_task": self.share_by_task,
        }
        for name, values in groups.items():
            yield from ((f"{name}/{kind}", value) for kind, value in values.items())


class MetricsWindow:
    """Sums over steps."""

    def __init__(self, plan: Plan, operations: Operations) -> None:
        """Starts the clock."""
        self._plan, self._operations = plan, operations
        self._sum_of_losses, self._num_steps = 0.0, 0
        self._num_tokens_KM = np.zeros((NUM_TASKS, NUM_MODALITIES), np.int64)
        self._sums_KM, self._parts_KM = np.zeros((2, NUM_TASKS, NUM_MODALITIES))
        self._tokens_by_task: Counter[str] = Counter()
        self._num_sequences = self._num_rows = 0
        self._start = time.monotonic()

    def add(self, result: StepResult) -> None:
        """Takes in one step."""
        self._sum_of_losses += result.loss
        self._num_steps += 1
        self._num_tokens_KM += result.num_tokens_KM
        self._sums_KM += result.sums_KM
        self._parts_KM += result.parts_KM
        self._tokens_by_task.update(result.tokens_by_task)
        self._num_sequences += result.num_sequences
        self._num_rows += result.num_rows

    def leave_out(self, seconds: float) -> None:
        """Takes time that went into something else off the clock."""
        self._start += seconds

    def state(self) -> dict[str, Any]:
        """Plain json from which `restore` goes on."""
        return {
            "tasks": list(TASKS),
            "sum_of_losses": self._sum_of_losses,
            "num_steps": self._num_steps,
            "num_tokens_KM": self._num_tokens_KM.tolist(),
            "sums_KM": self._sums_KM.tolist(),
            "parts_KM": self._parts_KM.tolist(),
            "tokens_by_task": dict(self._tokens_by_task),
            "num_sequences": self._num_sequences,
            "num_rows": self._num_rows,
            "seconds": time.monotonic() - self._start,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state` gave; the time between does not count.

        Nothing, where the rows of its arrays were other tasks, or it is empty or of an older checkpoint.
        """
        if state.get("tasks") != list(TASKS) or "num_steps" not in state:
            return
        self._sum_of_losses, self._num_steps = state["sum_of_losses"], state["num_steps"]
        self._num_tokens_KM = np.array(state["num_tokens_KM"], np.int64)
        self._sums_KM, self._parts_KM = np.array([state["sums_KM"], state["parts_KM"]], np.float64)
        self._tokens_by_task = Counter(state["tokens_by_task"])
        self._num_sequences, self._num_rows = state["num_sequences"], state["num_rows"]
        self._start = time.monotonic() - state["seconds"]

    def record(self, step: int, last: StepResult) -> Record:
        """Figures of the steps so far; `last` is the last of them, `step` its number."""
        num_tokens, seconds = self._tokens_by_task.total(), time.monotonic() - self._start
        tokens_M, max_tokens = self._num_tokens_KM.sum(axis=0), self._plan.recipe.batch.max_tokens
        shares_KM = self._parts_KM / max(float(self._parts_KM.sum()), np.finfo(np.float64).tiny)
        flops = self._operations.total(self._tokens_by_task, int(tokens_M.sum())) / seconds
        peak = self._operations.peak_per_second
        return Record(
            step=step,
            loss=self._sum_of_losses / self._num_steps,
            loss_by_modality=self._of_present(self._sums_KM.sum(axis=0) / np.maximum(tokens_M, 1)),
            loss_share_by_modality=self._of_present(shares_KM.sum(axis=0)),
            loss_share_by_task=self._by_task(shares_KM.sum(axis=1)),
            loss_tokens_by_modality={name: int(n) for name, n in self._of_present(tokens_M).items()},
            loss_tokens_by_task={
                name: int(n) for name, n in self._by_task(self._num_tokens_KM.sum(axis=1)).items()
            },
            share_by_modality=self._of_present(tokens_M / tokens_M.sum()),
            share_by_task={task: n / num_tokens for task, n in self._tokens_by_task.most_common() if n},
            learning_rate=last.learning_rate,
            gradient_norm=last.gradient_norm,
            padding=1 - num_tokens / (self._num_rows * max_tokens),
            num_tokens=num_tokens,
            num_sequences=self._num_sequences,
            seconds=seconds,
            tokens_per_second=num_tokens / seconds,
            flops_per_second=flops,
            mfu=None if peak is None else flops / peak,
        )

    def _of_present(self, values_M: npt.NDArray[np.number]) -> dict[str, float]:
        """Values of the modalities that had tokens with loss."""
        present = zip(MODALITIES, values_M.tolist(), self._num_tokens_KM.sum(axis=0), strict=True)
        return {str(modality): value for modality, value, num_tokens in present if num_tokens}

    def _by_task(self, values_K: npt.NDArray[np.number]) -> dict[str, float]:
        """Values of the tasks that had tokens, the one with most of them first."""
        values = dict(zip(TASKS, values_K.tolist(), strict=True))
        return {task: values[task] for task, num_tokens in self._tokens_by_task.most_common() if num_tokens}
