"""`demo`: the whole road on sample corpora, from nothing to scores of four tasks, and files to look at.

sample -> build-codebook -> tokenize (four corpora) -> verify -> train one joint model -> train-vocoder
-> evaluate (four tasks) -> table

Every stage is the function behind the command of the same name, and each goes on where it stopped.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from dmlm.pipeline.codebooks.building import BuildCodebookConfig, SourceShare, build_codebook
from dmlm.pipeline.shards import verify_dataset
from dmlm.pipeline.storage import write_json
from dmlm.pipeline.synthesis.corpora import SampleConfig, write_sample_corpora
from dmlm.pipeline.synthesis.readings import SENTENCE_CHAPTERS, TEST_SPLIT
from dmlm.pipeline.tokenization.planning import TokenizeConfig
from dmlm.pipeline.tokenization.report import TokenizeReport
from dmlm.pipeline.tokenization.running import tokenize
from dmlm.trainer.checkpoint import latest_checkpoint
from dmlm.trainer.config import Recipe, TrainConfig, load_recipe
from dmlm.trainer.demo_pictures import write_reconstructions
from dmlm.trainer.demo_results import DemoResults
from dmlm.trainer.loop import TrainReport, train
from dmlm.trainer.scoring.evaluation import EvaluateConfig, evaluate, speech_folder
from dmlm.trainer.vocoder.checkpoint import is_vocoder
from dmlm.trainer.vocoder.config import TrainVocoderConfig, VocoderRecipe
from dmlm.trainer.vocoder.training import train_vocoder

SOURCES: Final = ("librispeech", "ami", "covost", "coco")
CODEBOOK_SHARES: Final = {"librispeech": 0.8, "ami": 0.05, "covost": 0.15, "coco": 1.0}
"""Of the sample of speech, in proportion to what the model is to hear; images come from COCO alone."""
CODEBOOK_SECONDS: Final = 600.0
LAYER: Final = 3
NUM_CLUSTERS: Final = 100
"""Units of two speakers agree far better here than with 500 clusters of the last layer (docs/tokens.md)."""
IMAGE_RESOLUTION: Final = 64
NUM_IMAGE_CLUSTERS: Final = 128
TEXT_TOKENIZER: Final = "bpe:256"
"""Characters: a word that was heard a few times is spelt from parts that were heard often."""
HELD_OUT: Final = {
    "asr": ("librispeech", TEST_SPLIT),
    "s2tt": ("covost", "test"),
    "i2t": ("coco", "val2017"),
    "t2s": ("librispeech", TEST_SPLIT),
}
"""Corpus and split that each task is scored on."""
SENTENCES: Final = f"*-{SENTENCE_CHAPTERS[TEST_SPLIT]}-*"
"""Keys of what the model says: Whisper mishears strings of names even in the recordings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """One run of the demo."""

    out_dir: Path
    """Folder for everything."""
    seed: int = 0
    """Of everything random."""
    recipe: str = "demo"
    """Of training, by name or path."""
    num_steps: int | None = None
    """Of training; None: the recipe's."""
    num_vocoder_steps: int = 150
    num_spoken: int = 3
    """Held-out sentences that the model says; a voice takes two seconds for one of speech."""
    limit: int | None = None
    """Utterances or images of each split; None: the full sample."""


def run_demo(config: DemoConfig) -> None:
    """Runs every stage, prints a table and writes `results.json`.

    Raises:
        DmlmError: A stage failed; run the demo again to go on from there.
    """
    out_dir, seed = config.out_dir, config.seed
    # Read first: a wrong name would show only behind the stages in front of training.
    recipe = load_recipe(config.recipe, {} if config.num_steps is None else {"num_steps": config.num_steps})
    stages = Stages()
    root, codebook_dir = out_dir / "sample", out_dir / "codebook"
    shard_dirs = {source: out_dir / "shards" / source for source in SOURCES}
    with stages.run("sample", "sample corpora in four true layouts (synthetic)"):
        click.echo(write_sample_corpora(SampleConfig(out_dir=root, seed=seed, limit=config.limit)).table())
    with stages.run("build-codebook", "speech units, image codes, text tokens"):
        click.echo(build_codebook(_codebook_config(root, codebook_dir, seed)).table())
    with stages.run("tokenize", "corpora to token shards"):
        tokenized = {
            source: _tokenize(source, root, codebook_dir, directory)
            for source, directory in shard_dirs.items()
        }
    with stages.run("verify", "every byte and id against card and index"):
        for directory in shard_dirs.values():
            click.echo(verify_dataset(directory).summary())
    with stages.run("train", "one joint model"):
        trained = _train(config, recipe, tuple(shard_dirs.values()))
        click.echo(trained.table())
    with stages.run("train-vocoder", "units to waveforms"):
        _train_vocoder(config, shard_dirs["librispeech"], root)
    with stages.run("evaluate", "held-out samples of all four tasks"):
        reports = {}
        for task in HELD_OUT:
            reports[task] = evaluate(_evaluate_config(config, task, trained.checkpoint, shard_dirs))
            click.echo(reports[task].table())
    with stages.run("look", "images and what their tokens kept"):
        write_reconstructions(shard_dirs["coco"], root, out_dir / "images.png")
    results = DemoResults(seconds=stages.seconds, tokenized=tokenized, trained=trained, reports=reports)
    write_json(out_dir / "results.json", results.to_json())
    click.echo(f"\n{results.table()}\n\n{_what_to_look_at(out_dir, root)}")


class Stages:
    """Announces stages and keeps their times."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def run(self, name: str, what: str) -> Iterator[None]:
        """Runs a stage under a headline."""
        click.echo(click.style(f"\n== {name}: {what}", bold=True))
        sys.stdout.flush()
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)


def _codebook_config(root: Path, out_dir: Path, seed: int) -> BuildCodebookConfig:
    return BuildCodebookConfig(
        root=root,
        out_dir=out_dir,
        sources=tuple(SourceShare(name=name, share=share) for name, share in CODEBOOK_SHARES.items()),
        max_audio_seconds=CODEBOOK_SECONDS,
        layer=LAYER,
        num_clusters=NUM_CLUSTERS,
        image_resolution=IMAGE_RESOLUTION,
        num_image_clusters=NUM_IMAGE_CLUSTERS,
        text_tokenizer=TEXT_TOKENIZER,
        seed=seed,
    )


def _tokenize(source: str, root: Path, codebook_dir: Path, out_dir: Path) -> TokenizeReport:
    config = TokenizeConfig(source=source, root=root, codebook_dir=codebook_dir, out_dir=out_dir)
    report = tokenize(config)
    click.echo(f"{source}: {report.table()}")
    return report


def _train(config: DemoConfig, recipe: Recipe, shard_dirs: tuple[Path, ...]) -> TrainReport:
    out_dir = config.out_dir / "train"
    resume = latest_checkpoint(out_dir) is not None
    return train(
        TrainConfig(shards=shard_dirs, recipe=recipe, out_dir=out_dir, resume=resume, seed=config.seed)
    )


def _train_vocoder(config: DemoConfig, shard_dir: Path, root: Path) -> None:
    out_dir = config.out_dir / "vocoder"
    if is_vocoder(out_dir):
        click.echo(f"{out_dir} was there already, nothing to do")
        return
    recipe = VocoderRecipe(num_steps=config.num_vocoder_steps)
    report = train_vocoder(
        TrainVocoderConfig(shards=(shard_dir,), root=root, out_dir=out_dir, recipe=recipe, seed=config.seed)
    )
    click.echo(report.table())


def _evaluate_config(
    config: DemoConfig, task: str, checkpoint: Path, shard_dirs: dict[str, Path]
) -> EvaluateConfig:
    source, split = HELD_OUT[task]
    speaks = task == "t2s"
    return EvaluateConfig(
        checkpoint=checkpoint,
        shards=(shard_dirs[source],),
        train_shards=tuple(directory for name, directory in shard_dirs.items() if name != source),
        task=task,
        splits=(split,),
        keys=(SENTENCES,) if speaks else ("*",),
        limit=config.num_spoken if speaks else None,
        vocoder=config.out_dir / "vocoder",
        root=config.out_dir / "sample",
        out_path=config.out_dir / f"{task}.json",
    )


def _what_to_look_at(out_dir: Path, root: Path) -> str:
    recording = min((root / "LibriSpeech" / TEST_SPLIT).rglob("*.flac"))
    image = min((root / "coco" / "val2017").glob("*.jpg"))
    checkpoint = f"--checkpoint {out_dir}/train"
    return (
        f"images above what their tokens kept:  {out_dir / 'images.png'}\n"
        f"sentences that the model says:  {speech_folder(out_dir / 't2s.json')}/*.wav\n"
        f"every held-out sample:  {out_dir}/{{{','.join(HELD_OUT)}}}.json.samples.jsonl\n"
        f"try it:  dmlm-cli transcribe {checkpoint} {recording}\n"
        f"         dmlm-cli caption {checkpoint} {image}\n"
        f'         dmlm-cli speak {checkpoint} --vocoder {out_dir}/vocoder "seven green birds"'
    )
