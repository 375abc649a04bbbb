"""The folder that `tokenize` writes into: whose it is, what is finished in it, and how it is published."""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import dmlm
from dmlm.pipeline.errors import ConfigError, FingerprintMismatchError, ShardCorruptError
from dmlm.pipeline.remote.datasets import fetch_unfinished
from dmlm.pipeline.remote.folder import MissingFileError, RemoteFolder
from dmlm.pipeline.samples import Modality, UnitInventory
from dmlm.pipeline.shards import (
    CODEBOOK_NAME,
    DatasetCard,
    DatasetTotals,
    FinishedShard,
    finished_shard,
    load_dataset_card,
    write_dataset_card,
)
from dmlm.pipeline.shards.card import CARD_NAME, LEDGER_NAME, encode_ledger
from dmlm.pipeline.storage import encode_json, has_sha256, sha256_file, write_bytes, write_json
from dmlm.pipeline.tokenization.quarantined_files import has_changed_files
from dmlm.pipeline.tokenization.report import REPORT_NAME
from dmlm.pipeline.tokenization.shard_tasks import Recipe, ShardTask, task_sha256
from dmlm.pipeline.tokenizers.registry import CARD, UNITS, read_card
from dmlm.pipeline.vocabulary import Vocabulary

RUN_NAME: Final = "run.json"
"""Recipe and whereabouts of the last run; not part of the data set."""

_SHARD_FILE = re.compile(r".+-\d{6}\.(tar|parquet)")
_PACKAGES = ("torch", "numpy", "transformers", "openai-whisper", "pyarrow")


def claim_folder(
    directory: Path, recipe: Recipe, whereabouts: Mapping[str, str], *, is_alone: bool = True
) -> None:
    """Makes `directory` this recipe's, or finds that it is already.

    Args:
        directory: Where the data set is to be.
        recipe: What it is made with.
        whereabouts: Of corpus and codebook, for `run.json`.
        is_alone: Whether nobody else writes into the folder: then what a killed run left is removed.

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
        for left_over in [*directory.glob("*.tmp"), *directory.glob(f"{CODEBOOK_NAME}/**/*.tmp")]:
            left_over.unlink()
    write_json(directory / RUN_NAME, {"recipe": recipe, **whereabouts}, is_shared=True)


def claim_remote(remote: RemoteFolder, recipe: Recipe) -> None:
    """Makes the folder at an address this recipe's, as `claim_folder` does; no whereabouts are uploaded."""
    try:
        _check_same_recipe(remote.address, _parse_recipe(remote.read(RUN_NAME), remote.address), recipe)
    except MissingFileError:
        if remote.list_files().keys() - {RUN_NAME}:  # another share may have written it since
            raise ConfigError(
                f"{remote.address} is not empty and has no {RUN_NAME} of `tokenize`; choose another --out"
            ) from None
        remote.write(RUN_NAME, encode_json({"recipe": recipe}))


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
    if differences := list(_differences(claimed, recipe)):
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


def _differences(there: object, here: object, where: str = "") -> Iterator[str]:
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for name in sorted(there.keys() | here.keys()):
            yield from _differences(there.get(name), here.get(name), f"{where}.{name}".lstrip("."))
    elif there != here:
        yield f"{where} is {there} there, {here} now"


def _load_published(
    directory: Path, task_sha256s: Sequence[str], remote: RemoteFolder | None
) -> DatasetCard | None:
    """Card of the finished data set in `directory`, None when it is not finished.

    Raises:
        FingerprintMismatchError: It was made from other items than these tasks.
    """
    try:
        card = load_dataset_card(directory)
    except ShardCorruptError:
        return None
    if [shard.task_sha256 for shard in card.shards] != task_sha256s:
        places = f" at {remote.address} and in {directory}" if remote else ""
        raise FingerprintMismatchError(
            f"{directory} holds a finished data set, but the corpus has changed since; choose another --out, "
            f"or delete {CARD_NAME}{places} to do the changed shards again"
        )
    return card


def find_finished(
    directory: Path,
    tasks: Mapping[str, ShardTask],
    planned: Sequence[str],
    remote: RemoteFolder | None = None,
) -> tuple[DatasetCard | None, dict[str, FinishedShard]]:
    """Card of the data set if it is finished, and the shards of `tasks` that are whole, by the same sha256.

    A shard with a quarantined file that has been repaired since is not finished. Nor is one with another
    index than the card names for its tar, or whose ledger is not its own: `index` puts several into one.

    Args:
        directory: Of the data set; damaged indexes are removed from it.
        tasks: To look for.
        planned: sha256 of all tasks of the plan.
        remote: What it has of the shards is fetched first.

    Raises:
        FingerprintMismatchError: The folder holds a finished data set of other items.
    """
    if remote is not None:
        fetch_unfinished(remote, [task.name for task in tasks.values()])
    card = _load_published(directory, planned, remote)
    if card is not None:
        _remove_damaged_indexes(directory, card)
    shards = ((sha256, finished_shard(directory, task.name, sha256)) for sha256, task in tasks.items())
    return card, {
        sha256: shard
        for sha256, shard in shards
        if shard is not None
        and shard.footer.num_in == len(tasks[sha256].items)
        and not has_changed_files(tasks[sha256], shard.footer.ledger)
    }


def _remove_damaged_indexes(directory: Path, card: DatasetCard) -> None:
    """Of all shards: once the card is withdrawn, nothing tells that such an index is not what was written."""
    for shard in card.shards:
        tar, index = (directory / f"{shard.name}.{suffix}" for suffix in ("tar", "parquet"))
        # One that was made again has another tar, too; or another ledger alone, and is made once more.
        if not has_sha256(index, shard.index_sha256) and has_sha256(tar, shard.tar_sha256):
            index.unlink(missing_ok=True)


def check_same_items(directory: Path, card: DatasetCard, recipe: Recipe, tasks: Iterable[ShardTask]) -> None:
    """Checks that the data set in `directory` was made from just these tasks, whatever its tokenizers.

    Raises:
        FingerprintMismatchError: It was made with other settings, or from other items or files.
    """
    if differences := list(_differences(card.settings, recipe["settings"])):
        raise FingerprintMismatchError(
            f"{directory} holds a data set of other settings: {'; '.join(differences[:4])}"
        )
    theirs = {**recipe, "text_rule": card.text_rule, "fingerprints": card.fingerprints}
    if [shard.task_sha256 for shard in card.shards] != [task_sha256(task, theirs) for task in tasks]:
        raise FingerprintMismatchError(
            f"{directory} was made from other items or files than --root holds; give the root it was made of"
        )


def files_are_whole(directory: Path, card: DatasetCard) -> bool:
    """Whether ledger and codebook are as the card says, and the indexes too."""
    files = {**card.files, **{f"{shard.name}.parquet": shard.index_sha256 for shard in card.shards}}
    return all(has_sha256(directory / name, sha256) for name, sha256 in files.items())


def withdraw(directory: Path) -> None:
    """From now on the folder is no data set, until it is published again."""
    for name in (CARD_NAME, REPORT_NAME):
        (directory / name).unlink(missing_ok=True)


def publish(
    directory: Path,
    name: str,
    shards: Sequence[FinishedShard],
    recipe: Recipe,
    vocabulary: Vocabulary,
    licence: str,
) -> DatasetCard:
    """Writes the ledger and, last of all, the card; removes shards that belong to no task."""
    records, footers = tuple(shard.record for shard in shards), [shard.footer for shard in shards]
    _remove_strays(directory, name, {record.name for record in records})
    write_bytes(directory / LEDGER_NAME, encode_ledger(footers))
    files = [directory / LEDGER_NAME, *sorted((directory / CODEBOOK_NAME).rglob("*"))]
    card = DatasetCard(
        name=name,
        shards=records,
        totals=DatasetTotals.of(records, footers),
        fingerprints={Modality(modality): mark for modality, mark in recipe["fingerprints"].items()},
        text_rule=recipe["text_rule"],
        vocabulary=vocabulary,
        versions=_versions(),
        settings=recipe["settings"],
        licence=licence,
        files={path.relative_to(directory).as_posix(): sha256_file(path) for path in files if path.is_file()},
    )
    write_dataset_card(directory, card)
    return card


def _remove_strays(directory: Path, name: str, kept: set[str]) -> None:
    """Left by an unfinished run of a corpus that has lost items since."""
    for path in directory.glob(f"{name}-*"):
        if _SHARD_FILE.fullmatch(path.name) and path.stem not in kept:
            path.unlink()


def copy_codebook(
    source: Path, directory: Path, modalities: Collection[Modality], units: UnitInventory | None = None
) -> None:
    """Copies the parts of a codebook folder that a data set uses; the copy is a codebook folder too.

    For speech that came as units it names them where the codebook would be.
    """
    card = read_card(source)
    used = {name: sha256 for name, sha256 in card["files"].items() if Path(name).parts[0] in modalities}
    for name in used:
        write_bytes(directory / name, (source / name).read_bytes())
    if units:
        path = directory / Modality.SPEECH / UNITS
        write_json(path, units.fingerprint)
        used[path.relative_to(directory).as_posix()] = sha256_file(path)
    write_json(directory / CARD, {**card, "files": used})


def _versions() -> dict[str, str]:
    installed = {"dmlm": dmlm.__version__}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed
