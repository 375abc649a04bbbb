"""Row E: packing on lengths: how full the batches are, and what choosing costs, beside what is wanted.

In the details is what padding gives. Dynamic padding pads batches of 16 random samples to their longest,
fixed padding pads every sample to the longest of all. The time includes nothing but the choice of rows: no
token is read.

    python benchmarks/packing.py [--samples 20000] [--max-tokens 4096] [--pool-size 64] [--rounds 5]
"""

import argparse
from collections.abc import Iterator, Sequence
from itertools import cycle

import numpy as np
from rows import Row, time_sides
from token_lengths import CORPORA

from dmlm.trainer.data.packing import Packer

WANTED_FILL, WANTED_MICROSECONDS = 0.99, 20.0
BATCH_SIZE = 16
NUM_FIXED_TOKENS = 6  # BOS, opening, closing, task, language, EOS


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    rng = np.random.default_rng(0)
    single = {name: _draw(rng, [name], options.samples) for name in CORPORA}
    mixes = {"mix": _draw(rng, list(CORPORA), options.samples), **single}
    for name, lengths in mixes.items():
        _report(name, lengths, options)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Row E: packing.")
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--max-tokens", type=int, default=4096)
    parser.add_argument("--pool-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args(arguments)


def _draw(rng: np.random.Generator, names: Sequence[str], num_samples: int) -> list[int]:
    choices = rng.choice(names, num_samples)
    return [sum(CORPORA[name](rng)) + NUM_FIXED_TOKENS for name in choices]


def _pack(lengths: Sequence[int], capacity: int, pool_size: int) -> Iterator[list[int]]:
    """Rows of lengths, until all of them were drawn once."""
    draws = ((length, length) for length in cycle(lengths))
    packer = Packer(capacity, pool_size, draws.__next__)
    num_left = len(lengths)
    while num_left > 0:
        row = packer.next_row()
        num_left -= len(row)
        yield row


def _report(name: str, lengths: Sequence[int], options: argparse.Namespace) -> None:
    capacity, pool_size = options.max_tokens, options.pool_size
    rows = list(_pack(lengths, capacity, pool_size))
    fills = [sum(row) / capacity for row in rows]
    batches = [lengths[start : start + BATCH_SIZE] for start in range(0, len(lengths), BATCH_SIZE)]
    padded = sum(len(batch) * max(batch) for batch in batches)
    Row(
        name=f"E-fill-{name}",
        title=f"share of real tokens in batches of {name}",
        dmlm=float(np.mean(fills)),
        peers={"wanted": WANTED_FILL},
        unit="",
        target=1.0,
        details={
            "capacity": capacity,
            "pool": pool_size,
            "emptiest": min(fills),
            "dynamic_padding": sum(lengths) / padded,
            "fixed_padding": float(np.mean(lengths) / max(lengths)),
        },
    ).print()
    seconds = time_sides({"dmlm": lambda: list(_pack(lengths, capacity, pool_size))}, options.rounds)
    Row(
        name=f"E-time-{name}",
        title=f"choosing rows of {name}",
        dmlm=seconds["dmlm"] / len(lengths) * 1e6,
        peers={"wanted": WANTED_MICROSECONDS},
        unit="microseconds per sample",
        target=1.0,
        smaller_is_better=True,
    ).print()


if __name__ == "__main__":
    main()
