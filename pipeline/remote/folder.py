"""One folder at an address: its files, one by one, each compared with what it should be.

Retries, with growing pauses, are the library's (botocore, huggingface_hub); here they are given an end.
"""

import errno
import fcntl
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Self

from dmlm.pipeline.errors import ConfigError, CorruptInputError, MissingDependencyError, StorageError
from dmlm.pipeline.progress import track
from dmlm.pipeline.storage import atomic_writer, sha256_file

MAX_ATTEMPTS: Final = 4
"""Of one request, with growing pauses between them; what breaks off in the middle has as many once more."""
CONNECT_SECONDS: Final = 10
READ_SECONDS: Final = 30
"""A server that sends nothing for so long does not answer."""
NUM_STREAMS: Final = 8
"""Files on their way at the same time."""

_ADDRESS = re.compile(r"(s3|hf)://[A-Za-z0-9_.@=+-]+(/[A-Za-z0-9_.@=+-]+)*")
_PACKAGES = {"s3": '"dmlm[s3]"', "hf": "huggingface_hub"}
_OWN_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}


class MissingFileError(StorageError):
    """There is no such file, or no such bucket."""


@dataclass(frozen=True, slots=True)
class RemoteFolder:
    """A folder at an address, and its mirror."""

    address: str
    local: Path
    """Folder of this machine that holds the same files, or some of them."""

    @classmethod
    def of(cls, address: str, cache_dir: Path) -> Self:
        """The folder at `address`, mirrored in a folder of its own in `cache_dir`.

        Raises:
            ConfigError: dmlm does not read such addresses.
        """
        address = address.rstrip("/")
        parts = address.split("/")
        if not _ADDRESS.fullmatch(address) or {".", ".."} & set(parts):
            raise ConfigError(
                f"{address!r}: no such folder, and no address that dmlm reads: "
                "s3://BUCKET/FOLDER or hf://datasets/USER/NAME/FOLDER, of letters, digits and _ . @ = + -"
            )
        mark = hashlib.sha256(address.encode()).hexdigest()[:12]
        return cls(address, cache_dir / f"{parts[-1]}-{mark}")

    def list_files(self) -> dict[str, int]:
        """Size in bytes of every file, by its path from here; empty when there is nothing.

        Raises:
            CorruptInputError: A name leads out of the folder.
            StorageError: The address cannot be reached.
        """
        with self._reaching("") as (files, root):
            found = files.find(root, detail=True)
        sizes = {
            name.removeprefix(f"{root}/"): entry["size"]
            for name, entry in found.items()
            if entry["type"] == "file" and name != root and not name.endswith("/")
        }
        for name in sizes:
            if PurePosixPath(name).as_posix() != name or {"..", "/"} & set(PurePosixPath(name).parts):
                raise CorruptInputError(f"{self.address}: {name!r} is no path of a file; remove it there")
        return sizes

    def is_file(self) -> bool:
        """Whether there is a file at the address itself, and no folder."""
        with self._reaching("") as (files, path):
            return bool(files.isfile(path))

    def read(self, name: str) -> bytes:
        """Content of a small file.

        Raises:
            MissingFileError: It is not there.
            StorageError: It cannot be reached.
        """
        with self._reaching(name) as (files, path):
            return bytes(files.cat_file(path))

    def write(self, name: str, content: bytes) -> None:
        """Puts a small file there."""
        with self._reaching(name) as (files, path):
            files.pipe_file(path, content)

    def sha256(self, name: str) -> str | None:
        """Of a file, read from there; None when it is not there."""
        try:
            with self._reaching(name) as (files, path), files.open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except MissingFileError:
            return None

    def fetch(self, name: str, is_right: Callable[[Path], bool] | None = None) -> None:
        """Brings a file into the mirror, whole or not at all.

        Raises:
            CorruptInputError: It came, and `is_right` does not take it.
            MissingFileError: It is not there.
            StorageError: It cannot be reached.
        """
        with atomic_writer(self.local / name, is_shared=True) as file:
            with self._reaching(name) as (files, path):
                files.get_file(path, file.name)
            if is_right and not is_right(Path(file.name)):
                raise CorruptInputError(
                    f"{self.address}/{name}: not the file that it should be: its checksum or size differs; "
                    "upload it again (`dmlm-cli tokenize` with the same --out does)"
                )

    def send(self, name: str) -> None:
        """Uploads a file of the mirror, unless it is there already, and reads it again to compare.

        Raises:
            StorageError: It cannot be reached, or came out changed.
        """
        sha256 = sha256_file(self.local / name)
        if self.sha256(name) == sha256:
            return
        with self._reaching(name) as (files, path):
            files.put_file(str(self.local / name), path)
        if (found := self.sha256(name)) != sha256:
            raise StorageError(
                f"{self.address}/{name}: uploaded, but sha256 {found} came back and not {sha256}; "
                "run the same command again"
            )

    @contextmanager
    def _reaching(self, name: str) -> Iterator[tuple[Any, str]]:
        """File system and path in it; what the libraries raise becomes a StorageError."""
        scheme, _, place = f"{self.address}/{name}".rstrip("/").partition("://")
        files, failures = _open(scheme)
        try:
            yield files, place
        except FileNotFoundError as error:
            raise MissingFileError(f"{scheme}://{place}: not there ({error}); check the address") from error
        except failures as error:
            if getattr(error, "errno", None) in _OWN_DISK:
                raise
            raise StorageError(
                f"{scheme}://{place}: {type(error).__name__}: {error}; "
                "check address, rights and network, then run the same command again: it goes on"
            ) from error


def in_parallel(work: Callable[[str], None], names: Sequence[str], label: str) -> None:
    """Does `work` for each name, several at once; the first error ends the rest."""
    pool = ThreadPoolExecutor(NUM_STREAMS, thread_name_prefix="dmlm-transfer")
    try:
        for _ in track(pool.map(work, names), label, len(names), "files"):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Waits until no other process of this machine mirrors the same: ranks would all fetch everything."""
    directory.mkdir(parents=True, exist_ok=True)
    with directory.with_name(f"{directory.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _open(scheme: str) -> tuple[Any, tuple[type[Exception], ...]]:
    """File system of a scheme, and what it raises when something is wrong there.

    What the user has set for fsspec (its configuration files, FSSPEC_S3) comes before the settings here.
    """
    import fsspec

    options = {"use_listings_cache": False} | _options(scheme) | fsspec.config.conf.get(scheme, {})
    try:
        files = fsspec.filesystem(scheme, **options)
    except ImportError:
        raise MissingDependencyError(
            f"{scheme}:// needs a package: pip install {_PACKAGES[scheme]}"
        ) from None
    if scheme == "hf":
        from huggingface_hub.errors import HTTPError

        return files, (OSError, ValueError, NotImplementedError, HTTPError)
    from botocore.exceptions import BotoCoreError
    from s3fs.core import S3_RETRYABLE_ERRORS

    # botocore tries again until a reply begins; s3fs goes on once where one breaks off (its default is 5).
    files.retries = 2
    return files, (OSError, ValueError, BotoCoreError, *S3_RETRYABLE_ERRORS)


def _options(scheme: str) -> dict[str, Any]:
    retries = {"mode": "standard", "total_max_attempts": MAX_ATTEMPTS}
    timeouts = {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
    return {"config_kwargs": {**timeouts, "retries": retries}} if scheme == "s3" else {}
