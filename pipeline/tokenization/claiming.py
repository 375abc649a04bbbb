"""Whose the folder is that `tokenize` writes into: one recipe's, on this machine and at an address."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from dmlm.pipeline.errors import ConfigError, FingerprintMismatchError, ShardCorruptError
from dmlm.pipeline.remote.folder import MissingFileError, RemoteFolder, alone_in
from dmlm.pipeline.shards.card import CARD_NAME, CODEBOOK_NAME
from dmlm.pipeline.storage import encode_json, remove_left_over, write_json
from dmlm.pipeline.tokenization.shard_tasks import Recipe

RUN_NAME: Final = "run.json"
"""Recipe and whereabouts of the last run; not part of the data set."""
_LEFT_OVER: Final = re.compile(r".+\.(tar|parquet|json|jsonl)(\.[0-9a-f]{8})?\.tmp")
"""Of files that dmlm writes there; others may be somebody's."""


def claim_folder(
    directory: Path, recipe: Recipe, whereabouts: Mapping[str, str], *, is_alone: bool = True
) -> None:
    """Makes `directory` this recipe's, or finds that it is already.

    Args:
        directory: Where the data set is to be.
        recipe: What it is made with.
        whereabouts: Of corpus and codebook, for `run.json`.
        is_alone: Whether no other share works on the data set: then what a killed run left is removed.

    Raises:
        ConfigError: The folder holds something else.
        FingerprintMismatchError: It holds a data set of another recipe; the message says what differs.
    """
    claimed = _read_recipe(directory)
    if claimed is None:
        _check_empty(directory)
    else:
        _check_same_recipe(str(directory), claimed, recipe)
    if is_alone:
        ours = filter(lambda path: _LEFT_OVER.fullmatch(path.name), directory.glob("*.tmp"))
        for path in [*ours, *directory.glob(f"{CODEBOOK_NAME}/**/*.tmp")]:
            remove_left_over(path)
    write_json(directory / RUN_NAME, {"recipe": recipe, **whereabouts}, is_shared=True)


def claim_remote(remote: RemoteFolder, recipe: Recipe) -> None:
    """Makes the folder at an address this recipe's, as `claim_folder` does, and then its mirror.

    No whereabouts are uploaded.
    """
    try:
        _check_same_recipe(remote.address, _parse_recipe(remote.read(RUN_NAME), remote.address), recipe)
    except MissingFileError:
        if remote.list_files().keys() - {RUN_NAME}:  # another share may have written it since
            raise ConfigError(
                f"{remote.address} is not empty and has no {RUN_NAME} of `tokenize`; choose another --out"
            ) from None
        remote.write(RUN_NAME, encode_json({"recipe": recipe}))
    with alone_in(remote.local):
        _claim_mirror(remote.local, recipe)


def _claim_mirror(directory: Path, recipe: Recipe) -> None:
    """Never refuses: what is at the address was looked at, and the mirror may be what was there before."""
    try:
        claimed = _read_recipe(directory)
    except ShardCorruptError:
        claimed = {}
    if claimed is not None and not list(differences_of(claimed, recipe)):
        return
    (directory / CARD_NAME).unlink(missing_ok=True)  # of one that was only read; fetched again if it is there
    write_json(directory / RUN_NAME, {"recipe": recipe}, is_shared=True)


def _read_recipe(directory: Path) -> Recipe | None:
    try:
        content = (directory / RUN_NAME).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _parse_recipe(content, str(directory))


def _parse_recipe(content: bytes, where: str) -> Recipe:
    try:
        return dict(json.loads(content)["recipe"])
    except (ValueError, KeyError, TypeError) as error:
        raise ShardCorruptError(
            f"{where}/{RUN_NAME}: damaged ({error}); delete the folder {where}"
        ) from error


def _check_same_recipe(where: str, claimed: Recipe, recipe: Recipe) -> None:
    if differences := list(differences_of(claimed, recipe)):
        raise FingerprintMismatchError(
            f"{where} holds a data set of other settings: {'; '.join(differences[:4])}; "
            "choose another --out or delete the folder"
        )


def _check_empty(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"{directory} is a file; --out must be a folder")
    # Another task of a job array may have claimed it just now.
    if directory.is_dir() and any(
        path.suffix != ".tmp" and path.name != RUN_NAME for path in directory.iterdir()
    ):
        raise ConfigError(
            f"{directory} is not empty and has no {RUN_NAME} of `tokenize`; choose another --out"
        )


def differences_of(there: object, here: object, where: str = "") -> Iterator[str]:
    """Yields what differs between two json values, key by key."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for name in sorted(there.keys() | here.keys()):
            yield from differences_of(there.get(name), here.get(name), f"{where}.{name}".lstrip("."))
    elif there != here:
        yield f"{where} is {there} there, {here} now"
