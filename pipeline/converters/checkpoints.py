"""What the readers of foreign checkpoints share: safe opening, checking against an architecture, hashing."""

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dmlm.pipeline.errors import ConfigError, CorruptInputError

State = dict[str, torch.Tensor]

MIN_TORCH = "2.10"
"""Older releases let a `.pt` file run code even with `weights_only=True` (CVE-2026-24747)."""

LOAD_ERRORS = (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, LookupError, EOFError)


def load_torch_checkpoint(path: Path) -> Mapping[str, Any]:
    """Content of a `.pt` file, its tensors memory-mapped on the CPU; empty when it is no mapping.

    Raises:
        ConfigError: This torch cannot read such files safely.
        CorruptInputError: The file is cut, damaged or holds more than tensors and plain values.
    """
    check_torch_is_safe(path)
    if not zipfile.is_zipfile(path):
        raise CorruptInputError(f"{path}: cut off, or not a torch checkpoint; fetch it again")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except LOAD_ERRORS as error:
        raise CorruptInputError(f"{path}: not a readable torch checkpoint: {error}") from error
    return checkpoint if isinstance(checkpoint, dict) else {}


def check_torch_is_safe(path: Path) -> None:
    """Raises ConfigError when this torch cannot read pickled files safely."""
    if torch.__version__ < MIN_TORCH:
        raise ConfigError(
            f"{path}: reading {path.suffix} files safely needs torch >= {MIN_TORCH}, not {torch.__version__}"
        )


def check_state(state: State, expected: State, path: Path) -> None:
    """Raises CorruptInputError unless `state` has names and shapes of `expected` and finite values."""
    for name in sorted(expected.keys() | state.keys()):
        wanted = tuple(expected[name].shape) if name in expected else "nothing"
        found = tuple(state[name].shape) if name in state else "nothing"
        if wanted != found:
            raise CorruptInputError(f"{path}: {name}: expected {wanted}, found {found}")
        if not torch.isfinite(state[name]).all():
            raise CorruptInputError(f"{path}: {name} holds values that are not finite")


def hash_state(state: State) -> str:
    """sha256 of names, shapes and float32 values: equal weights in two file formats are equal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().astype("<f4", copy=False).tobytes())
    return digest.hexdigest()
