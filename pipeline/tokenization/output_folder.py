"""The folder that `tokenize` writes into: what is finished in it, and how it is published."""

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import dmlm
from dmlm.pipeline.errors import FingerprintMismatchError, ShardCorruptError
from dmlm.pipeline.remote.datasets import fetch_unfinished
from dmlm.pipeline.remote.folder import RemoteFolder
from dmlm.pipeline.samples import Modality, UnitInventory
from dmlm.pipeline.shards import (
    DatasetCard,
    DatasetTotals,
    FinishedShard,
    ShardRecord,
    finished_shard,
    load_dataset_card,
    write_dataset_card,
)
from dmlm.pipeline.shards.card import CARD_NAME, LEDGER_NAME, encode_ledger
from dmlm.pipeline.shards.index import read_index
from dmlm.pipeline.storage import has_sha256, sha256_file, write_bytes, write_json
from dmlm.pipeline.tokenization.claiming import differences_of
from dmlm.pipeline.tokenization.quarantined_files import has_changed_files
from dmlm.pipeline.tokenization.report import REPORT_NAME
from dmlm.pipeline.tokenization.shard_tasks import Recipe, ShardTask, task_sha256
from dmlm.pipeline.tokenizers.registry import CARD, UNITS, read_card
from dmlm.pipeline.vocabulary import Vocabulary

_logger = logging.getLogger(__name__)
_SHARD_FILE = re.compile(r".+-\d{6}\.(tar|parquet)")
_PACKAGES = ("torch", "numpy", "transformers", "openai-whisper", "pyarrow")


def _load_published(
    directory: Path, planned: Mapping[str, ShardTask], remote: RemoteFolder | None
) -> DatasetCard | None:
    """Card of the finished data set in `directory`, None when it is not finished.

    Raises:
        FingerprintMismatchError: It was made from other items than these tasks.
    """
    try:
        card = load_dataset_card(directory)
    except ShardCorruptError:
        return None
    changed = [
        (record, task, sha256)
        for record, (sha256, task) in zip(card.shards, planned.items(), strict=False)
        if record.task_sha256 != sha256
    ]
    if len(card.shards) != len(planned) or not all(_is_repair(directory, *change) for change in changed):
        places = f" at {remote.address} and in {directory}" if remote else ""
        raise FingerprintMismatchError(
            f"{directory} holds a finished data set, but the corpus has changed since; choose another --out, "
            f"or delete {CARD_NAME}{places} to do the changed shards again"
        )
    for record, _, _ in changed:
        _logger.warning("%s: made again, as it had quarantined files and has changed", record.name)
    return card


def _is_repair(directory: Path, record: ShardRecord, task: ShardTask, sha256: str) -> bool:
    """Whether `task` differs from a finished shard as it does when quarantined items of it were repaired."""
    try:
        index, footer = read_index(directory / f"{record.name}.parquet", columns=["key"])
    except ShardCorruptError:
        return False
    if footer.task_sha256 == sha256:  # made again already, by a run that did not publish
        return True
    keys = [*index["key"].to_pylist(), *(entry.key for entry in footer.ledger)]
    has_bad = any(entry.outcome == "quarantined" for entry in footer.ledger)
    return has_bad and sorted(keys) == sorted(item.key for item in task.items)


def find_finished(
    directory: Path,
    tasks: Mapping[str, ShardTask],
    planned: Mapping[str, ShardTask],
    remote: RemoteFolder | None = None,
) -> tuple[DatasetCard | None, dict[str, FinishedShard]]:
    """Card of the data set if it is finished, and the shards of `tasks` that are whole, by the same sha256.

    A shard with an index that the card does not name for its tar is not finished; see also `find_shard`.

    Args:
        directory: Of the data set; damaged indexes are removed from it.
        tasks: To look for.
        planned: All tasks of the plan, by their sha256.
        remote: What it has of the shards is fetched first.

    Raises:
        FingerprintMismatchError: The folder holds a finished data set of other items.
    """
    if remote is not None:
        fetch_unfinished(remote, [task.name for task in tasks.values()])
    card = _load_published(directory, planned, remote)
    if card is not None:
        _remove_damaged_indexes(directory, card)
    shards = {sha256: find_shard(directory, task, sha256) for sha256, task in tasks.items()}
    return card, {sha256: shard for sha256, shard in shards.items() if shard is not None}


def find_shard(directory: Path, task: ShardTask, sha256: str) -> FinishedShard | None:
    """The shard of a task, when it is whole; None when it has to be written (again).

    One with a quarantined file that has been repaired since is not finished. Nor is one whose ledger is not
    its own: `index` puts several into one.
    """
    shard = finished_shard(directory, task.name, sha256)
    if (
        shard is None
        or shard.footer.num_in != len(task.items)
        or has_changed_files(task, shard.footer.ledger)
    ):
        return None
    return shard


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
    if differences := list(differences_of(card.settings, recipe["settings"])):
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
    codebook_files: Iterable[Path],
) -> DatasetCard:
    """Writes the ledger and, last of all, the card; removes shards that belong to no task."""
    records, footers = tuple(shard.record for shard in shards), [shard.footer for shard in shards]
    _remove_strays(directory, name, {record.name for record in records})
    write_bytes(directory / LEDGER_NAME, encode_ledger(footers))
    files = [directory / LEDGER_NAME, *sorted(codebook_files)]
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
        files={path.relative_to(directory).as_posix(): sha256_file(path) for path in files},
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
) -> list[Path]:
    """Copies the parts of a codebook folder that a data set uses; the copy is a codebook folder too.

    For speech that came as units it names them where the codebook would be. Returns what it wrote.
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
    return [directory / name for name in (CARD, *used)]


def _versions() -> dict[str, str]:
    installed = {"dmlm": dmlm.__version__}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed
