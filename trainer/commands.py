"""The commands after tokenization: parse -> config -> one call.

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

import os
from pathlib import Path
from typing import Literal

import click

from dmlm.pipeline.commands import announce_default, device_option, limit_option, seed_option
from dmlm.pipeline.remote.options import local_path, shards_option


@click.command(short_help="Train one decoder-only model on token shards.")
@shards_option
@click.option("--recipe", default="demo", show_default=True, help="Name of a recipe, or a YAML file.")
@click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Puts a value in the place of the recipe's, such as loss.speech=0.5; may be repeated.",
)
@click.option(
    "--init", help="Model to start from: Hugging Face name or folder, GGUF file, checkpoint or run."
)
@click.option("--out", "out_dir", type=local_path, help="[default: ./runs/RECIPE]")
@click.option("--resume", is_flag=True, help="Go on from the newest whole checkpoint in --out.")
@click.option(
    "--tracker",
    "trackers",
    type=click.Choice(["tensorboard", "wandb"]),
    multiple=True,
    help="Where figures go besides metrics.jsonl; may be repeated.",
)
@seed_option()
@limit_option("samples of each split of each data set")
@device_option()
def train(
    shard_dirs: tuple[Path, ...],
    recipe: str,
    overrides: tuple[str, ...],
    init: str | None,
    out_dir: Path | None,
    resume: bool,
    trackers: tuple[Literal["tensorboard", "wandb"], ...],
    seed: int,
    limit: int | None,
    device: str,
) -> None:
    """Train one joint model: every task that the data allows, mixed, packed, with the tri-modal loss.

    Writes Hugging Face checkpoints, plan.txt, metrics.jsonl, validation.jsonl and the resolved recipe to
    --out.

    \b
    Example:
      dmlm-cli train --shards shards/librispeech --shards shards/coco \\
        --out runs/first

    \b
    Example:
      dmlm-cli train --shards shards/librispeech --set loss.speech=0.5 \\
        --set num_steps=200

    \b
    On four devices:
      torchrun --nproc-per-node 4 --no-python dmlm-cli train \\
        --shards shards/librispeech --set batch.num_micro_batches=4
    """
    from dmlm.trainer.config import TrainConfig, load_recipe, parse_overrides
    from dmlm.trainer.distributed import join_ranks
    from dmlm.trainer.loop import train

    settings = load_recipe(recipe, parse_overrides(overrides))
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
        trackers=trackers,
    )
    with join_ranks(os.environ, device) as ranks:
        report = train(config, ranks)
    if ranks.is_first:
        click.echo(report.table())


@click.command(short_help="All of it on sample corpora: from nothing to scores of four tasks.")
@click.option("--out", "out_dir", type=local_path, default="runs/demo", show_default=True)
@click.option("--recipe", default="demo", show_default=True, help="Of training; demo-full takes longer.")
@click.option(
    "--spoken",
    "num_spoken",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Held-out sentences to say.",
)
@seed_option()
def demo(out_dir: Path, recipe: str, num_spoken: int, seed: int) -> None:
    """Make sample corpora, tokenize them, train one joint model, and score its four tasks.

    Eight to twelve minutes on two CPU cores. Run it again with the same --out and it goes on where it was.

    \b
    Example:
      dmlm-cli demo --out runs/demo
    """
    from dmlm.trainer.demo import DemoConfig, run_demo

    run_demo(DemoConfig(out_dir=out_dir, recipe=recipe, num_spoken=num_spoken, seed=seed))
