"""Row F: decoding, dmlm beside `generate` of transformers, at batch 1 and at batch 32 of mixed lengths.

Models with random weights, so the lengths of the outputs are drawn beforehand; both sides emit text only. To
`generate` prompts of similar length come together, padded on the left, with its dynamic or static cache.
Seconds are those of all prompts, reading included; ids are compared prompt by prompt. Every side is timed on
one thread and on several, and its better time counts.

    python benchmarks/decoding.py [--prompts 96] [--single 8] [--longest 150] [--rounds 5] [--threads 2]
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from rows import Row, time_sides

from dmlm.pipeline.samples import TokenArray
from dmlm.pipeline.vocabulary import Vocabulary
from dmlm.trainer.config import ModelConfig
from dmlm.trainer.decoding import Constraint, DecodingConfig, constraint_of, decode
from dmlm.trainer.decoding.modality_mask import ModalityMask
from dmlm.trainer.models.architectures import new_model

BATCH_SIZE: Final = 32
NUM_POSITIONS: Final = 1024
PROMPT_LENGTHS: Final = (40, 250)
SHORTEST_OUTPUT: Final = 10
VOCABULARY: Final = Vocabulary(num_text=258, num_speech=100, num_image=128, bos_id=0, eos_id=0)
MODELS: Final = {
    "llama 4 x 128": ModelConfig(architecture="llama", num_layers=4, width=128, num_heads=4, dropout=0.0),
    "opt 6 x 384": ModelConfig(architecture="opt", num_layers=6, width=384, num_heads=6, dropout=0.0),
}
"""The demo's model, and one with ten times its weights."""
CACHES: Final = {"generate": {}, "generate, static cache": {"cache_implementation": "static"}}

Outputs = dict[int, list[int]]


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    constraint = constraint_of("asr", VOCABULARY)
    rng = np.random.default_rng(0)
    lengths = rng.integers(*PROMPT_LENGTHS, options.prompts)
    speech = VOCABULARY.speech
    prompts = [rng.integers(speech.start, speech.stop, length).astype(np.int32) for length in lengths]
    limits = rng.integers(SHORTEST_OUTPUT, options.longest + 1, options.prompts).tolist()
    for name, config in MODELS.items():
        model = _build_model(config)
        for batch_size, chosen, target in (
            (1, prompts[: options.single], 3.0),
            (BATCH_SIZE, prompts, 8.0),
        ):
            sides = _sides(model, chosen, constraint, batch_size, limits[: len(chosen)])
            _report(name, batch_size, chosen, sides, target, options)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Row F: decoding.")
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--single", type=int, default=8, help="prompts at batch 1")
    parser.add_argument("--longest", type=int, default=150, help="output, in tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="beside one thread")
    return parser.parse_args(arguments)


def _build_model(config: ModelConfig) -> Any:
    model = new_model(config, VOCABULARY.size, NUM_POSITIONS, seed=0).eval()
    with torch.no_grad():
        # Large weights: far apart logits, so that rounding decides nothing.
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
        model.get_input_embeddings().weight[VOCABULARY.eos_id] = 0
    return model


def _sides(
    model: Any, prompts: Sequence[TokenArray], constraint: Constraint, batch_size: int, limits: list[int]
) -> dict[str, Callable[[], Outputs]]:
    config = DecodingConfig(batch_size=batch_size)

    def ours() -> Outputs:
        outputs = decode(model, prompts, constraint, config, max_new_tokens=limits)
        return {output.index: output.tokens.tolist() for output in outputs}

    sides = {"dmlm": ours}
    for name, settings in CACHES.items():
        sides[name] = lambda settings=settings: _generate(model, prompts, batch_size, limits, settings)
    return sides


@torch.inference_mode()
def _generate(
    model: Any, prompts: Sequence[TokenArray], batch_size: int, limits: list[int], settings: Mapping[str, Any]
) -> Outputs:
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    mask, end_id = ModalityMask(VOCABULARY, "asr"), VOCABULARY.eos_id
    outputs: Outputs = {}
    for start in range(0, len(prompts), batch_size):
        indices = by_length[start : start + batch_size]
        longest = max(len(prompts[index]) for index in indices)
        tokens_BT = torch.zeros(len(indices), longest, dtype=torch.long)
        mask_BT = torch.zeros_like(tokens_BT)
        for row, index in enumerate(indices):
            tokens_BT[row, longest - len(prompts[index]) :] = torch.from_numpy(prompts[index])
            mask_BT[row, longest - len(prompts[index]) :] = 1
        generated = model.generate(
            tokens_BT,
            attention_mask=mask_BT,
            logits_processor=[mask, _Ends(longest, [limits[index] for index in indices])],
            max_new_tokens=max(limits[index] for index in indices) + 1,
            do_sample=False,
            eos_token_id=end_id,
            pad_token_id=end_id,
            **settings,
        )
        for index, row in zip(indices, generated[:, longest:].tolist(), strict=True):
            outputs[index] = row[: [*row, end_id].index(end_id)]
    return outputs


class _Ends:
    """Ends each output of `generate` at its length."""

    def __init__(self, num_prompt: int, limits: list[int]) -> None:
        self._stops_B = torch.tensor(limits) + num_prompt

    def __call__(self, input_ids: torch.Tensor, scores_BV: torch.Tensor) -> torch.Tensor:
        is_over_B = self._stops_B <= input_ids.shape[1]
        if is_over_B.any():
            scores_BV[is_over_B] = -torch.inf
            scores_BV[is_over_B, VOCABULARY.eos_id] = 0
        return scores_BV


def _report(
    name: str,
    batch_size: int,
    prompts: Sequence[TokenArray],
    sides: Mapping[str, Callable[[], Outputs]],
    target: float,
    options: argparse.Namespace,
) -> None:
    ours, theirs = sides["dmlm"](), sides["generate"]()
    lengths = [len(output) for output in ours.values()]
    seconds = _time_on_threads(sides, sorted({1, options.threads}), options.rounds)
    rates = {side: sum(lengths) / min(times.values()) for side, times in seconds.items()}
    Row(
        name=f"F-{name.split()[0]}-batch{batch_size}",
        title=f"decoding with {name}, batch {batch_size}",
        dmlm=rates.pop("dmlm"),
        peers=rates,
        unit="tokens/s",
        target=target,
        details={
            "prompts": len(prompts),
            "of_equal_ids": sum(ours[index] == theirs[index] for index in ours) / len(ours),
            "mean_output": float(np.mean(lengths)),
            "longest_output": max(lengths),
            "threads": {side: min(times, key=times.__getitem__) for side, times in seconds.items()},
        },
    ).print()


def _time_on_threads(
    sides: Mapping[str, Callable[[], Outputs]], threads: Sequence[int], num_rounds: int
) -> dict[str, dict[int, float]]:
    """Median seconds of each side by its number of threads."""

    def on(num_threads: int, run: Callable[[], Outputs]) -> None:
        torch.set_num_threads(num_threads)
        run()

    names = [(side, number) for side in sides for number in threads]
    timed = time_sides({f"{s} {n}": partial(on, n, sides[s]) for s, n in names}, num_rounds)
    return {side: {number: timed[f"{side} {number}"] for number in threads} for side in sides}


if __name__ == "__main__":
    main()
