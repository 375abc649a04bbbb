"""What a run begins with, or goes on from: one checkpoint for all ranks, which must be of the same run."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import Modality
from dmlm.pipeline.shards.card import CODEBOOK_NAME
from dmlm.pipeline.storage import sha256_file
from dmlm.trainer.checkpoint import DONE_NAME, checkpoint_path, latest_checkpoint, resolve_checkpoint
from dmlm.trainer.config import Recipe
from dmlm.trainer.data.dataset import TrainingData
from dmlm.trainer.distributed import Ranks
from dmlm.trainer.models.model import read_vocabulary
from dmlm.trainer.settings import SETTINGS_NAME, RunSettings, check_same_run, read_settings


def choose_checkpoint(run_dir: Path, ranks: Ranks) -> Path | None:
    """Newest whole checkpoint of a run as the first rank sees it, so that none goes on from another.

    Raises:
        CheckpointError: There are finished checkpoints, and all of them are damaged.
        ConfigError: This rank's folder does not hold the checkpoint.
    """
    chosen = latest_checkpoint(run_dir) if ranks.is_first else None
    known = [-1, *bytes(32)] if chosen is None else [read_settings(chosen)[0], *_mark_of(chosen)]
    step, *mark = ranks.tell_all(known)
    if step < 0:
        return None
    path = checkpoint_path(run_dir, step)
    if _mark_of(path) != bytes(mark):
        raise ConfigError(
            f"rank {ranks.rank}: {path} is not what the first rank goes on from; "
            f"{run_dir} must be one folder that all ranks share"
        )
    return path


def resumed_settings(checkpoint: Path, settings: RunSettings, init: str | None) -> RunSettings:
    """Settings of a run that goes on; what it began with is not needed any more.

    Args:
        checkpoint: What it goes on from.
        settings: What it is made of now.
        init: What is given as its beginning; it may be gone, or not be given.

    Raises:
        FingerprintMismatchError: The checkpoint is of another run; both sides are named.
    """
    saved = read_settings(checkpoint)[1]
    begun = saved.recipe.model.init
    # Of a link older checkpoints tell where it led.
    is_left_out = init is None or begun in (_name_of(Path(init)), Path(init).resolve().name)
    current = replace(settings, recipe=with_init(settings.recipe, begun)) if is_left_out else settings
    check_same_run(checkpoint, saved, current)
    return current


def with_init(recipe: Recipe, init: str | None) -> Recipe:
    """The recipe with another beginning."""
    return replace(recipe, model=replace(recipe.model, init=init))


def shareable_init(init: str | None) -> str | None:
    """What a checkpoint tells of its beginning: a hub's name, or a file's without this machine's path."""
    return _name_of(Path(init)) if init is not None and Path(init).exists() else init


def resolve_init(init: str | None, ranks: Ranks) -> str | None:
    """What weights are read from: of a run folder its newest whole checkpoint, all else as it is named.

    The first rank chooses for all, as the run may be saving another one just now.

    Raises:
        CheckpointError: A checkpoint of dmlm is damaged, or all those of a run are.
        ConfigError: This rank's folder does not hold the checkpoint.
    """
    if init is None or not Path(init).is_dir():
        return init
    is_checkpoint = (Path(init) / SETTINGS_NAME).is_file()
    found = resolve_checkpoint(Path(init)) if is_checkpoint else choose_checkpoint(Path(init), ranks)
    return init if found is None else str(found)


def with_vocabulary_of(data: TrainingData, start: str | Path | None) -> TrainingData:
    """Training data in the vocabulary of what a run starts from.

    A checkpoint may have the special tokens of another version. It keeps modalities that the data lacks, and
    with them their tokenizers.

    Raises:
        CheckpointError: The `dmlm.json` of a checkpoint is damaged.
    """
    vocabulary = None if start is None else read_vocabulary(start)
    if start is None or vocabulary is None:
        return data
    ours = replace(data.vocabulary, special_tokens=vocabulary.special_tokens)
    if not (Path(start) / SETTINGS_NAME).is_file():
        return replace(data, vocabulary=ours)
    known = read_settings(Path(start))[1].fingerprints
    kept = {modality: mark for modality, mark in known.items() if modality not in data.fingerprints}
    if Modality.SPEECH in kept:
        ours = replace(ours, num_speech=vocabulary.num_speech)
    if Modality.IMAGE in kept:
        ours = replace(ours, num_image=vocabulary.num_image)
    return replace(
        data,
        vocabulary=ours,
        fingerprints={**data.fingerprints, **kept},
        codebook_dirs={**data.codebook_dirs, **{name: Path(start) / CODEBOOK_NAME / name for name in kept}},
    )


def read_codebooks(codebook_dirs: Mapping[Modality, Path]) -> dict[str, bytes]:
    """Files of the codebooks of a run by their path below `codebook/`, as every checkpoint holds them.

    They are read before the first step: where they come from may be gone at the first save. Another run, say,
    removes its older checkpoints.
    """
    return {
        f"{modality}/{path.relative_to(directory).as_posix()}": path.read_bytes()
        for modality, directory in codebook_dirs.items()
        for path in directory.rglob("*")
        if path.is_file()
    }


def _name_of(path: Path) -> str:
    """Of `.` the folder's; of a link its own: `RUN/best` is another checkpoint later on."""
    return path.name or path.resolve().name


def _mark_of(checkpoint: Path) -> bytes:
    """What tells a checkpoint from others of the same step; empty where it is not whole."""
    path = checkpoint / DONE_NAME
    return bytes.fromhex(sha256_file(path)) if path.is_file() else b""
