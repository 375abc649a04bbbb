"""The commands that use a trained model: parse -> config -> one call.

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dmlm.pipeline.commands import device_option
from dmlm.pipeline.errors import ExitCode
from dmlm.pipeline.remote.options import local_path

if TYPE_CHECKING:
    from dmlm.trainer.decoding import DecodingConfig
    from dmlm.trainer.decoding.captioning import Caption
    from dmlm.trainer.decoding.transcription import Transcript

T = TypeVar("T")

_files_argument = click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
checkpoint_option = click.option(
    "--checkpoint", type=local_path, required=True, help="Run or checkpoint folder."
)


def decoding_options(command: Callable[..., T]) -> Callable[..., T]:
    """Adds how tokens are chosen, and gives it to the command as one `decoding`; greedy by default."""

    @click.option(
        "--beams",
        "num_beams",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Of beam search: outputs followed side by side.",
    )
    @click.option("--temperature", type=float, default=0.0, help="Of sampling.  [default: greedy]")
    @click.option("--top-p", type=float, default=1.0, show_default=True, help="Of sampling: the nucleus.")
    @click.option("--seed", default=0, show_default=True, help="Of sampling.")
    @click.option(
        "--length-penalty",
        type=float,
        default=1.0,
        show_default=True,
        help="Of beams: the log-probability is divided by the length to this power, so more favours longer.",
    )
    @click.option(
        "--max-new-tokens",
        type=click.IntRange(min=1),
        help="Longest output.  [default: plausible for the task]",
    )
    @click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=32,
        show_default=True,
        help="Rows decoded side by side; fewer where memory ends.",
    )
    @wraps(command)
    def with_decoding(**options: Any) -> T:
        from dmlm.trainer.decoding import DecodingConfig

        decoding = DecodingConfig(**{f.name: options.pop(f.name) for f in fields(DecodingConfig)})
        return command(decoding=decoding, **options)

    return with_decoding


def language_option(what: str, name: str = "--language") -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Adds the language of prompts."""
    return click.option(
        name,
        "language",
        help=f"Language of the {what}, one that was trained; none: its token is left out.  "
        "[default: the only one trained, or English]",
    )


@click.command(short_help="Transcribe audio files.")
@checkpoint_option
@language_option("recordings")
@decoding_options
@device_option()
@_files_argument
def transcribe(
    checkpoint: Path, language: str | None, device: str, files: tuple[Path, ...], decoding: "DecodingConfig"
) -> int:
    """Transcribe audio files of any length with a trained checkpoint.

    \b
    Example:
      dmlm-cli transcribe --checkpoint runs/first hello.wav meeting.flac
    """
    from dmlm.trainer.decoding.transcription import transcribe

    return _print_texts(transcribe(checkpoint, files, device, language, decoding=decoding))


@click.command(short_help="Translate audio files.")
@checkpoint_option
@language_option("text", "--to")
@decoding_options
@device_option()
@_files_argument
def translate(
    checkpoint: Path, language: str | None, device: str, files: tuple[Path, ...], decoding: "DecodingConfig"
) -> int:
    """Translate the speech in audio files of any length with a trained checkpoint.

    \b
    Example:
      dmlm-cli translate --checkpoint runs/first --to de --beams 4 hello.wav
    """
    from dmlm.trainer.decoding.transcription import transcribe

    return _print_texts(transcribe(checkpoint, files, device, language, task="s2tt", decoding=decoding))


@click.command(short_help="Caption image files.")
@checkpoint_option
@language_option("captions")
@decoding_options
@device_option()
@_files_argument
def caption(
    checkpoint: Path, language: str | None, device: str, files: tuple[Path, ...], decoding: "DecodingConfig"
) -> int:
    """Say what image files show, with a trained checkpoint.

    \b
    Example:
      dmlm-cli caption --checkpoint runs/first cat.jpg dog.png
    """
    from dmlm.trainer.decoding.captioning import caption

    return _print_texts(caption(checkpoint, files, device, language, decoding=decoding))


def _print_texts(results: "Iterable[Transcript | Caption]") -> int:
    code = ExitCode.OK
    for result in results:
        if result.error is not None:
            click.echo(f"dmlm-cli: error: {result.error}", err=True)
            code = ExitCode.CORRUPT_INPUT
        else:
            name = click.format_filename(result.path)  # it need not be UTF-8
            click.echo(f"{name}\t{result.text}")
            if not result.is_finished:
                reason = "it reached the limit of tokens, or the end of the model's context"
                click.echo(f"dmlm-cli: {name}: the text was cut: {reason}", err=True)
    return code
