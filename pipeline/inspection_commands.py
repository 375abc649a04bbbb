"""`verify`, `index`, `inspect`: what is in shards and codebooks, before GPU days are spent on them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dmlm.pipeline.commands import (
    device_option,
    resolve_root,
    root_option,
    seed_option,
    split_option,
)
from dmlm.pipeline.remote.folder import RemoteFolder
from dmlm.pipeline.remote.options import folder
from dmlm.pipeline.source_names import SOURCE_NAMES
from dmlm.pipeline.source_options import source_options

if TYPE_CHECKING:
    from dmlm.pipeline.sources import SourceOptions


@click.command("inspect", short_help="Judge a speech codebook on held-out speech.")
@click.option(
    "--codebook",
    "codebook_dir",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of build-codebook.",
)
@click.option("--source", type=click.Choice(SOURCE_NAMES), required=True, help="Corpus to measure on.")
@root_option()
@split_option()
@source_options
@click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Utterances to measure on."
)
@seed_option()
@device_option()
@click.option("--out", "out_path", type=click.Path(path_type=Path), help="Json of all measures.")
@click.option("--html", "html_path", type=click.Path(path_type=Path), help="Page with plots.")
def inspect(
    codebook_dir: Path,
    source: str,
    root: Path | RemoteFolder | None,
    splits: tuple[str, ...],
    options: "SourceOptions",
    limit: int,
    seed: int,
    device: str,
    out_path: Path | None,
    html_path: Path | None,
) -> None:
    """Judge a speech codebook: usage, perplexity, runs, errors, agreement of window modes, letters.

    Measured on utterances of the development splits, else of the test splits, unless --split names others.

    \b
    Example:
      dmlm-cli inspect --codebook codebook --source librispeech --root /data \\
        --html codebook.html
    """
    from dmlm.pipeline.codebook_inspection import InspectCodebookConfig, inspect_codebook
    from dmlm.pipeline.codebook_page import render_inspection
    from dmlm.pipeline.storage import write_bytes, write_json

    report = inspect_codebook(
        InspectCodebookConfig(
            codebook_dir=codebook_dir,
            source=source,
            root=resolve_root(root, source),
            splits=splits or None,
            options=options,
            limit=limit,
            seed=seed,
            device=device,
        )
    )
    click.echo(report.table())
    if out_path:
        write_json(out_path, report.to_json())
    if html_path:
        write_bytes(html_path, render_inspection(report).encode())


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
def verify(
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

    for place in folders:
        directory = read_again(place) if isinstance(place, RemoteFolder) else place
        whole = verify_dataset(directory)
        click.echo(whole.summary())
        if num_samples is not None:
            from dmlm.pipeline.reencoding import ReencodeConfig, reencode

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
@click.option(
    "--shards", "shard_dirs", type=click.Path(path_type=Path), multiple=True, required=True, help="Data set."
)
def index(shard_dirs: tuple[Path, ...]) -> None:
    """Write every index that is missing or damaged again; a tar that is not what it was is refused.

    \b
    Example:
      dmlm-cli index --shards shards/librispeech
    """
    from dmlm.pipeline.shards.rebuilding import rebuild_indexes

    for directory in shard_dirs:
        click.echo(rebuild_indexes(directory).summary())
