"""What each option of a recipe that costs or saves time or memory does to a training step on this machine.

Sequences and model are those of row D (training_step.py). Each option runs in a process of its own, once per
round, in turn. Seconds are processor time of a step on a CPU, time of the clock on a GPU, without the first
two steps, in which graphs are compiled. Peak memory is what training adds to a process with the model built.

    python benchmarks/step_options.py [--only gradient_checkpointing] [--device cuda]
                                      [--steps, --sequences, --width … as of training_step.py]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
import training_step
from rows import Row, peak_bytes

from dmlm.trainer.config import recipe_from_json
from dmlm.trainer.data.packing import pack_sequences
from dmlm.trainer.distributed import ALONE
from dmlm.trainer.step import TrainStep

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"precision": "float32", "attention": "sequences"},
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "bfloat16": {"precision": "bfloat16"},
    "torch_compile": {"torch_compile": True},
    "dense": {"attention": "dense"},
    "flex": {"attention": "flex"},
    "varlen": {"attention": "varlen", "precision": "bfloat16"},
}
CUDA_ONLY = ("flex", "varlen")
NUM_ROUNDS = 3
"""Fewer than of row D: there are many options, and bfloat16 is slow on a CPU."""
NUM_WARM_UP = 2


def main(arguments: list[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else arguments
    options = _parse(given)
    if options.side is not None:
        torch.set_num_threads(options.threads)
        print(json.dumps(_measure(options)))
        return
    names = ["plain", *options.only] if options.only else list(OPTIONS)
    names = [name for name in names if options.device == "cuda" or name not in CUDA_ONLY]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            command = [sys.executable, __file__, *given, "--side", name]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            runs[name].append(json.loads(output.splitlines()[-1]))
    for name in names[1:]:
        _report(name, runs[name], runs["plain"], options)


def _parse(arguments: list[str]) -> argparse.Namespace:
    sizes = training_step.size_options()
    parser = argparse.ArgumentParser(description="Options of a training step.", parents=[sizes])
    parser.set_defaults(rounds=NUM_ROUNDS)
    parser.add_argument("--only", choices=[*OPTIONS][1:], nargs="+")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--side", choices=OPTIONS, help="measure one in this process")
    return parser.parse_args(arguments)


def _measure(options: argparse.Namespace) -> dict[str, float]:
    steps = training_step.draw_steps(options)
    model = training_step.build_model(options).to(options.device)
    recipe = recipe_from_json(
        {
            "name": "options",
            "num_steps": len(steps),
            "mix": [{"task": "asr", "weight": 1}],
            "sequence": {"max_length": options.max_length},
            "batch": {"max_tokens": options.sequences * options.max_length},
            "optimizer": {"schedule": "constant"},
            **OPTIONS["plain"],
            **OPTIONS[options.side],
        }
    )
    take_step = TrainStep(model, recipe, 0, ALONE)
    on_gpu = options.device == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    before, seconds, loss = _peak_bytes(on_gpu), [], 0.0
    for number, step in enumerate(steps):
        batch = pack_sequences(step, keys=[""] * len(step), tasks=["asr"] * len(step))
        start = clock()
        loss = take_step(number, [batch], lambda: False).loss  # waits for the device
        seconds.append(clock() - start)
    return {
        "seconds": statistics.median(seconds[NUM_WARM_UP:] or seconds),
        "peak_mb": (_peak_bytes(on_gpu) - before) / 1e6,
        "loss": loss,
    }


def _peak_bytes(on_gpu: bool) -> int:
    return torch.cuda.max_memory_allocated() if on_gpu else peak_bytes()


def _report(
    name: str, runs: list[dict[str, float]], plain: list[dict[str, float]], options: argparse.Namespace
) -> None:
    def median(of: list[dict[str, float]], key: str) -> float:
        return statistics.median(run[key] for run in of)

    Row(
        name=f"D-option-{name}",
        title=f"training step of llama {options.layers} x {options.width} with {name}, "
        "beside float32 and one attention call per sequence",
        dmlm=median(runs, "seconds"),
        peers={"plain": median(plain, "seconds")},
        unit="s",
        target=None,
        smaller_is_better=True,
        details={
            "vocabulary": options.vocabulary,
            "sequences_a_step": options.sequences,
            "peak_MB": {"with": median(runs, "peak_mb"), "without": median(plain, "peak_mb")},
            "last_loss": {"with": runs[0]["loss"], "without": plain[0]["loss"]},
        },
    ).print()


if __name__ == "__main__":
    main()
