"""The commands after tokenization: parse -> config -> one call.

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

import os
from pathlib import Path

import click

from dmlm.pipeline.commands import announce_default, device_option, limit_option, seed_option, split_option
from dmlm.pipeline.errors import ExitCode


@click.command(short_help="Train one decoder-only model on token shards.")
@click.option(
    "--shards",
    "shard_dirs",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="Data set of `tokenize`; may be repeated.",
)
@click.option("--recipe", default="demo", show_default=True, help="Name of a recipe, or a YAML file.")
@click.option("--init", help="Model to start from: Hugging Face name or folder, GGUF file, or checkpoint.")
@click.option("--out", "out_dir", type=click.Path(path_type=Path), help="[default: ./runs/RECIPE]")
@click.option("--resume", is_flag=True, help="Go on from the newest whole checkpoint in --out.")
@seed_option()
@limit_option("samples of each data set")
@device_option()
def train(
    shard_dirs: tuple[Path, ...],
    recipe: str,
    init: str | None,
    out_dir: Path | None,
    resume: bool,
    seed: int,
    limit: int | None,
    device: str,
) -> None:
    """Train one joint model: every task that the data allows, mixed, packed, with the tri-modal loss.

    Writes Hugging Face checkpoints, metrics.jsonl and the resolved recipe to --out.

    Example:  dmlm-cli train --shards shards/librispeech --shards shards/coco --out runs/first

    On four devices:  torchrun --nproc-per-node 4 --no-python dmlm-cli train --shards shards/librispeech
    """
    from dmlm.trainer.config import TrainConfig, load_recipe
    from dmlm.trainer.distributed import join_ranks
    from dmlm.trainer.loop import train

    settings = load_recipe(recipe)
    if out_dir is None:
        announce_default("--out", out_dir := Path("runs") / settings.name)
    config = TrainConfig(
        shards=shard_dirs,
        recipe=settings,
        init=init,
        out_dir=out_dir,
        resume=resume,
        seed=seed,
        limit=limit,
        device=device,
    )
    with join_ranks(os.environ) as ranks:
        report = train(config, ranks)
    if ranks.is_first:
        click.echo(report.table())


@click.command(short_help="Score a checkpoint on held-out samples.")
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), required=True, help="Run or checkpoint folder."
)
@click.option(
    "--shards",
    "shard_dirs",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="Data set of `tokenize`; may be repeated.",
)
@click.option("--task", type=click.Choice(["asr"]), default="asr", show_default=True)
@split_option()
@click.option("--out", "out_path", type=click.Path(path_type=Path), help="[default: CHECKPOINT/asr.json]")
@limit_option("samples")
@device_option()
def evaluate(
    checkpoint: Path,
    shard_dirs: tuple[Path, ...],
    task: str,
    splits: tuple[str, ...],
    out_path: Path | None,
    limit: int | None,
    device: str,
) -> None:
    """Decode held-out samples and score them; writes FILE and FILE.samples.jsonl.

    Without --split, every split that was not trained on is scored.

    Example:  dmlm-cli evaluate --checkpoint runs/first --shards shards/librispeech --task asr --out asr.json
    """
    from dmlm.trainer.checkpoint import resolve_checkpoint
    from dmlm.trainer.evaluation import EvaluateConfig, evaluate

    checkpoint = resolve_checkpoint(checkpoint)
    if out_path is None:
        announce_default("--out", out_path := checkpoint / f"{task}.json")
    config = EvaluateConfig(
        checkpoint=checkpoint,
        shards=shard_dirs,
        task=task,
        splits=splits or None,
        out_path=out_path,
        limit=limit,
        device=device,
    )
    click.echo(evaluate(config).table())


@click.command(short_help="Transcribe audio files.")
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), required=True, help="Run or checkpoint folder."
)
@device_option()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.pass_context
def transcribe(ctx: click.Context, checkpoint: Path, device: str, files: tuple[Path, ...]) -> int:
    """Transcribe audio files of any length with a trained checkpoint.

    Example:  dmlm-cli transcribe --checkpoint runs/first hello.wav meeting.flac
    """
    from dmlm.trainer.transcription import transcribe

    code = ExitCode.OK
    for transcript in transcribe(checkpoint, files, device):
        if transcript.error is not None:
            click.echo(f"dmlm-cli: error: {transcript.error}", err=True)
            code = ExitCode.CORRUPT_INPUT
        else:
            click.echo(f"{transcript.path}\t{transcript.text}")
    return code


@click.command(short_help="All of it on sample corpora: from nothing to a word error rate.")
@click.option("--out", "out_dir", type=click.Path(path_type=Path), default="runs/demo", show_default=True)
@seed_option()
def demo(out_dir: Path, seed: int) -> None:
    """Make sample corpora, tokenize them, train one joint model and measure it.

    Seven to nine minutes on two CPU cores. Run it again with the same --out and it goes on where it was.

    Example:  dmlm-cli demo --out runs/demo
    """
    from dmlm.trainer.demo import run_demo

    run_demo(out_dir, seed)
