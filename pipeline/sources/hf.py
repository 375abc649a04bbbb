"""Hugging Face data sets: hub:ORG/NAME, see `hub`, or a local folder of parquet, arrow or audio files.

Rows are streamed. `datasets` never decodes: recordings and images that lie inside its files are copied as
they are into its cache, with a list of the `jsonl` source beside them, and read like any file from then on.
Only a name with `hub:` is looked up in the network.
"""

import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, cast

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import SourceItem
from dmlm.pipeline.sources import hub, jsonl
from dmlm.pipeline.sources.hub import HubName
from dmlm.pipeline.sources.interface import SourceOptions
from dmlm.pipeline.sources.lines import Line, iter_lines, read_line, stem_to_key
from dmlm.pipeline.storage import atomic_writer, sha256_json, write_json
from dmlm.pipeline.suggestions import did_you_mean

EXPECTED = "*.parquet, *.arrow or a folder of save_to_disk, or --root hub:ORG/NAME,"
NAME = "hf"

_HUB = "hf://datasets/"
_SAVED = ("dataset_dict.json", "state.json")
_PATTERNS = ("**/*.parquet", "**/*.arrow", "**/metadata.csv", "**/metadata.jsonl")
_MEDIA = {"audio", "image"}
_TEXTS = {"string", "large_string", "string_view"}
_BYTES = {"binary", "large_binary", "binary_view"}
_NAMES = {"key", "speaker"}
"""Fields that may be numbers in a data set."""
_USUAL_NAMES = {
    "text": ("text", "sentence", "transcription", "transcript", "caption", "normalized_text"),
    "language": ("language", "locale"),
    "translation": ("translation",),
    "speaker": ("speaker", "speaker_id", "client_id"),
}
_FIELDS = ("key", "audio", "image", *_USUAL_NAMES, "translation_language")
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}")


def is_present(corpus_dir: Path) -> bool:
    """Whether it is the name of a hub, or a folder that `datasets` knows to read."""
    return HubName.of(corpus_dir) is not None or any(any(corpus_dir.glob(pattern)) for pattern in _PATTERNS)


def find_splits(corpus_dir: Path, options: SourceOptions) -> tuple[str, ...]:
    """Splits of the data set, sorted.

    Raises:
        ConfigError: `datasets` cannot open it.
    """
    if hub.commit_of(corpus_dir) is None:
        return tuple(sorted(_open(corpus_dir)))
    list_path = _cache_dir(corpus_dir, options) / "splits.json"
    if not list_path.is_file():  # else nothing has to be asked: a commit never changes
        write_json(list_path, sorted(_open(corpus_dir)), is_shared=True)
    return tuple(json.loads(list_path.read_bytes()))


def iter_split(corpus_dir: Path, split: str, options: SourceOptions) -> Iterator[SourceItem]:
    """Yields the rows of a split in their order.

    Raises:
        ConfigError: A column is not there, or there is none to use.
    """
    list_path = _cache_dir(corpus_dir, options) / f"{stem_to_key(split)}.jsonl"
    lines = (
        iter_lines(list_path) if list_path.is_file() else _copy_rows(corpus_dir, split, options, list_path)
    )
    # What is relative in a row of a local folder is so to the folder, not to the list.
    place = list_path if HubName.of(corpus_dir) else corpus_dir / list_path.name
    for number, line in enumerate(lines, start=1):
        row = replace(line, where=f"row {number} of {split}")
        yield replace(jsonl.parse_line(place, row), source=NAME)


def _copy_rows(corpus_dir: Path, split: str, options: SourceOptions, list_path: Path) -> Iterator[Line]:
    """Yields the lines of the list while it is written; it stays only if the rows were read to the end."""
    rows = _open(corpus_dir)[split]
    if rows.features is None:  # csv and json, whose first rows tell them
        rows = rows._resolve_features()
    columns = _choose_columns(rows.features, options)
    own_place = _own_place(corpus_dir)
    files_dir = list_path.with_suffix("")
    files_dir.mkdir(parents=True, exist_ok=True)
    with atomic_writer(list_path, is_shared=True) as file:
        # As tables of one row: rows of Python would be encoded first, which needs a package for recordings.
        for number, table in enumerate(rows.decode(False).with_format("arrow"), start=1):
            (row,) = table.to_pylist()
            values = {field: row[column] for field, column in columns.items() if row[column] is not None}
            record = _to_record(values, split, number, files_dir, own_place)
            if options.language:
                record["language"] = options.language
            raw = f"{json.dumps(record, ensure_ascii=False)}\n".encode(errors="replace")
            file.write(raw)
            yield read_line(list_path, number, raw)


def _own_place(corpus_dir: Path) -> str:
    """How the addresses of the data set's own files begin; no other may be reached."""
    name = HubName.of(corpus_dir)
    return f"{_HUB}{name.repository}@{name.revision}/" if name else f"{corpus_dir.resolve()}/"


def _to_record(
    values: Mapping[str, Any], split: str, number: int, files_dir: Path, own_place: str
) -> dict[str, Any]:
    """Line of the list for a row; its recording or image is a file from then on."""
    key = f"{stem_to_key(split)}-{number:08d}"
    record = {"key": key, "split": split, **values}
    for field in _MEDIA & values.keys():
        record[field] = _keep_file(values[field], files_dir / f"{number:08d}", own_place)
    if "image" in record:
        record["image_id"] = key  # one row, one image
    for field in _NAMES & values.keys():
        record[field] = str(values[field])
    return record


def _keep_file(media: Any, stem: Path, own_place: str) -> str:
    """Path of a recording or an image, which is copied unless it is a file of its own on this machine.

    An address that is not the data set's own, or where there is nothing, stays: it is no file, as any other.
    What the hub calls a file of this machine is none, either: nobody there may choose what is read here; nor
    is what a relative path of a local folder finds outside of that.
    """
    if isinstance(media, str):
        media = {"path": media}
    elif isinstance(media, bytes):
        media = {"bytes": media}
    name, content = media.get("path") or "", media.get("bytes")
    if content is None and "://" not in name:
        if own_place.startswith(_HUB):
            return Path(name).name
        is_own = Path(name).is_absolute() or os.path.normpath(f"{own_place}{name}").startswith(own_place)
        return name if is_own else f"outside:{name}"
    if content is None and not _is_own(name, own_place):
        return name
    suffix = Path(name.partition("::")[0]).suffix
    path = stem.with_suffix(suffix if _SUFFIX.fullmatch(suffix) else "")
    try:
        source = _open_file(name) if content is None else io.BytesIO(content)
    except (FileNotFoundError, LookupError):  # the latter: a zip has no such name
        return name
    with source, atomic_writer(path, is_shared=True) as file:  # another share may be reading it
        shutil.copyfileobj(source, file)
    return str(path)


def _is_own(address: str, own_place: str) -> bool:
    """Whether it is a file of the data set, or lies in a zip that is one."""
    *members, file = address.split("::")
    return (
        file.startswith(own_place)
        and ".." not in file.split("/")
        and len(members) <= 1
        and all(member.startswith("zip://") for member in members)
    )


def _open_file(address: str) -> IO[bytes]:
    from datasets.utils.file_utils import xopen

    return cast(IO[bytes], xopen(address, "rb"))


def _choose_columns(features: Mapping[str, Any], options: SourceOptions) -> dict[str, str]:
    """Columns by field: as the user says, else by type and usual names."""
    chosen = _parse_columns(options.columns, features) if options.columns else {}
    for column, feature in features.items():
        kind = type(feature).__name__.lower()
        if kind in _MEDIA:
            chosen.setdefault(kind, column)
    for field, names in _USUAL_NAMES.items():
        usual = [name for name in names if getattr(features.get(name), "dtype", None) in _TEXTS]
        if usual:
            chosen.setdefault(field, usual[0])
    for field, column in chosen.items():
        _check_type(field, column, features[column])
    if not chosen.keys() & {*_MEDIA, "text"}:
        raise ConfigError(
            f"{NAME}: no audio, image or text among the columns {', '.join(features)}; give --columns"
        )
    return chosen


def _check_type(field: str, column: str, feature: Any) -> None:
    if field in _NAMES or type(feature).__name__.lower() == field:
        return
    kind = getattr(feature, "dtype", feature)
    wanted = {*_TEXTS, *_BYTES, "null"} if field in _MEDIA else {*_TEXTS, "null"}
    is_file = field in _MEDIA and isinstance(feature, dict) and bool({"bytes", "path"} & feature.keys())
    if not is_file and str(kind) not in wanted:
        raise ConfigError(
            f"{NAME}: column {column!r} is {kind}, but {field} must be "
            f"{f'{field}, bytes or a path' if field in _MEDIA else 'text'}; name another by --columns"
        )


def _parse_columns(text: str, features: Mapping[str, Any]) -> dict[str, str]:
    chosen = {}
    for pair in text.split(","):
        field, _, column = pair.partition("=")
        if field not in _FIELDS:
            raise ConfigError(
                f"--columns {pair}: no field {field!r}{did_you_mean(field, _FIELDS)}; "
                f"there are {', '.join(_FIELDS)}"
            )
        if column not in features:
            raise ConfigError(f"--columns {pair}: no column {column!r}; there are {', '.join(features)}")
        chosen[field] = column
    return chosen


def _open(corpus_dir: Path) -> Mapping[str, Any]:
    """Streams of rows by split."""
    import datasets

    try:
        if name := HubName.of(corpus_dir):
            return dict(
                datasets.load_dataset(name.repository, name.config, revision=name.revision, streaming=True)
            )
        if any((corpus_dir / name).is_file() for name in _SAVED):
            saved = datasets.load_from_disk(str(corpus_dir))
            parts = saved if isinstance(saved, Mapping) else {str(saved.split or "train"): saved}
            return {split: rows.to_iterable_dataset() for split, rows in parts.items()}
        return dict(datasets.load_dataset(str(corpus_dir), streaming=True))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:400]
        if "Config name is missing" in reason:
            local = "a local folder cannot name one; give the folder of its files"
            reason = f"{reason}; {'name one: hub:ORG/NAME:CONFIG' if name else local}"
        raise ConfigError(f"{NAME}: {corpus_dir} cannot be opened by datasets: {reason}") from error


def _cache_dir(corpus_dir: Path, options: SourceOptions) -> Path:
    """Folder of one state of a data set: another commit, and a local one that has changed, have another."""
    identity: list[Any] = [str(corpus_dir), options.columns, options.language]
    if HubName.of(corpus_dir) is None:
        files = sorted(path for path in corpus_dir.rglob("*") if path.is_file())
        stats = [(str(path.resolve()), path.stat()) for path in files]
        identity += [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    return hub.cache_dir() / sha256_json(identity)[:16]
