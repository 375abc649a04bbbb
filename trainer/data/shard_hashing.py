"""Hashing the shards of a run in the background, each once per machine.

Training begins at once: what is read is checked in its structure (`TokenTable`), and a shard whose bytes are
not those of its card stops the run as soon as its turn has come. What was hashed is remembered in the run's
folder, so that a resumed run hashes only what has changed since.
"""

import json
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Final

from dmlm.pipeline.errors import ShardCorruptError
from dmlm.pipeline.storage import sha256_file, write_json
from dmlm.trainer.data.dataset import ShardFile

MEMORY_NAME: Final = "hashed_shards.json"
SAVE_SECONDS: Final = 60.0
"""Between two times that what was hashed is written: with 300,000 shards that takes a second."""
_CLOSE_SECONDS: Final = 10.0


class ShardHasher:
    """Compares shards with their cards in a thread."""

    def __init__(self, files: Sequence[ShardFile], run_dir: Path) -> None:
        """Starts to hash what `run_dir` does not remember."""
        self._memory_path = run_dir / MEMORY_NAME
        self._known = _load_memory(self._memory_path)
        self._is_saved, self._next_save = True, 0.0
        self._is_closed = Event()
        self._hashed: SimpleQueue[Future[str]] = SimpleQueue()
        # A daemon: a process must be able to end while its disk does not answer.
        self._thread = Thread(target=self._hash_all, args=(files,), name="dmlm-hash", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Looks at what has been hashed since the last call; never waits.

        Raises:
            ShardCorruptError: The bytes of a shard are not those that its card vouches for.
        """
        self._take_in()
        if time.monotonic() >= self._next_save:
            self._save()

    def wait(self, patience_seconds: float) -> bool:
        """Waits for the rest, at most so long; whether all are hashed. Raises as `check` does."""
        self._thread.join(patience_seconds)
        is_done = not self._thread.is_alive()
        self.check()
        return is_done

    def close(self) -> None:
        """Ends the thread behind the shard that it is at, or leaves it there if that takes too long.

        The rest is for the next run, which also finds a damaged shard again that `check` has not seen.
        """
        self._is_closed.set()
        self._thread.join(_CLOSE_SECONDS)
        with suppress(ShardCorruptError):
            self._take_in()
        self._save()

    def _take_in(self) -> None:
        with suppress(Empty):
            while True:
                description = self._hashed.get_nowait().result()
                self._is_saved &= description in self._known
                self._known.add(description)

    def _save(self) -> None:
        if not self._is_saved:
            write_json(self._memory_path, sorted(self._known), is_shared=True)
            self._is_saved, self._next_save = True, time.monotonic() + SAVE_SECONDS

    def _hash_all(self, files: Sequence[ShardFile]) -> None:
        for file in files:
            if self._is_closed.is_set():
                return
            outcome: Future[str] = Future()
            try:
                outcome.set_result(_hash(file, self._known))
            except BaseException as error:  # whatever it is, `check` raises it
                outcome.set_exception(error)
                self._is_closed.set()
            self._hashed.put(outcome)


def _hash(file: ShardFile, known: Collection[str]) -> str:
    """What is to be remembered of a whole shard; one that is known is not hashed again."""
    try:
        description = _describe(file)
        found = file.sha256 if description in known else sha256_file(file.path)
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
