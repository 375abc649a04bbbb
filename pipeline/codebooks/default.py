"""The codebook that `tokenize` takes where none is named."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from dmlm.pipeline.errors import ConfigError

if TYPE_CHECKING:
    from dmlm.pipeline.sources import SourceOptions
    from dmlm.pipeline.tokenizers.choosing import TokenizerChoice

DEFAULT_CODEBOOK: Final = Path("codebook")


def default_codebook(
    source: str,
    root: Path,
    options: "SourceOptions",
    choice: "TokenizerChoice",
    device: str,
    refusal: str | None = None,
) -> Path:
    """`./codebook`, built when it is not there: from every corpus under `root`, or from `source` alone.

    Raises:
        ConfigError: It is not there, and `refusal` says why it must not be built here.
    """
    from dmlm.pipeline.codebooks.building import (
        BuildCodebookConfig,
        SourceShare,
        build_codebook,
        is_codebook,
    )
    from dmlm.pipeline.sources.registry import sources_present

    if is_codebook(DEFAULT_CODEBOOK):
        return DEFAULT_CODEBOOK
    if refusal is not None:
        raise ConfigError(
            f"{refusal}, and {DEFAULT_CODEBOOK} is not there; "
            "run `dmlm-cli build-codebook` once first, or give --codebook"
        )
    # `root` may be the corpus folder itself.
    has_corpora = source in sources_present(root)
    sources = () if has_corpora else (SourceShare(name=source),)
    origin = "every source present" if has_corpora else source
    click.echo(f"{DEFAULT_CODEBOOK} is not there: building it first, from {origin}", err=True)
    config = BuildCodebookConfig(
        sources=sources,
        root=root,
        options=options,
        out_dir=DEFAULT_CODEBOOK,
        device=device,
        **choice.build_settings(),
    )
    click.echo(build_codebook(config).table(), err=True)
    return DEFAULT_CODEBOOK
