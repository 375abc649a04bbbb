"""Hashing the shards of a run in the background, each once per machine.

Training begins at once: what is read is checked in its structure (`TokenTable`), and a shard whose bytes are
not those of its card stops the run as soon as its turn has come. What was hashed is remembered in the run's
folder, so that a resumed run hashes only what has changed since.
"""

import json
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

from dmlm.pipeline.errors import ShardCorruptError
from dmlm.pipeline.storage import sha256_file, write_json
from dmlm.trainer.data.dataset import ShardFile

MEMORY_NAME: Final = "hashed_shards.json"
SAVE_SECONDS: Final = 60.0
"""Between two times that what was hashed is written: with 300,000 shards that takes a second."""


class ShardHasher:
    """Compares shards with their cards in a thread."""

    def __init__(self, files: Sequence[ShardFile], run_dir: Path) -> None:
        """Starts to hash what `run_dir` does not remember."""
        self._memory_path = run_dir / MEMORY_NAME
        self._known = _load_memory(self._memory_path)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="dmlm-hash")
        unknown = [file for file in files if _describe(file) not in self._known]
        self._waiting: deque[Future[str]] = deque(self._thread.submit(_hash, file) for file in unknown)
        self._is_saved, self._next_save = True, 0.0

    def check(self) -> None:
        """Looks at what has been hashed since the last call; never waits.

        Raises:
            ShardCorruptError: The bytes of a shard are not those that its card vouches for.
        """
        while self._waiting and self._waiting[0].done():
            self._known.add(self._waiting.popleft().result())
            self._is_saved = False
        if time.monotonic() >= self._next_save:
            self._save()

    def close(self) -> None:
        """Ends the thread behind the shard that it is at; the rest is for the next run."""
        self._thread.shutdown(cancel_futures=True)
        self._save()

    def _save(self) -> None:
        if not self._is_saved:
            write_json(self._memory_path, sorted(self._known), is_shared=True)
            self._is_saved, self._next_save = True, time.monotonic() + SAVE_SECONDS


def _hash(file: ShardFile) -> str:
    description = _describe(file)
    try:
        found = sha256_file(file.path)
    except OSError as error:
        raise ShardCorruptError(f"{file.path.name}: cannot be read: {error}") from error
    if found != file.sha256:
        raise ShardCorruptError(
            f"{file.path.name}: sha256 mismatch (expected {file.sha256[:12]}…, got {found[:12]}…); "
            "see `dmlm-cli verify`, then rerun `dmlm-cli tokenize`"
        )
    return description


def _describe(file: ShardFile) -> str:
    """What a file was when it was hashed: another file, or another time of writing, is another thing."""
    status = file.path.stat()
    return f"{file.sha256} {status.st_size} {status.st_mtime_ns}"


def _load_memory(path: Path) -> set[str]:
    try:
        return set(map(str, json.loads(path.read_bytes())))
    except (OSError, ValueError, TypeError):  # then everything is hashed again
        return set()
