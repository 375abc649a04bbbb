"""`experiment NAME`: the open checks, one command each."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dmlm.pipeline.commands import (
    device_option,
    parse_layer,
    resolve_root,
    root_option,
    seed_option,
    split_option,
)
from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.remote.folder import RemoteFolder
from dmlm.pipeline.remote.options import local_path
from dmlm.pipeline.source_names import SOURCE_NAMES
from dmlm.pipeline.source_options import recording_options

if TYPE_CHECKING:
    from dmlm.pipeline.sources import SourceOptions


@click.group(short_help="Compare settings on a small sample.")
def experiment() -> None:
    """Compare settings on a small sample, before GPU days are spent.

    \b
    Example:
      dmlm-cli experiment codebook-sweep --source librispeech --root /data \\
        --out sweep
    """


@experiment.command("codebook-sweep", short_help="Which encoder layer, and how many clusters.")
@click.option(
    "--source", type=click.Choice(SOURCE_NAMES), required=True, help="Corpus to fit and measure on."
)
@root_option()
@split_option()
@recording_options
@click.option("--encoder", default="whisper:tiny.en", show_default=True, help="As in build-codebook.")
@click.option("--layers", help="Encoder blocks from 1, and last, such as 3,6,last.  [default: all of them]")
@click.option("--clusters", default="50,100,200,500", show_default=True, help="Numbers of clusters.")
@click.option(
    "--window", type=click.Choice(["exact", "padded"]), default="exact", show_default=True, help="Of Whisper."
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Utterances to fit on, and as many to measure on.",
)
@seed_option()
@device_option()
@click.option("--out", "out_dir", type=local_path, required=True, help="Folder to write.")
def codebook_sweep(
    source: str,
    root: Path | RemoteFolder | None,
    splits: tuple[str, ...],
    options: "SourceOptions",
    encoder: str,
    layers: str | None,
    clusters: str,
    window: str,
    limit: int,
    seed: int,
    device: str,
    out_dir: Path,
) -> None:
    """Fit and judge a codebook for every layer and number of clusters.

    Fitted on training splits, measured on --split, else on the development splits, else on the test splits.
    Writes DIR/sweep.json and DIR/sweep.html.

    \b
    Example:
      dmlm-cli experiment codebook-sweep --source librispeech --root /data \\
        --out sweep
    """
    from dmlm.pipeline.codebooks.page import render_sweep
    from dmlm.pipeline.codebooks.sweep import SweepConfig, sweep_codebooks
    from dmlm.pipeline.storage import check_writable, write_bytes, write_json

    for name in ("sweep.json", "sweep.html"):
        check_writable(out_dir / name)
    report = sweep_codebooks(
        SweepConfig(
            source=source,
            root=resolve_root(root, source),
            splits=splits or None,
            options=options,
            encoder=encoder,
            layers=parse_layers(layers),
            clusters=parse_clusters(clusters),
            window=window,
            limit=limit,
            seed=seed,
            device=device,
        )
    )
    click.echo(report.table())
    write_json(out_dir / "sweep.json", report.to_json())
    write_bytes(out_dir / "sweep.html", render_sweep(report).encode())


def parse_layers(text: str | None) -> tuple[int | None, ...] | None:
    """Layers with commas between them, each once; None: not given."""
    return None if text is None else tuple(dict.fromkeys(map(parse_layer, text.split(","))))


def parse_clusters(text: str) -> tuple[int, ...]:
    """Numbers with commas between them, each once."""
    numbers = dict.fromkeys(text.split(","))
    if not all(number.isdecimal() and int(number) for number in numbers):
        raise ConfigError(f"--clusters {text}: must be numbers from 1 with commas between them")
    return tuple(map(int, numbers))
