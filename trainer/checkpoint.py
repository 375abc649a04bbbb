"""Checkpoints: a Hugging Face folder that anything can load, and beside the model what an exact resume needs.

    checkpoint-000500/  config.json model.safetensors generation_config.json tokenizer files vocabulary.json
                        dmlm.json        what it was trained with: recipe, data, fingerprints
                        codebook/        turns speech, images and text into its tokens
                        trainer_state/   optimizer.safetensors stream.json metrics.json
                        DONE             sha256 of every file, written last

A checkpoint is written under another name, synced, renamed, and only then vouched for by DONE.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

import dmlm
from dmlm.pipeline.errors import CheckpointError, ConfigError, StorageError
from dmlm.pipeline.samples import Modality
from dmlm.pipeline.shards.card import CODEBOOK_NAME
from dmlm.pipeline.storage import sha256_file, sync_directory, write_bytes, write_json
from dmlm.pipeline.vocabulary import Vocabulary
from dmlm.trainer.models.model import VOCABULARY_NAME, load_model, save_model, save_tokenizer
from dmlm.trainer.settings import FORMAT_VERSION, SETTINGS_NAME, RunSettings, read_settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BEST_NAME: Final = "best"
"""A link to the checkpoint with the lowest validation loss, which is kept as well."""
DONE_NAME: Final = "DONE"
OPTIMIZER_PATH: Final = "trainer_state/optimizer.safetensors"
STREAM_PATH: Final = "trainer_state/stream.json"
METRICS_PATH: Final = "trainer_state/metrics.json"

_NAME = re.compile(r"checkpoint-\d+")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """A trained model, ready for use, and everything that it needs."""

    path: Path
    step: int
    model: "PreTrainedModel"
    """In evaluation mode."""
    settings: RunSettings
    tokenizer_dir: Path
    """Text tokenizer with the speech, image and special tokens added."""
    codebook_dir: Path
    """Holds `speech`, `image`, `text`, as `build-codebook` wrote them."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Vocabulary of the model."""
        return self.settings.vocabulary


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainerState:
    """What `--resume` goes on from, apart from the weights."""

    step: int
    """Steps done."""
    optimizer: Mapping[str, Tensor]
    stream: Mapping[str, Any]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Figures of the steps since the last line of `metrics.jsonl`, and of all; empty in older checkpoints."""


def save_checkpoint(
    run_dir: Path,
    *,
    model: "PreTrainedModel",
    state: TrainerState,
    settings: RunSettings,
    codebooks: Mapping[str, bytes],
    is_best: bool = False,
) -> Path:
    """Publishes a checkpoint and removes all but the newest, as many as the recipe keeps, and the best.

    Later ones go, too: they are damaged, and the run fell back behind them. One that `best` links to stays.
    `codebooks` are those of `read_codebooks`.

    Raises:
        StorageError: The disk is full or fails; what was there before is still there.
    """
    from safetensors import SafetensorError

    path = checkpoint_path(run_dir, state.step)
    temporary = run_dir / f".{path.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _write_files(temporary, model, state, settings, codebooks)
        sums = {name: sha256_file(temporary / name) for name in _relative_files(temporary)}
        _sync_tree(temporary)
        _remove(path)
        os.replace(temporary, path)
        sync_directory(run_dir)
        write_json(path / DONE_NAME, sums)
        if is_best:
            mark_best(run_dir, state.step)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not (path / DONE_NAME).is_file():
            _remove(path)  # of no use, and it holds the space that the next one needs
        raise StorageError(
            f"{path}: not saved: {error}; mend the disk or free space, then --resume"
        ) from error
    _remove_others(run_dir, state.step, settings.recipe.keep_checkpoints)
    return path


def mark_best(run_dir: Path, step: int) -> None:
    """Makes `RUN/best` a link to the checkpoint of a step, if it has one; no folder may be there."""
    best, name = run_dir / BEST_NAME, checkpoint_path(run_dir, step).name
    if best.is_dir() and not best.is_symlink():
        raise StorageError(f"{best}: a folder, not a link to a checkpoint; move it away and run again")
    if (run_dir / name / DONE_NAME).is_file():
        temporary = run_dir / f".{BEST_NAME}.tmp"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(name, target_is_directory=True)
        os.replace(temporary, best)
        sync_directory(run_dir)


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run_dir / f"checkpoint-{step:06d}"


def resolve_checkpoint(path: Path) -> Path:
    """The checkpoint at `path`, or the newest whole one in the run folder `path`.

    Raises:
        ConfigError: There is no such folder, or no checkpoint in it.
        CheckpointError: Every checkpoint in it is damaged, or the one at `path` is.
    """
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder; give a run folder or a checkpoint of `dmlm-cli train`")
    if (path / SETTINGS_NAME).is_file():
        if problem := _find_damage(path):
            raise CheckpointError(f"{path}: {problem}; use another checkpoint of the run")
        return path
    newest = latest_checkpoint(path)
    if newest is None:
        raise ConfigError(f"{path}: holds no checkpoint of `dmlm-cli train`")
    return newest


def latest_checkpoint(run_dir: Path) -> Path | None:
    """Newest whole checkpoint of a run; None when no checkpoint was ever finished.

    Raises:
        CheckpointError: There are finished checkpoints, and all of them are damaged.
    """
    finished = _finished_checkpoints(run_dir)
    for path in finished:
        problem = _find_damage(path)
        if problem is None:
            return path
        _logger.warning("%s: %s; falling back to the checkpoint before it", path, problem)
    if finished:
        raise CheckpointError(f"{run_dir}: every checkpoint is damaged; train again into another --out")
    return None


def load_checkpoint(path: Path, device: str = "cpu") -> Checkpoint:
    """Loads a checkpoint for use.

    Raises:
        CheckpointError: A file is missing, damaged, or of another format version.
    """
    step, settings = read_settings(path)
    try:
        model = load_model(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: the model cannot be loaded: {error}") from error
    return Checkpoint(
        path=path,
        step=step,
        model=model.to(device).eval(),
        settings=settings,
        tokenizer_dir=path,
        codebook_dir=path / CODEBOOK_NAME,
    )


def load_trainer_state(path: Path) -> TrainerState:
    """Reads what `save_checkpoint` wrote for resuming.

    Raises:
        CheckpointError: A file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    step, _ = read_settings(path)
    try:
        optimizer = load_file(path / OPTIMIZER_PATH)
        stream = json.loads((path / STREAM_PATH).read_bytes())
        has_metrics = (path / METRICS_PATH).is_file()
        metrics = json.loads((path / METRICS_PATH).read_bytes()) if has_metrics else {}
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be resumed: {error}") from error
    return TrainerState(step=step, optimizer=optimizer, stream=stream, metrics=metrics)


def _write_files(
    directory: Path,
    model: "PreTrainedModel",
    state: TrainerState,
    settings: RunSettings,
    codebooks: Mapping[str, bytes],
) -> None:
    from safetensors.torch import save_file

    (directory / OPTIMIZER_PATH).parent.mkdir(parents=True)
    save_model(model, directory)
    for name, data in codebooks.items():
        write_bytes(directory / CODEBOOK_NAME / name, data)
    save_tokenizer(directory / CODEBOOK_NAME / Modality.TEXT, settings.vocabulary, directory)
    save_file(dict(state.optimizer), directory / OPTIMIZER_PATH)
    write_json(directory / STREAM_PATH, state.stream)
    write_json(directory / METRICS_PATH, state.metrics)
    write_json(directory / VOCABULARY_NAME, settings.vocabulary.to_json())
    versions = {"dmlm": dmlm.__version__, "torch": torch.__version__}
    about = {"format_version": FORMAT_VERSION, "step": state.step, "versions": versions}
    write_json(directory / SETTINGS_NAME, {**about, **settings.to_json()})


def _relative_files(directory: Path) -> list[str]:
    return sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())


def _sync_tree(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            sync_directory(path)
    sync_directory(directory)


def _finished_checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoints with a DONE, newest first."""
    paths = [path for path in _checkpoints(run_dir) if (path / DONE_NAME).is_file()]
    return sorted(paths, key=_step_of, reverse=True)


def _checkpoints(run_dir: Path) -> list[Path]:
    """Those that training wrote, not what somebody else put beside them."""
    return [path for path in run_dir.glob("checkpoint-*") if _NAME.fullmatch(path.name)]


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-"))


def _find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint; None when it is whole."""
    try:
        sums = json.loads((path / DONE_NAME).read_bytes())
        damaged = [name for name, sha256 in sums.items() if sha256_file(path / name) != sha256]
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, AttributeError) as error:
        return f"{DONE_NAME} cannot be read: {error}"
    return f"{damaged[0]} is damaged" if damaged else None


def _remove(path: Path) -> None:
    """Removes a checkpoint; without its DONE first, so that no half of it looks whole."""
    (path / DONE_NAME).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _remove_others(run_dir: Path, step: int, num_kept: int) -> None:
    finished = [path for path in _finished_checkpoints(run_dir) if _step_of(path) <= step]
    kept = {path.name for path in finished[:num_kept]}
    best = run_dir / BEST_NAME
    if best.is_symlink():
        kept.add(best.readlink().name)
    for path in _checkpoints(run_dir):
        if path.name not in kept:
            _remove(path)
    for path in run_dir.glob(".checkpoint-*.tmp"):  # of a save that was killed
        shutil.rmtree(path, ignore_errors=True)
