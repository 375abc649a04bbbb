"""What the readers of foreign checkpoints share: safe opening, checking against an architecture, hashing."""

import hashlib
import pickle
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from dmlm.pipeline.errors import ConfigError, CorruptInputError

State = dict[str, torch.Tensor]

MIN_TORCH = "2.10"
"""Older releases let a `.pt` file run code even with `weights_only=True` (CVE-2026-24747)."""

MAX_SHARING = 2
"""How many bytes of tensors a byte of a file may stand for: tied tensors are stored once."""

LOAD_ERRORS = (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, LookupError, EOFError)


def load_torch_checkpoint(path: Path) -> Mapping[str, Any]:
    """Content of a `.pt` file, its tensors memory-mapped on the CPU; empty when it is no mapping.

    Raises:
        ConfigError: This torch cannot read such files safely.
        CorruptInputError: The file is cut, damaged, holds more than tensors and plain values, or would
            unfold to many times its size.
    """
    check_torch_is_safe(path)
    check_archive(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except LOAD_ERRORS as error:
        raise CorruptInputError(f"{path}: not a readable torch checkpoint: {error}") from error
    if not isinstance(checkpoint, dict):
        return {}
    check_claims(_iter_values(checkpoint), path)
    return checkpoint


def check_torch_is_safe(path: Path) -> None:
    """Raises ConfigError when this torch cannot read pickled files safely."""
    if torch.__version__ < MIN_TORCH:
        raise ConfigError(
            f"{path}: reading {path.suffix} files safely needs torch >= {MIN_TORCH}, not {torch.__version__}"
        )


def check_archive(path: Path) -> None:
    """Raises CorruptInputError unless the file is a zip archive as torch writes it: nothing compressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            is_compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
    except (zipfile.BadZipFile, *LOAD_ERRORS) as error:
        raise CorruptInputError(
            f"{path}: cut off, not a torch checkpoint, or saved by a torch before 1.6; fetch it again"
        ) from error
    if is_compressed:
        raise CorruptInputError(f"{path}: holds compressed entries, which torch never writes")


def check_claims(values: Iterable[object], path: Path) -> None:
    """Raises CorruptInputError when tensors are larger than the file can hold: one number has any shape."""
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    num_bytes, claimed = path.stat().st_size, sum(t.numel() * t.element_size() for t in tensors)
    if claimed > MAX_SHARING * num_bytes:
        raise CorruptInputError(f"{path}: {num_bytes} bytes claim to hold tensors of {claimed}")


def _iter_values(checkpoint: Mapping[str, Any]) -> Iterator[object]:
    """Values of a checkpoint and of the mappings in it: no reader looks deeper."""
    for value in checkpoint.values():
        yield from value.values() if isinstance(value, dict) else [value]


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
