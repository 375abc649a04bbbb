"""`inspect`: what is in a codebook, before GPU days are spent on it."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dmlm.pipeline.commands import (
    SOURCE_NAMES,
    device_option,
    resolve_root,
    root_option,
    seed_option,
    split_option,
)
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
    root: Path | None,
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

    Example:  dmlm-cli inspect --codebook codebook --source librispeech --root /data --html codebook.html
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
