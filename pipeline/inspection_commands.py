"""`verify`, `index`, `inspect`: what is in shards and codebooks, before GPU days are spent on them."""

from pathlib import Path
from typing import Any

import click

from dmlm.pipeline.commands import (
    device_option,
    refuse_given,
    resolve_root,
    root_option,
    seed_option,
    split_option,
)
from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.remote.folder import RemoteFolder
from dmlm.pipeline.remote.options import dataset_folder, folder, local_path
from dmlm.pipeline.source_names import SOURCE_NAMES
from dmlm.pipeline.source_options import recording_options
from dmlm.pipeline.storage import check_writable, write_bytes, write_json

OF_SHARDS = {"shard_dir", "key", "out_path", "html_path"}
"""Parameters of `inspect` that have a meaning with --shards."""


@click.command("inspect", short_help="What is in a data set; or how good a speech codebook is.")
@click.option("--shards", "shard_dir", type=dataset_folder, help="Data set to look into.")
@click.option("--key", help="With --shards: sample to show.  [default: the first]")
@click.option(
    "--codebook",
    "codebook_dir",
    type=local_path,
    help="Folder of build-codebook, to be judged on held-out speech.",
)
@click.option("--source", type=click.Choice(SOURCE_NAMES), help="With --codebook: corpus to measure on.")
@root_option()
@split_option()
@recording_options
@click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Utterances to measure on."
)
@seed_option()
@device_option()
@click.option("--out", "out_path", type=local_path, help="Json of all that is found.")
@click.option("--html", "html_path", type=local_path, help="Page to look at.")
@click.pass_context
def inspect(
    context: click.Context,
    /,
    shard_dir: Path | None,
    key: str | None,
    codebook_dir: Path | None,
    source: str | None,
    out_path: Path | None,
    html_path: Path | None,
    **settings: Any,
) -> None:
    """Look into a data set: its card in short and its first sample, or all of the sample of one --key.

    Or judge a speech codebook: usage, perplexity, runs, errors, agreement of window modes, letters. Measured
    on utterances of the development splits, else of the test splits, unless --split names others.

    \b
    Example:
      dmlm-cli inspect --shards shards/librispeech
      dmlm-cli inspect --shards shards/coco --key 42-1 --html sample.html
      dmlm-cli inspect --codebook codebook --source librispeech --root /data \\
        --html codebook.html
    """
    for path in filter(None, (out_path, html_path)):
        check_writable(path)
    if shard_dir is not None and codebook_dir is None:
        refuse_given(context, {*context.params} - OF_SHARDS, "--codebook")
        found, page = _inspect_dataset(shard_dir, key, with_page=html_path is not None)
    elif codebook_dir is not None and shard_dir is None:
        refuse_given(context, {"key"}, "--shards")
        if source is None:
            raise ConfigError("--codebook is judged on speech: give --source")
        found, page = _inspect_codebook(codebook_dir, source, with_page=html_path is not None, **settings)
    else:
        raise ConfigError("give --shards, to look into a data set, or --codebook, to judge it; not both")
    if out_path:
        write_json(out_path, found)
    if html_path:
        write_bytes(html_path, page.encode())


def _inspect_dataset(directory: Path, key: str | None, *, with_page: bool) -> tuple[dict[str, Any], str]:
    from dmlm.pipeline.dataset_inspection import inspect_dataset
    from dmlm.pipeline.dataset_page import render_dataset

    inspection = inspect_dataset(directory, key)
    click.echo(inspection.table())
    return inspection.to_json(), render_dataset(inspection) if with_page else ""


def _inspect_codebook(
    directory: Path,
    source: str,
    *,
    root: Path | RemoteFolder | None,
    splits: tuple[str, ...],
    with_page: bool,
    **settings: Any,
) -> tuple[dict[str, Any], str]:
    from dmlm.pipeline.codebooks.inspection import InspectCodebookConfig, inspect_codebook
    from dmlm.pipeline.codebooks.page import render_inspection

    report = inspect_codebook(
        InspectCodebookConfig(
            codebook_dir=directory,
            source=source,
            root=resolve_root(root, source),
            splits=splits or None,
            **settings,
        )
    )
    click.echo(report.table())
    return report.to_json(), render_inspection(report) if with_page else ""


@click.command(short_help="Check shards: checksums, structure, counts, ranges, fingerprints.")
@click.option(
    "--shards",
    "folders",
    type=folder,
    multiple=True,
    required=True,
    help="Data set; folder or address.",
)
@click.option(
    "--reencode", "num_samples", type=click.IntRange(min=1), help="Also make N samples again from the corpus."
)
@root_option(" Only --reencode needs it.")
@seed_option()
@device_option()
@click.pass_context
def verify(
    context: click.Context,
    /,
    folders: tuple[Path | RemoteFolder, ...],
    num_samples: int | None,
    root: Path | RemoteFolder | None,
    **settings: Any,
) -> None:
    """Check every byte and every id of a data set against its card and index.

    \b
    Example:
      dmlm-cli verify --shards shards/librispeech
    """
    from dmlm.pipeline.shards import verify_dataset

    if num_samples is None:
        refuse_given(context, {"root", "seed", "device"}, "--reencode")
    for place in folders:
        directory = read_again(place) if isinstance(place, RemoteFolder) else place
        whole = verify_dataset(directory)
        click.echo(whole.summary())
        if num_samples is not None:
            from dmlm.pipeline.tokenization.reencoding import ReencodeConfig, reencode

            place = resolve_root(root, whole.name)
            again = reencode(
                ReencodeConfig(directory=directory, root=place, num_samples=num_samples, **settings)
            )
            click.echo(again.table())
            again.check()


def read_again(remote: RemoteFolder) -> Path:
    """Mirror of a data set, every byte of which comes from its address now."""
    from dmlm.pipeline.remote.datasets import fetch_dataset

    return fetch_dataset(remote, is_afresh=True)


@click.command(short_help="Write the indexes of a data set again, from its tars.")
@click.option("--shards", "shard_dirs", type=local_path, multiple=True, required=True, help="Data set.")
def index(shard_dirs: tuple[Path, ...]) -> None:
    """Write every index that is missing or damaged again; a tar that is not what it was is refused.

    \b
    Example:
      dmlm-cli index --shards shards/librispeech
    """
    from dmlm.pipeline.shards.rebuilding import rebuild_indexes

    for directory in shard_dirs:
        click.echo(rebuild_indexes(directory).summary())
