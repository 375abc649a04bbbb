"""The loss of one row: dmlm's chunks beside plain logits and cross-entropy, memory and time.

Each side runs in a process of its own; its time is that of the processor, median of the rounds. Peak memory
is what forward and backward add to the hidden states and the weights.

    python benchmarks/loss_memory.py [--tokens 4096] [--vocabulary 68000] [--width 768] [--rounds 3]
                                     [--threads 2]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from rows import Row, peak_bytes
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from dmlm.trainer.linear_cross_entropy import linear_cross_entropy

SIDES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "dmlm": lambda h_ND, w_VD, t_N, weights_N: linear_cross_entropy(h_ND, w_VD, None, t_N, weights_N)[0],
    "plain": lambda h_ND, w_VD, t_N, weights_N: (
        cross_entropy(linear(h_ND, w_VD), t_N, reduction="none").double() * weights_N
    ).sum(),
}


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    if options.side is not None:
        print(json.dumps(_measure(options)))
        return
    given = arguments if arguments is not None else sys.argv[1:]
    results = {}
    for side in SIDES:
        command = [sys.executable, __file__, *given, "--side", side]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        results[side] = json.loads(output.splitlines()[-1])
    seconds = {side: result["seconds"] for side, result in results.items()}
    Row(
        name=f"D-loss-{options.vocabulary}",
        title=f"loss of {options.tokens} tokens, vocabulary {options.vocabulary}, width {options.width}",
        dmlm=results["dmlm"]["peak_mb"],
        peers={"plain": results["plain"]["peak_mb"]},
        unit="MB",
        target=None,
        smaller_is_better=True,
        details={"cpu_seconds": seconds, "loss": {side: result["loss"] for side, result in results.items()}},
    ).print()


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Memory and time of the loss.")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=68_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--side", choices=list(SIDES), help="measure one side in this process")
    return parser.parse_args(arguments)


def _measure(options: argparse.Namespace) -> dict[str, float]:
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    hidden_ND = torch.randn(options.tokens, options.width, requires_grad=True)
    weight_VD = torch.randn(options.vocabulary, options.width).div_(options.width**0.5).requires_grad_()
    targets_N = torch.randint(0, options.vocabulary, (options.tokens,))
    weights_N = torch.full((options.tokens,), 1 / options.tokens, dtype=torch.float64)
    before, seconds = peak_bytes(), []
    for _ in range(options.rounds):
        hidden_ND.grad = weight_VD.grad = None
        start = time.process_time()
        loss = SIDES[options.side](hidden_ND, weight_VD, targets_N, weights_N)
        loss.backward()
        seconds.append(time.process_time() - start)
    return {
        "seconds": statistics.median(seconds),
        "peak_mb": (peak_bytes() - before) / 1e6,
        "loss": loss.item(),
    }


if __name__ == "__main__":
    main()
