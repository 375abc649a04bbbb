"""The commands that score: parse -> config -> one call.

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dmlm.pipeline.commands import device_option, limit_option, refuse_given, resolve_root, split_option
from dmlm.pipeline.remote.folder import RemoteFolder
from dmlm.pipeline.remote.options import dataset_folder, folder, local_path, shards_option
from dmlm.pipeline.text_rules import TEXT_RULES
from dmlm.trainer.generation_commands import checkpoint_option, decoding_options

if TYPE_CHECKING:
    from dmlm.trainer.decoding import DecodingConfig

OF_SPEECH = {"vocoder", "root", "listener"}
"""Parameters of `evaluate` that have a meaning with --task t2s."""


@click.command(short_help="Score a checkpoint on held-out samples.")
@checkpoint_option
@shards_option
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
@click.option("--vocoder", type=local_path, help="Of t2s: what `train-vocoder` wrote.")
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
@click.option(
    "--out",
    "out_path",
    type=local_path,
    help="[default: RUN/evaluations/CHECKPOINT.TASK.json; CHECKPOINT.TASK.json beside one that is in no run; "
    "only scores made with the same settings are written over there]",
)
@limit_option("samples of each split of each data set")
@device_option()
@click.pass_context
def evaluate(
    context: click.Context,
    /,
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

    Without --split, test splits that were not trained on are scored, or else the others that were not. Of
    t2s, FILE.speech/*.wav is what it says.

    \b
    Example:
      dmlm-cli evaluate --checkpoint runs/first --shards shards/covost \\
        --task s2tt --beams 4 --length-penalty 0.8
    """
    from dmlm.trainer.scoring.evaluation import EvaluateConfig, evaluate

    if task != "t2s":
        refuse_given(context, OF_SPEECH, "--task t2s")
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
    help="Text file of lines key<TAB>text, several of a key where it has several references; or of texts "
    "alone, then repeated where samples have several.",
)
@click.option(
    "--hypotheses",
    "hypothesis_path",
    type=click.Path(path_type=Path),
    required=True,
    help="Text file of what is scored: a line for each key, or for each line of the references.",
)
@click.option(
    "--language", default="en", show_default=True, help="Language of the texts, such as de or zh-CN."
)
@click.option(
    "--text-rule",
    type=click.Choice([*TEXT_RULES]),
    default="plain",
    show_default=True,
    help="Of asr: what both sides go through before words are counted.",
)
@click.option("--out", "out_path", type=local_path, help="Writes FILE and FILE.samples.jsonl.")
@click.pass_context
def score(
    context: click.Context,
    /,
    task: str,
    reference_paths: tuple[Path, ...],
    hypothesis_path: Path,
    language: str,
    text_rule: str,
    out_path: Path | None,
) -> None:
    """Score hypotheses in a text file against references in others, by key, or line by line without keys.

    \b
    Example:
      dmlm-cli score --task asr --references test.tsv --hypotheses output.tsv
      dmlm-cli score --task s2tt --references test.de --hypotheses output.de \\
        --language de
    """
    from dmlm.trainer.scoring.file_scoring import ScoreConfig, score_files

    if task != "asr":
        refuse_given(context, {"text_rule"}, "--task asr")
    config = ScoreConfig(
        task=task,
        reference_paths=reference_paths,
        hypothesis_path=hypothesis_path,
        language=language,
        text_rule=text_rule,
        out_path=out_path,
    )
    click.echo(score_files(config))
