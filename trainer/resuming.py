"""What a run goes on from: one checkpoint for all ranks, which must be of the same run."""

from pathlib import Path

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.storage import sha256_file
from dmlm.trainer.checkpoint import DONE_NAME, checkpoint_path, latest_checkpoint
from dmlm.trainer.distributed import Ranks
from dmlm.trainer.settings import read_settings


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
            "--out must be one folder that all ranks share"
        )
    return path


def _mark_of(checkpoint: Path) -> bytes:
    """What tells a checkpoint from others of the same step; empty where it is not whole."""
    path = checkpoint / DONE_NAME
    return bytes.fromhex(sha256_file(path)) if path.is_file() else b""
