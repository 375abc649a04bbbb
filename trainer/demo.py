"""`demo`: the whole road on sample corpora, from nothing to a word error rate and pictures to look at.

sample -> build-codebook -> tokenize (four corpora) -> verify -> train one joint model -> evaluate -> table

Every stage is the function behind the command of the same name, and each goes on where it stopped.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

from dmlm.pipeline.codebook_building import BuildCodebookConfig, SourceShare, build_codebook
from dmlm.pipeline.shards import verify_dataset
from dmlm.pipeline.storage import write_json
from dmlm.pipeline.synthesis.corpora import SampleConfig, write_sample_corpora
from dmlm.pipeline.synthesis.readings import TEST_SPLIT, is_word_string
from dmlm.pipeline.tokenization import TokenizeConfig, tokenize
from dmlm.pipeline.tokenize_report import TokenizeReport
from dmlm.trainer.checkpoint import latest_checkpoint
from dmlm.trainer.config import TrainConfig, load_recipe
from dmlm.trainer.demo_pictures import write_reconstructions
from dmlm.trainer.loop import TrainReport, train
from dmlm.trainer.scoring import AsrMetrics, sum_scores
from dmlm.trainer.scoring.evaluation import EvaluateConfig, EvaluationReport, ScoredUtterance, evaluate

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


def run_demo(out_dir: Path, seed: int, *, limit: int | None = None, num_steps: int | None = None) -> None:
    """Runs every stage, prints a table and writes `out_dir/results.json`.

    Args:
        out_dir: Folder for everything.
        seed: Of everything random.
        limit: Utterances or images of each split; None: the full sample.
        num_steps: Of training; None: the recipe's.

    Raises:
        DmlmError: A stage failed; run the demo again to go on from there.
    """
    stages = Stages()
    root, codebook_dir = out_dir / "sample", out_dir / "codebook"
    shard_dirs = {source: out_dir / "shards" / source for source in SOURCES}
    with stages.run("sample", "sample corpora in four true layouts (synthetic)"):
        click.echo(write_sample_corpora(SampleConfig(out_dir=root, seed=seed, limit=limit)).table())
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
        trained = _train(out_dir / "train", tuple(shard_dirs.values()), seed, num_steps)
        click.echo(trained.table())
    with stages.run("evaluate", "held-out speech recognition"):
        scored = _evaluate(trained.checkpoint, shard_dirs, out_dir / "asr.json")
        click.echo(scored.table())
    with stages.run("look", "images and what their tokens kept"):
        pictures = write_reconstructions(shard_dirs["coco"], root, out_dir / "images.png")
    halves = score_halves(scored.utterances)
    write_json(out_dir / "results.json", _results(stages.seconds, tokenized, trained, scored, halves))
    click.echo(f"\n{_table(stages.seconds, tokenized, trained, scored, halves)}")
    click.echo(f"\nimages above what their tokens kept:  {pictures}")
    click.echo(f"every held-out utterance:  {out_dir}/asr.json.samples.jsonl")
    click.echo(f"try it:  dmlm-cli transcribe --checkpoint {out_dir}/train {_some_recording(root)}")


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


def score_halves(utterances: Sequence[ScoredUtterance]) -> dict[str, AsrMetrics]:
    """Scores of sentences and of random word strings, which no grammar can guess."""
    halves: dict[str, list[ScoredUtterance]] = {"sentences": [], "word strings": []}
    for utterance in utterances:
        halves["word strings" if is_word_string(utterance.key) else "sentences"].append(utterance)
    return {name: sum_scores(u.score for u in half if u.score) for name, half in halves.items()}


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


def _train(out_dir: Path, shard_dirs: tuple[Path, ...], seed: int, num_steps: int | None) -> TrainReport:
    resume = latest_checkpoint(out_dir) is not None
    recipe = load_recipe("demo", {} if num_steps is None else {"num_steps": num_steps})
    return train(TrainConfig(shards=shard_dirs, recipe=recipe, out_dir=out_dir, resume=resume, seed=seed))


def _evaluate(checkpoint: Path, shard_dirs: dict[str, Path], out_path: Path) -> EvaluationReport:
    others = tuple(directory for source, directory in shard_dirs.items() if source != "librispeech")
    return evaluate(
        EvaluateConfig(
            checkpoint=checkpoint,
            shards=(shard_dirs["librispeech"],),
            train_shards=others,
            splits=(TEST_SPLIT,),
            out_path=out_path,
        )
    )


def _results(
    seconds: dict[str, float],
    tokenized: dict[str, TokenizeReport],
    trained: TrainReport,
    scored: EvaluationReport,
    halves: dict[str, AsrMetrics],
) -> dict[str, Any]:
    return {
        "asr": scored.to_json()["metrics"] | {"halves": {name: asdict(m) for name, m in halves.items()}},
        "seconds": seconds,
        "tokenize": {source: asdict(report) for source, report in tokenized.items()},
        "train": None if trained.total is None else asdict(trained.total),
    }


def _table(
    seconds: dict[str, float],
    tokenized: dict[str, TokenizeReport],
    trained: TrainReport,
    scored: EvaluationReport,
    halves: dict[str, AsrMetrics],
) -> str:
    rows = [
        (f"{source}: samples", f"{r.num_out} (+ {r.num_skipped} skipped, {r.num_quarantined} quarantined)")
        for source, r in tokenized.items()
    ]
    if trained.total is not None:
        shares = ", ".join(f"{task} {share:.0%}" for task, share in trained.total.share_by_task.items())
        rows.append(("training tokens by task", shares))
    rows.append(("held-out WER, normalised", _percent(scored.metrics.wer)))
    rows.append(("held-out WER, raw", _percent(scored.metrics.wer_raw)))
    rows += [(f"  {name} (raw)", _percent(metrics.wer_raw)) for name, metrics in halves.items()]
    rows.append(("held-out CER", _percent(scored.metrics.cer)))
    rows.append(("WER (raw) with a neighbour's units", _percent(scored.neighbour.wer_raw)))
    rows.append(("seconds", ", ".join(f"{stage} {s:.0f}" for stage, s in seconds.items())))
    rows.append(("seconds in all", f"{sum(seconds.values()):.0f}"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows)


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.1f} %"


def _some_recording(root: Path) -> Path:
    return min((root / "LibriSpeech" / TEST_SPLIT).rglob("*.flac"))
