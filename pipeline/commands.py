"""The commands before training: parse -> config -> one call.

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dmlm.pipeline.errors import ConfigError

SOURCE_NAMES = ("librispeech", "ami", "covost", "coco")
DEFAULT_CODEBOOK = Path("codebook")

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def root_option() -> Decorator:
    """`--root`: where the corpora are."""
    return click.option(
        "--root",
        type=click.Path(path_type=Path),
        envvar="DMLM_DATA",
        show_envvar=True,
        help="Folder that holds LibriSpeech/ ami/ covost/ coco/, or the corpus folder itself.",
    )


def split_option() -> Decorator:
    """`--split`, several times."""
    return click.option("--split", "splits", multiple=True, help="Split to read; may be repeated.")


def lang_pair_option() -> Decorator:
    """`--lang-pair` of CoVoST."""
    return click.option(
        "--lang-pair", help="CoVoST language pair such as it_en.  [default: the only one present]"
    )


def limit_option(what: str) -> Decorator:
    """`--limit`: stop early, to try something out."""
    return click.option("--limit", type=click.IntRange(min=1), help=f"Stop after N {what}.")


def device_option() -> Decorator:
    """`--device` for the encoder or the model."""
    return click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")


def seed_option() -> Decorator:
    """`--seed` of everything random."""
    return click.option("--seed", default=0, show_default=True, help="Seed of everything random.")


def announce_default(option: str, value: object) -> None:
    """Says which default was taken, so that nobody has to guess where a result went."""
    click.echo(f"{option} not given: using {value}", err=True)


def resolve_root(root: Path | None, source: str | None) -> Path:
    """Root given, else the manifest's default root."""
    if root is not None:
        return root
    from dmlm.pipeline.manifests import load_manifest

    default = Path(load_manifest(source or SOURCE_NAMES[0]).default_root)
    announce_default("--root", f"{default} (set it, or DMLM_DATA)")
    return default


@click.command(short_help="Write sample corpora in the four true layouts, without any download.")
@click.option("--out", "out_dir", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@seed_option()
@click.option(
    "--text",
    "text_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Speak the lines of this text file instead, as a LibriSpeech-style corpus.",
)
@limit_option("utterances or images of each split")
def sample(out_dir: Path, seed: int, text_path: Path | None, limit: int | None) -> None:
    """Write synthetic sample corpora: LibriSpeech, AMI, CoVoST and COCO in their true layouts.

    English is spoken by a neural voice, Italian by espeak-ng, images are drawn. The same seed gives the
    same bytes.

    Example:  dmlm-cli sample --out data/sample
    """
    from dmlm.pipeline.synthesis.corpora import SampleConfig, write_sample_corpora

    report = write_sample_corpora(SampleConfig(out_dir=out_dir, seed=seed, text_path=text_path, limit=limit))
    click.echo(report.table())


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
@lang_pair_option()
@click.option(
    "--encoder",
    default="whisper:tiny.en",
    show_default=True,
    help="whisper:NAME, or the path of an openai .pt file or a CTranslate2 folder.",
)
@click.option("--layer", default="last", show_default=True, help="Encoder block from 1, or last.")
@click.option("--clusters", "num_clusters", type=click.IntRange(min=1), default=500, show_default=True)
@click.option(
    "--window",
    type=click.Choice(["exact", "padded"]),
    default="exact",
    show_default=True,
    help="Encode the true length, or pad to 30 s as Whisper was trained.",
)
@click.option(
    "--text-tokenizer",
    default="bpe:400",
    show_default=True,
    help="A Hugging Face name or folder, or bpe:N to train one here.",
)
@click.option("--image-tokenizer", type=click.Choice(["patch"]), default="patch", show_default=True)
@click.option("--image-resolution", type=click.IntRange(min=8), default=128, show_default=True)
@click.option(
    "--image-clusters", "num_image_clusters", type=click.IntRange(min=1), default=512, show_default=True
)
@limit_option("samples of each source")
@seed_option()
@device_option()
@click.option("--out", "out_dir", type=click.Path(path_type=Path), help="[default: ./codebook]")
def build_codebook(
    sources: tuple[str, ...],
    root: Path | None,
    splits: tuple[str, ...],
    layer: str,
    out_dir: Path | None,
    image_tokenizer: str,
    **settings: Any,
) -> None:
    """Fit every codebook that the sources need: speech units, image codes, text tokens.

    Writes DIR/speech, DIR/image and DIR/text; `tokenize --codebook DIR` uses all three. Held-out splits
    are left out unless named.

    Example:  dmlm-cli build-codebook --source librispeech --root /data --clusters 500 --out codebook
    """
    from dmlm.pipeline.codebook_building import BuildCodebookConfig, build_codebook

    if out_dir is None:
        announce_default("--out", out_dir := DEFAULT_CODEBOOK)
    shares = tuple(parse_share(source) for source in sources)
    config = BuildCodebookConfig(
        sources=shares,
        root=resolve_root(root, shares[0].name if shares else None),
        splits=splits or None,
        layer=parse_layer(layer),
        out_dir=out_dir,
        **settings,
    )
    click.echo(build_codebook(config).table())


def parse_share(text: str) -> Any:
    """`NAME` or `NAME=SHARE` as a SourceShare."""
    from dmlm.pipeline.codebook_building import SourceShare

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
        raise ConfigError(f"--layer {text}: must be `last` or a block number from 1")
    return int(text)


@click.command(short_help="Turn a corpus into token shards.")
@click.option("--source", type=click.Choice(SOURCE_NAMES), required=True, help="Corpus to read.")
@root_option()
@split_option()
@lang_pair_option()
@click.option(
    "--codebook",
    "codebook_dir",
    type=click.Path(path_type=Path),
    help="Folder of build-codebook.  [default: ./codebook, built first when it is not there]",
)
@click.option("--out", "out_dir", type=click.Path(path_type=Path), help="[default: ./shards/SOURCE]")
@limit_option("samples")
@device_option()
def tokenize(
    source: str,
    root: Path | None,
    splits: tuple[str, ...],
    lang_pair: str | None,
    codebook_dir: Path | None,
    out_dir: Path | None,
    limit: int | None,
    device: str,
) -> None:
    """Turn one corpus into WebDataset token shards with an index and a dataset card.

    Run it again after an interruption: finished shards are kept, and the result has the same bytes.

    Example:  dmlm-cli tokenize --source librispeech --root /data --codebook codebook --out shards/librispeech
    """
    from dmlm.pipeline.tokenization import TokenizeConfig, tokenize

    root = resolve_root(root, source)
    if out_dir is None:
        announce_default("--out", out_dir := Path("shards") / source)
    config = TokenizeConfig(
        source=source,
        root=root,
        splits=splits or None,
        lang_pair=lang_pair,
        codebook_dir=codebook_dir or default_codebook(root, device),
        out_dir=out_dir,
        limit=limit,
        device=device,
    )
    click.echo(tokenize(config).table())


def default_codebook(root: Path, device: str) -> Path:
    """`./codebook`, built from every source present when it is not there yet."""
    from dmlm.pipeline.codebook_building import BuildCodebookConfig, build_codebook, is_codebook

    announce_default("--codebook", DEFAULT_CODEBOOK)
    if not is_codebook(DEFAULT_CODEBOOK):
        click.echo(f"{DEFAULT_CODEBOOK} is not there: building it first, from every source present", err=True)
        config = BuildCodebookConfig(root=root, out_dir=DEFAULT_CODEBOOK, device=device)
        click.echo(build_codebook(config).table(), err=True)
    return DEFAULT_CODEBOOK


@click.command(short_help="Check shards: checksums, structure, counts, ranges, fingerprints.")
@click.option(
    "--shards", "shard_dirs", type=click.Path(path_type=Path), multiple=True, required=True, help="Data set."
)
def verify(shard_dirs: tuple[Path, ...]) -> None:
    """Check every byte and every id of a data set against its card and index.

    Example:  dmlm-cli verify --shards shards/librispeech
    """
    from dmlm.pipeline.shards import verify_dataset

    for directory in shard_dirs:
        click.echo(verify_dataset(directory).summary())
