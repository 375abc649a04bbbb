"""Names of data sets at the Hugging Face hub, hub:ORG/NAME[:CONFIG][@REVISION], and the commits they mean.

The hub is asked once when a source is opened. What it said stays in the cache, beside the copies, so that a
copy can be found, and its commit named, where the hub cannot be asked.
"""

import json
import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.storage import sha256_json, write_json

HUB: Final = "hub:"
ASK_SECONDS: Final = 10

_COMMIT = re.compile(r"[0-9a-f]{40}")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubName:
    """A data set at the hub; as a path it stands where others have a folder."""

    repository: str
    config: str | None
    revision: str | None
    """Branch, tag or commit; None: the newest."""

    @classmethod
    def of(cls, path: Path) -> Self | None:
        """The data set that `path` names; None where it is a folder."""
        if not (text := str(path)).startswith(HUB):
            return None
        name, _, revision = text.removeprefix(HUB).partition("@")
        repository, _, config = name.partition(":")
        return cls(repository=repository, config=config or None, revision=revision or None)

    @property
    def commit(self) -> str | None:
        """Its revision where that is a commit, whose files never change."""
        return self.revision if self.revision and _COMMIT.fullmatch(self.revision) else None

    @property
    def path(self) -> Path:
        """Inverse of `of`."""
        config = f":{self.config}" if self.config else ""
        revision = f"@{self.revision}" if self.revision else ""
        return Path(f"{HUB}{self.repository}{config}{revision}")


def pinned(path: Path) -> Path:
    """The name at the commit that its revision means now; as it is where it is a folder, or nobody knows.

    Raises:
        ConfigError: The hub has no such data set or revision.
    """
    name = HubName.of(path)
    if name is None or name.commit:
        return path
    note_path = cache_dir() / "hub" / f"{sha256_json([name.repository, name.revision])[:16]}.json"
    try:
        commit = _ask(name)
    except OSError as error:
        if not note_path.is_file():
            return path  # whoever opens it says what is wrong
        commit = json.loads(note_path.read_bytes())["commit"]
        _logger.warning(
            "%s: the hub cannot be asked (%s); taking what it was at commit %s", path, error, commit
        )
    else:
        write_json(note_path, {"commit": commit}, is_shared=True)
    return replace(name, revision=commit).path


def commit_of(path: Path) -> str | None:
    """Commit of a pinned name; None where there is none."""
    name = HubName.of(path)
    return name.commit if name else None


def cache_dir() -> Path:
    """Folder of all copies."""
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE) / "dmlm"


def _ask(name: HubName) -> str:
    """Commit that the revision is; raises OSError where the hub does not answer."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HFValidationError,
        HTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        found = HfApi().dataset_info(name.repository, revision=name.revision, timeout=ASK_SECONDS)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{name.path}: the hub has no such data set for you: {reason}") from error
    except (HTTPError, ValueError) as error:  # a ValueError: what came is no answer of a hub
        raise OSError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    return str(found.sha)
