"""Row D: training steps, dmlm beside the Hugging Face Trainer on the same model, sequences and steps.

The sequences have the lengths of a mix of four tasks in equal numbers: ASR and T2S of LibriSpeech, S2TT of
CoVoST 2 (2 to 8 s a clip), I2T of COCO (token_lengths.py); the tokens are random, since only the lengths
matter. Every step takes the same sequences on every side, with one mean over all of their tokens as the loss,
so the losses of every step must agree.

The Trainer runs three times: padding to the longest of a batch, to the maximum, and without padding
(DataCollatorWithFlattening). Each side runs in a process of its own, once per round, the sides in turn.
Seconds are those behind the first step; peak memory is what training adds to a process with the model built.
How much of the processor's bare product a step of dmlm reaches is measured at a second width too: in a toy
the products are too small to fill the time of a step.

    pip install "dmlm[bench]"
    python benchmarks/training_step.py [--steps 4] [--sequences 16] [--rounds 7] [--width 128] [--layers 4]
                                       [--wide-width 768] [--wide-layers 2] [--vocabulary 2048]
                                       [--max-length 2048] [--threads 2]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from huggingface_trainer import LEARNING_RATE, run_trainer
from rows import SGEMM_OPERATIONS, Row, make_sgemm, peak_bytes, time_sides
from token_lengths import draw_coco, draw_covost, draw_librispeech
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from dmlm.trainer.config import LossConfig, recipe_from_json
from dmlm.trainer.data.packing import pack_sequences
from dmlm.trainer.data.tasks import GIVEN, TaskSequence
from dmlm.trainer.distributed import ALONE
from dmlm.trainer.loss import count_loss_tokens, sum_by_task, token_weights
from dmlm.trainer.step import TrainStep

NUM_FIXED = 4
"""BOS, EOS, and a token in front of source and target."""
SIDES = {"dmlm": "", "longest": "padding to longest", "max": "padding to max", "flattened": "without padding"}


@dataclass(frozen=True, kw_only=True)
class Side:
    """What a process of one side measured."""

    seconds: float
    """Of a step behind the first."""
    losses: Sequence[float]
    """Of every step."""
    peak_bytes: int
    """Over the process before training."""
    sgemm_seconds: float
    """Of one bare product, right behind the steps."""
    sums_seconds: float
    """Of what the loss per modality needs beside a plain one, a step: counts, weights and sums."""


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    if options.side is not None:
        print(json.dumps(_measure(options)))
        return
    given = arguments or sys.argv[1:]
    wide = ["--width", str(options.wide_width), "--layers", str(options.wide_layers)]
    runs: dict[str, list[Side]] = {name: [] for name in SIDES}
    wide_runs: list[Side] = []
    for _ in range(options.rounds):
        for name in SIDES:
            runs[name].append(_run_process([*given, "--side", name]))
        wide_runs.append(_run_process([*given, *wide, "--side", "dmlm"]))
    _report(runs, options)
    _report_products("D-sgemm", runs["dmlm"], options)
    _report_products("D-sgemm-wide", wide_runs, parse([*given, *wide]))


def _run_process(arguments: list[str]) -> Side:
    command = [sys.executable, __file__, *arguments]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return Side(**json.loads(output.splitlines()[-1]))


def size_options() -> argparse.ArgumentParser:
    """Model, steps and rounds: a parent of the parsers of row D."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--sequences", type=int, default=16, help="of a step")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Row D: training steps.", parents=[size_options()])
    parser.add_argument("--wide-width", type=int, default=768, help="of the model of D-sgemm-wide")
    parser.add_argument("--wide-layers", type=int, default=2)
    parser.add_argument("--side", choices=SIDES, help="measure one side in this process")
    return parser.parse_args(arguments)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    steps, model = draw_steps(options), build_model(options)
    before = peak_bytes()
    run = _run_dmlm if options.side == "dmlm" else run_trainer
    ends, losses = run(model, steps, options)
    return {
        "seconds": (ends[-1] - ends[0]) / (len(ends) - 1),
        "losses": losses,
        "peak_bytes": peak_bytes() - before,
        "sgemm_seconds": time_sides({"sgemm": make_sgemm()}, 3)["sgemm"],
        "sums_seconds": _time_modality_sums(steps),
    }


def draw_steps(options: argparse.Namespace) -> list[list[TaskSequence]]:
    """Sequences of each step; the tasks have equal numbers of sequences."""
    rng = np.random.default_rng(0)
    return [
        [_draw_sequence(number % 4, rng, options) for number in range(options.sequences)]
        for _ in range(options.steps)
    ]


def _draw_sequence(task: int, rng: np.random.Generator, options: argparse.Namespace) -> TaskSequence:
    """ASR, T2S, S2TT or I2T."""
    drawn = (draw_librispeech, draw_librispeech, draw_covost, draw_coco)[task](rng)
    num_source = min(drawn.speech + drawn.image, options.max_length - drawn.text - NUM_FIXED)
    source, text = [2 if drawn.image else 1] * num_source, [0] * drawn.text
    codes = [*text, GIVEN, *source] if task == 1 else [*source, GIVEN, *text]
    modality_T = np.array([GIVEN, GIVEN, *codes, 0], np.int8)
    tokens_T = rng.integers(0, options.vocabulary, len(modality_T)).astype(np.int32)
    return TaskSequence(tokens_T=tokens_T, modality_T=modality_T, num_prompt=2)


def build_model(options: argparse.Namespace) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=options.vocabulary,
            hidden_size=options.width,
            intermediate_size=8 * options.width // 3,
            num_hidden_layers=options.layers,
            num_attention_heads=max(options.width // 64, 1),
            max_position_embeddings=options.max_length,
            tie_word_embeddings=True,
        )
    )


def _run_dmlm(
    model: PreTrainedModel, steps: Sequence[Sequence[TaskSequence]], options: argparse.Namespace
) -> tuple[list[float], list[float]]:
    """Times of the ends of the steps, and their losses."""
    recipe = recipe_from_json(
        {
            "name": "step",
            "num_steps": len(steps),
            "mix": [{"task": "asr", "weight": 1}],
            "sequence": {"max_length": options.max_length},
            "loss": {"normalise": "none"},
            "batch": {"max_tokens": options.sequences * options.max_length},
            "optimizer": {"learning_rate": LEARNING_RATE, "schedule": "constant", "num_warmup_steps": 0},
        }
    )
    take_step, ends, losses = TrainStep(model, recipe, 0, ALONE), [], []
    for number, step in enumerate(steps):
        batch = pack_sequences(step, keys=[""] * len(step), tasks=["asr"] * len(step))
        losses.append(take_step(number, [batch], lambda: False).loss)
        ends.append(time.perf_counter())
    return ends, losses


def _report(runs: Mapping[str, Sequence[Side]], options: argparse.Namespace) -> None:
    steps = draw_steps(options)
    lengths = np.array([len(sequence.tokens_T) for step in steps for sequence in step])
    tokens_per_step = lengths.sum() / options.steps
    seconds = {name: statistics.median(run.seconds for run in sides) for name, sides in runs.items()}
    peaks = {name: statistics.median(run.peak_bytes for run in sides) / 1e6 for name, sides in runs.items()}
    rates = {name: tokens_per_step / time for name, time in seconds.items()}
    reference = np.array(runs["longest"][0].losses)
    details = {
        "vocabulary": options.vocabulary,
        "sequences_a_step": options.sequences,
        "lengths": {q: int(np.quantile(lengths, float(q))) for q in ("0", "0.25", "0.5", "0.75", "1")},
        "mean_length": float(lengths.mean()),
        "first_loss": {name: sides[0].losses[0] for name, sides in runs.items()},
        "loss_difference": {
            name: float(np.abs(np.array(sides[0].losses) - reference).max()) for name, sides in runs.items()
        },
        "peak_MB": peaks,
        "ratio_of_rounds": [
            padded.seconds / ours.seconds for ours, padded in zip(runs["dmlm"], runs["longest"], strict=True)
        ],
        "modality_share": statistics.median(run.sums_seconds / run.seconds for run in runs["dmlm"]),
    }
    title = f"training step of llama {options.layers} x {options.width}"
    for name, target in (("longest", 3.0), ("max", 5.0), ("flattened", 1.2)):
        Row(
            name=f"D-{name}",
            title=f"{title}, beside the Trainer {SIDES[name]}",
            dmlm=rates["dmlm"],
            peers={"Trainer": rates[name]},
            unit="real tokens/s",
            target=target,
            details=details if name == "longest" else {},
        ).print()
    Row(
        name="D-memory",
        title="peak memory that training adds, beside padding to longest",
        dmlm=peaks["dmlm"],
        peers={"Trainer": peaks["longest"]},
        unit="MB",
        target=2.0,
        smaller_is_better=True,
    ).print()


def _report_products(name: str, runs: Sequence[Side], options: argparse.Namespace) -> None:
    lengths = [len(sequence.tokens_T) for step in draw_steps(options) for sequence in step]
    of_weights, of_attention = (
        operations / options.steps / statistics.median(run.seconds for run in runs) / 1e9
        for operations in _count_operations(build_model(options), lengths)
    )
    sgemm = SGEMM_OPERATIONS / statistics.median(run.sgemm_seconds for run in runs) / 1e9
    Row(
        name=name,
        title=f"matrix products of llama {options.layers} x {options.width} over the time of a whole step",
        dmlm=of_weights + of_attention,
        peers={"bare sgemm": sgemm},
        unit="GFLOP/s",
        target=0.6,
        details={
            "ratio_without_attention": of_weights / sgemm,
            "peak_MB": statistics.median(run.peak_bytes for run in runs) / 1e6,
        },
    ).print()


def _count_operations(model: PreTrainedModel, lengths: Sequence[int]) -> tuple[float, float]:
    """Floating-point operations, forward and backward, of products with weights and of those in attention.

    As arXiv 2204.02311 counts them (appendix B), but for what is masked, which is not computed.
    """
    of_weights = 6.0 * sum(p.numel() for p in model.parameters() if p.ndim == 2) * sum(lengths)
    num_pairs = sum(length * (length + 1) // 2 for length in lengths)
    return of_weights, 12.0 * model.config.num_hidden_layers * model.config.hidden_size * num_pairs


def _time_modality_sums(steps: Sequence[Sequence[TaskSequence]]) -> float:
    batches = [pack_sequences(step, tasks=["asr"] * len(step)) for step in steps]

    def run() -> None:
        for batch in batches:
            weights_N = token_weights(batch, count_loss_tokens([batch]), LossConfig())
            sum_by_task(torch.stack([weights_N.float()] * 3, dim=1), batch)

    return time_sides({"sums": run}, 10)["sums"] / len(steps)


if __name__ == "__main__":
    main()
