"""Where a run's figures go besides its own files: TensorBoard, Weights & Biases; only when asked for."""

import html
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from dmlm.pipeline.errors import MissingDependencyError
from dmlm.pipeline.storage import write_bytes
from dmlm.trainer.config import TrackerName

RUN_ID_NAME: Final = "wandb_id.txt"


class Tracker(Protocol):
    """Takes figures and texts of steps, in order; after `--resume`, those of some steps once more."""

    def add_figures(self, step: int, figures: Iterable[tuple[str, float]]) -> None:
        """Adds a point to the curve of each name."""

    def add_text(self, step: int, name: str, text: str) -> None:
        """Adds a text of several lines."""

    def close(self) -> None:
        """Writes what is not yet written."""


def open_trackers(
    names: Iterable[TrackerName], run_dir: Path, first_step: int, settings: Mapping[str, Any]
) -> list[Tracker]:
    """Opens trackers of a run that goes on behind step `first_step`.

    Raises:
        MissingDependencyError: A tracker's package is not installed.
    """
    opened: list[Tracker] = []
    for name in dict.fromkeys(names):
        if name == "tensorboard":
            opened.append(TensorBoard(run_dir, first_step))
        else:
            opened.append(WeightsAndBiases(run_dir, settings))
    return opened


class TensorBoard:
    """Event files in `RUN/tensorboard`; a resumed run hides the points of steps that are made again."""

    def __init__(self, run_dir: Path, first_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard") from error
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step + 1)

    def add_figures(self, step: int, figures: Iterable[tuple[str, float]]) -> None:
        """Adds scalars."""
        for name, value in figures:
            self._writer.add_scalar(name, value, step)

    def add_text(self, step: int, name: str, text: str) -> None:
        """Adds a text, which TensorBoard reads as Markdown: four spaces keep the lines."""
        self._writer.add_text(name, "".join(f"    {line}\n" for line in text.splitlines()), step)

    def close(self) -> None:
        """Ends the event file."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, which `--resume` goes on with; files in `RUN/wandb`.

    Project, account and mode are what W&B's own variables say (WANDB_PROJECT, WANDB_MODE=offline, ...).
    Source code and the state of git are not sent.
    """

    def __init__(self, run_dir: Path, settings: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb") from error
        id_path = run_dir / RUN_ID_NAME
        known = id_path.read_text(encoding="ascii").strip() if id_path.is_file() else None
        self._wandb: Any = wandb
        self._run: Any = wandb.init(
            dir=run_dir,
            name=run_dir.resolve().name,
            id=known,
            resume="allow",
            config=dict(settings),
            settings=wandb.Settings(disable_code=True, disable_git=True, console="off"),
        )
        write_bytes(id_path, f"{self._run.id}\n".encode("ascii"))
        # W&B's own step cannot go back, as a resumed run's does.
        self._run.define_metric("*", step_metric="step")

    def add_figures(self, step: int, figures: Iterable[tuple[str, float]]) -> None:
        """Logs the figures with their step."""
        self._run.log({"step": step, **dict(figures)})

    def add_text(self, step: int, name: str, text: str) -> None:
        """Logs a text as it stands."""
        self._run.log({"step": step, name: self._wandb.Html(f"<pre>{html.escape(text)}</pre>", inject=False)})

    def close(self) -> None:
        """Sends what is left, if the run is online."""
        self._run.finish()


def _missing(package: str) -> MissingDependencyError:
    return MissingDependencyError(
        f'--tracker {package} needs the package {package}: pip install "dmlm[track]"'
    )
