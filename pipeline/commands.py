"""The commands before training: parse -> config -> one call.

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from dmlm.pipeline.codebooks.default import DEFAULT_CODEBOOK, default_codebook
from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.executors.options import Engine, engine_options
from dmlm.pipeline.remote.folder import RemoteFolder
from dmlm.pipeline.remote.options import dataset_folder, folder, local_path
from dmlm.pipeline.source_names import SOURCE_NAMES
from dmlm.pipeline.source_options import source_options
from dmlm.pipeline.tokenizer_options import codebook_options, tokenizer_options

if TYPE_CHECKING:
    from dmlm.pipeline.sources import SourceOptions
    from dmlm.pipeline.tokenizers.choosing import TokenizerChoice

WITHOUT_FILES = ("text", "units")
"""Sources without audio and images: only their texts are tokenized."""

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def root_option(remark: str = "") -> Decorator:
    """`--root`: where the corpora are; `remark` ends its help."""
    return click.option(
        "--root",
        type=folder,
        envvar="DMLM_DATA",
        show_envvar=True,
        help="Folder that holds LibriSpeech/ ami/ covost/ coco/, the corpus folder itself, or your own file; "
        f"or an address, s3:// or hf://; of the source hf also hub:ORG/NAME[@REVISION].{remark}",
    )


def split_option() -> Decorator:
    """`--split`, several times."""
    return click.option(
        "--split",
        "splits",
        multiple=True,
        help="Split to read, which every source must have; may be repeated.",
    )


def limit_option(what: str) -> Decorator:
    """`--limit`: stop early, to try something out."""
    return click.option("--limit", type=click.IntRange(min=1), help=f"Take the first N {what}.")


def device_option() -> Decorator:
    """`--device` for the encoder or the model."""
    return click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")


def seed_option() -> Decorator:
    """`--seed` of everything random."""
    return click.option("--seed", default=0, show_default=True, help="Seed of everything random.")


def refuse_given(context: click.Context, names: set[str], owner: str) -> None:
    """Raises ConfigError for an option of the command line, with a name of `names`, that belongs to `owner`.

    Without `owner` it would have no effect. One that comes from the environment is meant for other commands,
    too, and is left alone.
    """
    for parameter in context.command.params:
        if parameter.name in names and (
            context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
        ):
            raise ConfigError(f"{parameter.opts[0]} belongs to {owner}: give that, or leave it out")


def announce_default(option: str, value: object) -> None:
    """Says which default was taken, so that nobody has to guess where a result went."""
    click.echo(f"{option} not given: using {value}", err=True)


def resolve_root(root: Path | RemoteFolder | None, source: str | None) -> Path:
    """Root given, mirrored first when it is an address, else the manifest's default root."""
    if isinstance(root, RemoteFolder):
        from dmlm.pipeline.remote.corpora import fetch_corpus

        return fetch_corpus(root)
    if root is not None:
        return root
    from dmlm.pipeline.manifests import load_manifest

    default = Path(load_manifest(source or SOURCE_NAMES[0]).default_root)
    announce_default("--root", f"{default} (set it, or DMLM_DATA)")
    return default


@click.command(short_help="Write sample corpora in the four true layouts, without any download.")
@click.option("--out", "out_dir", type=local_path, required=True, help="Folder to write.")
@seed_option()
@click.option(
    "--text",
    "text_paths",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="Speak the lines of this text file instead, as a LibriSpeech-style corpus; may be repeated.",
)
@click.option("--hours", type=float, help="With --text: speak so many hours of short pieces of the texts.")
@limit_option("utterances or images of each split")
def sample(**settings: Any) -> None:
    """Write synthetic sample corpora: LibriSpeech, AMI, CoVoST and COCO in their true layouts.

    English is spoken by a neural voice, Italian by espeak-ng, images are drawn. The same seed gives the
    same bytes.

    \b
    Example:
      dmlm-cli sample --out data/sample
    """
    from dmlm.pipeline.synthesis.corpora import SampleConfig, write_sample_corpora

    click.echo(write_sample_corpora(SampleConfig(**settings)).table())


@click.command("build-codebook", short_help="Fit speech and image codebooks and the text tokenizer.")
@click.option(
    "--source",
    "sources",
    multiple=True,
    metavar="NAME[=SHARE]",
    help="Source and its share of the sample; may be repeated.  [default: all present, equal shares]",
)
@root_option()
@split_option()
@source_options
@codebook_options
@limit_option("samples of each split")
@seed_option()
@device_option()
@click.option("--out", "out_dir", type=local_path, help="[default: ./codebook]")
def build_codebook(
    sources: tuple[str, ...],
    root: Path | RemoteFolder | None,
    splits: tuple[str, ...],
    layer: str,
    audio_hours: float,
    out_dir: Path | None,
    **settings: Any,
) -> None:
    """Fit every codebook that the sources need: speech units, image codes, text tokens.

    Writes DIR/speech, DIR/image and DIR/text; `tokenize --codebook DIR` uses all three. Held-out splits
    are left out unless named.

    \b
    Example:
      dmlm-cli build-codebook --source librispeech --root /data --clusters 500 \\
        --out codebook
    """
    from dmlm.pipeline.codebooks.building import BuildCodebookConfig, build_codebook
    from dmlm.pipeline.encoders import AUTO

    if out_dir is None:
        announce_default("--out", out_dir := DEFAULT_CODEBOOK)
    shares = tuple(parse_share(source) for source in sources)
    config = BuildCodebookConfig(
        sources=shares,
        root=resolve_root(root, shares[0].name if shares else None),
        splits=splits or None,
        layer=AUTO if layer == AUTO else parse_layer(layer),
        max_audio_seconds=audio_hours * 3_600,
        out_dir=out_dir,
        **settings,
    )
    click.echo(build_codebook(config).table())


def parse_share(text: str) -> Any:
    """`NAME` or `NAME=SHARE` as a SourceShare."""
    from dmlm.pipeline.codebooks.building import SourceShare

    name, _, share = text.partition("=")
    if name not in SOURCE_NAMES:
        raise ConfigError(f"--source {name}: not a source; one of {', '.join(SOURCE_NAMES)}")
    try:
        return SourceShare(name=name, share=float(share or 1))
    except ValueError:
        raise ConfigError(f"--source {text}: the share must be a number, as in {name}=0.5") from None


def parse_layer(text: str) -> int | None:
    """Encoder block from 1; None for `last`."""
    if text == "last":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--layer {text}: must be a block number from 1, or `last`")
    return int(text)


@click.command(short_help="Turn a corpus into token shards.")
@click.option("--source", type=click.Choice(SOURCE_NAMES), required=True, help="Corpus to read.")
@root_option()
@split_option()
@source_options
@click.option(
    "--codebook",
    "codebook_dir",
    type=local_path,
    help="Folder of build-codebook.  [default: ./codebook, built first when it is not there]",
)
@tokenizer_options
@click.option(
    "--reuse",
    "reuse_dir",
    type=dataset_folder,
    help="Data set of the same items: take over the tokens whose tokenizer is the same.",
)
@click.option("--dry-run", is_flag=True, help="Only estimate audio, tokens, bytes and time from a sample.")
@click.option("--out", "out", type=folder, help="Folder or address.  [default: ./shards/SOURCE]")
@limit_option("samples of each split")
@device_option()
@engine_options
def tokenize(
    source: str,
    root: Path | RemoteFolder | None,
    splits: tuple[str, ...],
    options: "SourceOptions",
    codebook_dir: Path | None,
    choice: "TokenizerChoice",
    unit_backend: str,
    reuse_dir: Path | None,
    dry_run: bool,
    out: Path | RemoteFolder | None,
    limit: int | None,
    device: str,
    engine: Engine,
) -> None:
    """Turn one corpus into WebDataset token shards with an index and a dataset card.

    Run it again after an interruption: finished shards are kept, and the result has the same bytes.

    \b
    Example:
      dmlm-cli tokenize --source librispeech --root /data --codebook codebook \\
        --out shards/librispeech
    """
    from dmlm.pipeline.tokenization.dry_run import estimate_run
    from dmlm.pipeline.tokenization.planning import TokenizeConfig

    if dry_run and reuse_dir is not None:
        raise ConfigError("--dry-run measures how long encoding takes; leave out --reuse")
    if dry_run and engine != Engine():
        raise ConfigError(
            "--dry-run encodes a sample in this process; leave out --engine, --workers, --task-index "
            "and --num-tasks"
        )
    root = resolve_root(root, source)
    if out is None:
        announce_default("--out", out := Path("shards") / source)
    if codebook_dir is None and not choice.replaces_codebook(has_text_only=source in WITHOUT_FILES):
        refusal = None
        if dry_run:
            refusal = "--dry-run builds nothing"
        elif engine.task_index is not None:
            refusal = "with --task-index every task would build a codebook of its own"
        announce_default("--codebook", DEFAULT_CODEBOOK)
        codebook_dir = default_codebook(source, root, options, choice, device, refusal)
    config = TokenizeConfig(
        source=source,
        root=root,
        splits=splits or None,
        options=options,
        codebook_dir=codebook_dir,
        choice=choice,
        unit_backend=unit_backend,
        out_dir=out.local if isinstance(out, RemoteFolder) else out,
        remote=out if isinstance(out, RemoteFolder) else None,
        limit=limit,
        device=device,
        reuse_dir=reuse_dir,
    )
    click.echo(estimate_run(config).table() if dry_run else engine.tokenize(config))
