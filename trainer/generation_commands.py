"""The commands that use a trained model: parse -> config -> one call.

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dmlm.pipeline.commands import announce_default, device_option, limit_option, resolve_root, split_option
from dmlm.pipeline.errors import ExitCode
from dmlm.pipeline.remote.folder import RemoteFolder
from dmlm.pipeline.remote.options import dataset_folder, folder

if TYPE_CHECKING:
    from dmlm.trainer.decoding import DecodingConfig
    from dmlm.trainer.decoding.captioning import Caption
    from dmlm.trainer.decoding.transcription import Transcript

T = TypeVar("T")

_files_argument = click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
_checkpoint_option = click.option(
    "--checkpoint", type=click.Path(path_type=Path), required=True, help="Run or checkpoint folder."
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


def language_option(what: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Adds `--language`, English by default."""
    return click.option("--language", default="en", show_default=True, help=f"Language of the {what}.")


@click.command(short_help="Score a checkpoint on held-out samples.")
@_checkpoint_option
@click.option(
    "--shards",
    "shard_dirs",
    type=dataset_folder,
    multiple=True,
    required=True,
    help="Data set of `tokenize`, folder or address; may be repeated.",
)
@click.option(
    "--train-shards",
    "train_dirs",
    type=dataset_folder,
    multiple=True,
    help="Further data set of the training, to be searched for the references; may be repeated.",
)
@click.option(
    "--task",
    type=click.Choice(["asr", "s2tt", "i2t", "t2s"]),
    default="asr",
    show_default=True,
    help="What is decoded: transcripts, translations, captions or speech.",
)
@split_option()
@click.option(
    "--key", "keys", multiple=True, help="Glob on the keys of the samples; may be repeated.  [default: all]"
)
@click.option("--vocoder", type=click.Path(path_type=Path), help="Of t2s: what `train-vocoder` wrote.")
@click.option(
    "--root",
    type=folder,
    envvar="DMLM_DATA",
    show_envvar=True,
    help="Of t2s: the corpora, to hear the recordings too; folder or address.",
)
@click.option(
    "--listener",
    default="whisper:tiny.en",
    show_default=True,
    help="Of t2s: the Whisper that hears, name or path; tiny.en hears English only.",
)
@decoding_options
@click.option("--out", "out_path", type=click.Path(path_type=Path), help="[default: CHECKPOINT/TASK.json]")
@limit_option("samples of each split of each data set")
@device_option()
def evaluate(
    checkpoint: Path,
    shard_dirs: tuple[Path, ...],
    train_dirs: tuple[Path, ...],
    task: str,
    splits: tuple[str, ...],
    keys: tuple[str, ...],
    vocoder: Path | None,
    root: Path | RemoteFolder | None,
    listener: str,
    out_path: Path | None,
    limit: int | None,
    device: str,
    decoding: "DecodingConfig",
) -> None:
    """Decode held-out samples and score them; writes FILE and FILE.samples.jsonl.

    Without --split, every split that was not trained on is scored. Of t2s, FILE.speech/*.wav is what it says.

    \b
    Example:
      dmlm-cli evaluate --checkpoint runs/first --shards shards/covost --task s2tt
    """
    from dmlm.trainer.checkpoint import resolve_checkpoint
    from dmlm.trainer.scoring.evaluation import EvaluateConfig, evaluate

    checkpoint = resolve_checkpoint(checkpoint)
    if out_path is None:
        announce_default("--out", out_path := checkpoint / f"{task}.json")
    config = EvaluateConfig(
        checkpoint=checkpoint,
        shards=shard_dirs,
        train_shards=train_dirs,
        task=task,
        splits=splits or None,
        keys=keys or ("*",),
        vocoder=vocoder,
        root=None if root is None or task != "t2s" else resolve_root(root, None),
        listener=listener,
        decoding=decoding,
        out_path=out_path,
        limit=limit,
        device=device,
    )
    click.echo(evaluate(config).table())


@click.command(short_help="Transcribe audio files.")
@_checkpoint_option
@language_option("recordings")
@decoding_options
@device_option()
@_files_argument
def transcribe(
    checkpoint: Path, language: str, device: str, files: tuple[Path, ...], decoding: "DecodingConfig"
) -> int:
    """Transcribe audio files of any length with a trained checkpoint.

    \b
    Example:
      dmlm-cli transcribe --checkpoint runs/first hello.wav meeting.flac
    """
    from dmlm.trainer.decoding.transcription import transcribe

    return _print_texts(transcribe(checkpoint, files, device, language, decoding=decoding))


@click.command(short_help="Translate audio files.")
@_checkpoint_option
@click.option("--to", "language", required=True, help="Language of the text, one that was trained.")
@decoding_options
@device_option()
@_files_argument
def translate(
    checkpoint: Path, language: str, device: str, files: tuple[Path, ...], decoding: "DecodingConfig"
) -> int:
    """Translate the speech in audio files of any length with a trained checkpoint.

    \b
    Example:
      dmlm-cli translate --checkpoint runs/first --to de --beams 4 hello.wav
    """
    from dmlm.trainer.decoding.transcription import transcribe

    return _print_texts(transcribe(checkpoint, files, device, language, task="s2tt", decoding=decoding))


@click.command(short_help="Caption image files.")
@_checkpoint_option
@language_option("captions")
@decoding_options
@device_option()
@_files_argument
def caption(
    checkpoint: Path, language: str, device: str, files: tuple[Path, ...], decoding: "DecodingConfig"
) -> int:
    """Say what image files show, with a trained checkpoint.

    \b
    Example:
      dmlm-cli caption --checkpoint runs/first cat.jpg dog.png
    """
    from dmlm.trainer.decoding.captioning import caption

    return _print_texts(caption(checkpoint, files, device, language, decoding=decoding))


@click.command(short_help="Score plain text files, of any system.")
@click.option(
    "--task",
    type=click.Choice(["asr", "s2tt", "i2t"]),
    default="asr",
    show_default=True,
    help="What the texts are: transcripts, translations or captions.",
)
@click.option(
    "--references",
    "reference_paths",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="Text file, one sample a line; repeated where samples have several.",
)
@click.option(
    "--hypotheses",
    "hypothesis_path",
    type=click.Path(path_type=Path),
    required=True,
    help="Text file of what is scored, a line for each line of the references.",
)
@language_option("texts")
@click.option("--text-rule", default="plain", show_default=True, help="What both sides go through, for asr.")
@click.option(
    "--out", "out_path", type=click.Path(path_type=Path), help="Writes FILE and FILE.samples.jsonl."
)
def score(
    task: str,
    reference_paths: tuple[Path, ...],
    hypothesis_path: Path,
    language: str,
    text_rule: str,
    out_path: Path | None,
) -> None:
    """Score hypotheses in a text file against references in others, line by line.

    \b
    Example:
      dmlm-cli score --task s2tt --references a.de --hypotheses b.de --language de
    """
    from dmlm.trainer.scoring.file_scoring import ScoreConfig, score_files

    config = ScoreConfig(
        task=task,
        reference_paths=reference_paths,
        hypothesis_path=hypothesis_path,
        language=language,
        text_rule=text_rule,
        out_path=out_path,
    )
    click.echo(score_files(config))


def _print_texts(results: "Iterable[Transcript | Caption]") -> int:
    code = ExitCode.OK
    for result in results:
        if result.error is not None:
            click.echo(f"dmlm-cli: error: {result.error}", err=True)
            code = ExitCode.CORRUPT_INPUT
        else:
            click.echo(f"{result.path}\t{result.text}")
            if not result.is_finished:
                reason = "it reached the limit of tokens, or the end of the model's context"
                click.echo(f"dmlm-cli: {result.path}: the text was cut: {reason}", err=True)
    return code
