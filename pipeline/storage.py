"""Files and folders that are either whole or not there: write to `.tmp`, fsync, replace; and their sha256."""

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic_writer(path: Path, *, is_shared: bool = False) -> Iterator[IO[bytes]]:
    """Yields a binary file that becomes `path` only when the block ends without an error.

    Args:
        path: What it becomes.
        is_shared: Whether others may write the same file at the same time; the last one stays, whole.
    """
    mark = f".{secrets.token_hex(4)}" if is_shared else ""
    temporary = path.with_name(f"{path.name}{mark}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _open_locked(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)  # before the lock is gone, see `remove_left_over`
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def remove_left_over(temporary: Path) -> None:
    """Removes what a killed `atomic_writer` left; what a process is writing, or nobody may remove, stays."""
    with suppress(OSError), temporary.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(file, temporary):  # else it was written to its end meanwhile, and another one has begun
            temporary.unlink()


def _open_locked(path: Path) -> IO[bytes]:
    """A new file to write, which `remove_left_over` spares."""
    while True:
        file = path.open("wb")
        with suppress(OSError):  # some network disks know no locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(file, path):  # else it was removed before it was locked
            return file
        file.close()


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether an open file is still the one at `path`."""
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


def user_cache_dir() -> Path:
    """XDG_CACHE_HOME, else `~/.cache`; an empty variable counts as unset, as everywhere in XDG."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def check_writable(path: Path) -> None:
    """Raises, before any work, the OSError that writing a file would end in, as far as it can be known."""
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir():
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not nearest.is_dir():
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(nearest))
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(nearest))


def is_vacant(directory: Path) -> bool:
    """Whether there is nothing, or a folder with nothing in it but what a killed `scratch_for` left."""
    return not directory.exists() or (
        directory.is_dir() and all(re.fullmatch(r"\..*\.tmp", path.name) for path in directory.iterdir())
    )


@contextmanager
def scratch_for(out_dir: Path, *, is_shared: bool = False) -> Iterator[Path]:
    """Yields an empty folder to fill and give to `publish_folder`; it is removed when the block ends.

    Args:
        out_dir: What it is to become. A folder that is there is kept, as it may be a mount point, which
            cannot be replaced and is a disk of its own: then the scratch folder is in it, else beside it.
        is_shared: Whether others may fill one for the same folder at the same time.
    """
    out_dir = out_dir.resolve()  # a link, or `.`
    mark = f".{secrets.token_hex(4)}" if is_shared else ""
    scratch = (out_dir if out_dir.is_dir() else out_dir.parent) / f".{out_dir.name}{mark}.tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def publish_folder(scratch: Path, out_dir: Path, last: str) -> None:
    """Makes `out_dir` of a folder that `scratch_for` gave.

    Args:
        scratch: The folder, filled.
        out_dir: As it was given to `scratch_for`.
        last: The file that says that the folder is whole, so that nothing half moved is taken for it.

    Raises:
        OSError: Something else is there meanwhile.
    """
    out_dir = out_dir.resolve()
    if scratch.parent != out_dir:
        os.replace(scratch, out_dir)
        sync_directory(out_dir.parent)
        return
    if not is_vacant(out_dir):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(out_dir))
    for path in sorted(scratch.iterdir(), key=lambda path: path.name == last):
        if path.name == last:
            sync_directory(out_dir)
        os.replace(path, out_dir / path.name)
    sync_directory(out_dir)


@contextmanager
def as_os_errors(path: Path) -> Iterator[None]:
    """Makes OSErrors about `path` of what `tokenizers` and safetensors raise when a disk is full or fails."""
    try:
        yield
    except Exception as error:
        found = re.search(r"(?:\(os error |Os \{ code: )(\d+)", str(error))  # Rust's two forms of it
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


def sync_directory(directory: Path) -> None:
    """Makes renames inside `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes, *, is_shared: bool = False) -> None:
    """Writes `data` to `path`, whole or not at all; see `atomic_writer`."""
    with atomic_writer(path, is_shared=is_shared) as file:
        file.write(data)


def write_json(path: Path, content: Any, *, is_shared: bool = False) -> None:
    """Writes `content` as indented UTF-8 json, whole or not at all; see `atomic_writer`."""
    write_bytes(path, encode_json(content), is_shared=is_shared)


def encode_json(content: Any) -> bytes:
    """Encodes `content` as indented UTF-8 json with a final newline; keys keep their order."""
    return (json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode()


def sha256_file(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def has_sha256(path: Path, sha256: str) -> bool:
    """Whether the file is there, with these bytes; it may vanish meanwhile."""
    try:
        return path.is_file() and sha256_file(path) == sha256
    except FileNotFoundError:
        return False


def sha256_json(content: Any) -> str:
    """Hexadecimal sha256 of a json value in canonical form (sorted keys, no spaces)."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
