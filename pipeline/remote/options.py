"""Options for folders: which may be at an address, the only way by which one comes in, and which not."""

import os
import re
from pathlib import Path

import click

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.remote.folder import RemoteFolder
from dmlm.pipeline.storage import user_cache_dir

_LIKE_AN_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def folder(text: str) -> Path | RemoteFolder:
    """A path, or the folder at an address; raises ConfigError for addresses that dmlm does not read."""
    return RemoteFolder.of(text, cache_dir()) if _LIKE_AN_ADDRESS.match(text) else Path(text)


def local_path(text: str) -> Path:
    """A path of this machine; raises ConfigError for an address, which would become a folder of that name."""
    if _LIKE_AN_ADDRESS.match(text):
        raise ConfigError(
            f"{text}: must be a path of this machine; only data sets (--shards except of index, "
            "--train-shards, --reuse), --root, and --out of tokenize may be addresses"
        )
    return Path(text)


def dataset_folder(text: str) -> Path:
    """Folder of a data set; one at an address is mirrored first, see `fetch_dataset`."""
    place = folder(text)
    if isinstance(place, Path):
        return place
    from dmlm.pipeline.remote.datasets import fetch_dataset

    return fetch_dataset(place)


def cache_dir() -> Path:
    """Where mirrors are: DMLM_CACHE, else `dmlm/remote` in the user's cache folder."""
    return Path(os.environ.get("DMLM_CACHE") or user_cache_dir() / "dmlm" / "remote").absolute()


shards_option = click.option(
    "--shards",
    "shard_dirs",
    type=dataset_folder,
    multiple=True,
    required=True,
    help="Data set of `tokenize`, folder or address; may be repeated.",
)
