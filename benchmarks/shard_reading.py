"""Row C: shards to samples and to packed batches, dmlm beside a stock webdataset loop on the very same tars.

C-random: the token arrays of every sample, in random order. C-batch: the same shuffled, laid out as ASR
sequences and packed into rows; its figures with tensors hold when the labels of a row are made too, which a
GPU does. C-resume: from nothing to the first row behind a state that was kept. webdataset's loop shuffles and
decodes, no more; `arrays only` is told to leave the json alone. Before anything is timed, the tokens of all
sides are compared sample by sample, and the row behind the state with the one that comes without stopping.

    python benchmarks/shard_reading.py [--samples 6000] [--shards 6] [--rounds 5] [--max-tokens 8192]
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import webdataset
from rows import Row, time_sides
from token_lengths import draw_librispeech

from dmlm.pipeline.samples import Sample, TokenArray
from dmlm.pipeline.shards import write_shard
from dmlm.pipeline.tokenization.output_folder import publish
from dmlm.pipeline.vocabulary import Vocabulary
from dmlm.trainer.config import recipe_from_json
from dmlm.trainer.data.dataset import TrainingData, open_training_data
from dmlm.trainer.data.packing import PackedBatch
from dmlm.trainer.data.stream import TokenStream

NUM_AT_ONCE = 256
WANTED_RESUME_SECONDS = 1.0
VOCABULARY = Vocabulary(num_text=400, num_speech=2000, num_image=0, bos_id=0, eos_id=0)
Tokens = dict[str, tuple[TokenArray, TokenArray]]


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    torch.set_num_threads(1)
    with TemporaryDirectory() as directory:
        tars = _write(Path(directory), options.samples, options.shards)
        _report(_Sides(Path(directory), tars, options.max_tokens), options)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Row C: reading shards.")
    parser.add_argument("--samples", type=int, default=6000)
    parser.add_argument("--shards", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=8192, help="capacity of a packed row")
    return parser.parse_args(arguments)


def _write(directory: Path, num_samples: int, num_shards: int) -> list[str]:
    samples = list(_draw_samples(num_samples))
    finished = []
    for number in range(num_shards):
        part, name = samples[number::num_shards], f"benchmark-{number:06d}"
        finished.append(write_shard(directory, name, part, VOCABULARY, task_sha256=name, num_in=len(part)))
    fingerprints = {modality: {"sha256": modality} for modality in ("speech", "text")}
    recipe = {"fingerprints": fingerprints, "text_rule": "none", "settings": {}}
    card = publish(directory, "benchmark", finished, recipe, VOCABULARY, "none", codebook_files=())
    return [str(directory / f"{record.name}.tar") for record in card.shards]


def _draw_samples(num_samples: int) -> Iterator[Sample]:
    rng = np.random.default_rng(0)
    for number in range(num_samples):
        lengths = draw_librispeech(rng)
        yield Sample(
            key=f"utterance-{number:07d}",
            source="librispeech",
            split="train",
            language="en",
            text="".join(map(chr, rng.integers(97, 123, 2 * lengths.text))),
            duration_seconds=lengths.speech / 50,
            speech_tokens=rng.integers(0, VOCABULARY.num_speech, lengths.speech).astype(np.int32),
            text_tokens=rng.integers(0, VOCABULARY.num_text, lengths.text).astype(np.int32),
        )


class _Sides:
    """What is timed; each side goes once over all samples."""

    def __init__(self, directory: Path, tars: list[str], max_tokens: int) -> None:
        self._directory, self._tars = directory, tars
        self.data = open_training_data([directory])
        self._rng = np.random.default_rng(0)
        self._recipe = recipe_from_json(
            {
                "name": "benchmark",
                "num_steps": 1,
                "mix": [{"task": "asr", "weight": 1}],
                "batch": {"max_tokens": max_tokens},
            }
        )
        self.stream = TokenStream(self.data, self._recipe, seed=0)

    def stock(self, only: str = "") -> Iterator[Mapping[str, Any]]:
        dataset = webdataset.WebDataset(
            self._tars,
            shardshuffle=len(self._tars),
            select_files=lambda name: name.endswith(only),
        )
        return iter(dataset.shuffle(1000).decode())

    def read_stock(self, only: str = "") -> None:
        for _ in self.stock(only):
            pass

    def read_random(self) -> None:
        order = self._rng.permutation(len(self.data.index))
        for start in range(0, len(order), NUM_AT_ONCE):
            for member in ("speech", "text"):
                self.data.tokens.read(order[start : start + NUM_AT_ONCE], member)

    def pack(self, *, tensors: bool) -> None:
        num_left = len(self.data.index)
        while num_left > 0:
            for batch in self.stream.next_step():
                num_left -= len(batch.keys)
                if tensors:
                    batch.targets_N  # noqa: B018  # makes all of them

    def resume(self) -> list[PackedBatch]:
        stream = TokenStream(open_training_data([self._directory]), self._recipe, seed=0)
        stream.restore(self.stream.state())
        return stream.next_step()


def _tokens_of_stock(sides: _Sides) -> Tokens:
    return {entry["__key__"]: (entry["speech.npy"], entry["text.npy"]) for entry in sides.stock()}


def _tokens_of_table(data: TrainingData) -> Tokens:
    rows = np.arange(len(data.index))
    arrays = []
    for member in ("speech", "text"):
        tokens, counts = data.tokens.read(rows, member)
        arrays.append(np.split(tokens, np.cumsum(counts)[:-1]))
    return dict(zip(data.index["key"].to_pylist(), zip(*arrays, strict=True), strict=True))


def _tokens_of_batches(sides: _Sides) -> Tokens:
    """Units and text out of `BOS <speech> units </speech> <asr> <en> text EOS`."""
    found: Tokens = {}
    speech, closing = VOCABULARY.speech.start, VOCABULARY.special_id("</speech>")
    while len(found) < len(sides.data.index):
        for batch in sides.stream.next_step():
            sequences = np.split(batch.tokens_T.numpy(), np.cumsum(batch.lengths)[:-1])
            for key, sequence in zip(batch.keys, sequences, strict=True):
                end = int(np.flatnonzero(sequence == closing)[0])
                found[key] = (sequence[2:end] - speech, sequence[end + 3 : -1])
    return found


def _share_of_equal(expected: Tokens, found: Tokens) -> float:
    equal = [
        key in found and all(np.array_equal(*pair) for pair in zip(arrays, found[key], strict=True))
        for key, arrays in expected.items()
    ]
    return float(np.mean(equal)) if len(found) == len(expected) else 0.0


def _report(sides: _Sides, options: argparse.Namespace) -> None:
    expected = _tokens_of_stock(sides)
    same = {
        "C-random": _share_of_equal(expected, _tokens_of_table(sides.data)),
        "C-batch": _share_of_equal(expected, _tokens_of_batches(sides)),
    }
    # In this order: both begin at the same state.
    resumed, next_step = sides.resume(), sides.stream.next_step()
    assert [batch.keys for batch in resumed] == [batch.keys for batch in next_step]
    seconds = time_sides(
        {
            "C-random": sides.read_random,
            "C-batch": lambda: sides.pack(tensors=False),
            "tensors": lambda: sides.pack(tensors=True),
            "C-resume": sides.resume,
            "webdataset": sides.read_stock,
            "webdataset, arrays only": lambda: sides.read_stock(".npy"),
        },
        options.rounds,
    )
    rates = {name: options.samples / value for name, value in seconds.items()}
    peers = {name: rate for name, rate in rates.items() if name.startswith("webdataset")}
    num_tokens = sum(len(speech) + len(text) for speech, text in expected.values())
    titles = {
        "C-random": "samples in random order",
        "C-batch": f"shuffled, packed to {options.max_tokens}, batched",
    }
    for name, target in (("C-random", 100.0), ("C-batch", 25.0)):
        details = {"same_samples": same[name], "million_tokens_per_second": num_tokens / seconds[name] / 1e6}
        if name == "C-batch":
            details["ratio with tensors"] = rates["tensors"] / max(peers.values())
            details["million tokens per second with tensors"] = num_tokens / seconds["tensors"] / 1e6
        Row(
            name=name,
            title=titles[name],
            dmlm=rates[name],
            peers=peers,
            unit="samples/s",
            target=target,
            details=details,
        ).print()
    Row(
        name="C-resume",
        title="from nothing to the first row behind a kept state, "
        f"{options.samples} samples in {options.shards} shards",
        dmlm=seconds["C-resume"],
        peers={"wanted": WANTED_RESUME_SECONDS},
        unit="s",
        target=1.0,
        smaller_is_better=True,
    ).print()


if __name__ == "__main__":
    main()
