"""How exact the loss is: its value and its gradient beside a float64 reference, in every layout.

One global batch of random sequences of all three modalities is cut into micro-batches of whole sequences in
every way that packing × accumulation {1, 2, 3} × ranks {1, 2, 4} × DDP or FSDP2 gives; some of them lack a
modality. The other two of `normalise` run with the last of the accumulations. The reference runs stock
transformers in float64 on one sequence at a time, in one process, and adds up its cross-entropies as the
formula says. Errors are |value - reference| / |reference|, and the same of norms for the gradient of all
parameters together, before clipping.

    python benchmarks/loss_exactness.py [--ranks 1 2 4] [--accumulation 1 2 3]
"""

import argparse
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise, product, repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, get_args

import numpy as np
import torch
import torch.multiprocessing
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedModel

from dmlm.trainer.config import LossConfig
from dmlm.trainer.data.packing import PackedBatch, pack_sequences
from dmlm.trainer.data.tasks import MODALITIES, TaskSequence
from dmlm.trainer.distributed import Ranks, gradients_kept_back, join_ranks, spread, whole_tensor
from dmlm.trainer.loss import LossCounts, count_loss_tokens, token_weights
from dmlm.trainer.models.packed_forward import PackedModel

NUM_IDS, NUM_SEQUENCES, WIDTH = 320, 24, 32
Normalise = Literal["batch", "sequence", "none"]
References = Mapping[tuple[str, Normalise], tuple[float, Tensor]]
"""Loss and gradient of each model and `normalise`."""
SLOW_IMPORTS = ["dmlm.trainer.models.packed_forward", "transformers.models.opt.modeling_opt"]
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way to run the global batch."""

    model: Literal["opt", "llama"]
    parallel: Literal["ddp", "fsdp2"]
    packed: bool
    """Several sequences a micro-batch; else one, and as many micro-batches as it takes."""
    num_ranks: int
    num_micro_batches: int
    """Of each rank."""
    dtype: Literal["float32", "float64"]
    normalise: Normalise


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Relative to the reference."""

    value: float
    gradient: float


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    torch.multiprocessing.set_forkserver_preload(SLOW_IMPORTS)
    references: References = {
        (kind, normalise): _reference(kind, normalise)
        for kind, normalise in product(("opt", "llama"), get_args(Normalise))
    }
    results: list[tuple[Layout, Errors]] = []
    for num_ranks in options.ranks:
        with TemporaryDirectory() as directory:
            torch.multiprocessing.start_processes(
                _measure_all,
                (num_ranks, options.accumulation, references, _free_port(), Path(directory) / "errors.jsonl"),
                nprocs=num_ranks,
                start_method="forkserver",
            )
            lines = (Path(directory) / "errors.jsonl").read_text().splitlines()
        results += [(Layout(**line["layout"]), Errors(**line["errors"])) for line in map(json.loads, lines)]
    _report(results)
    value, gradient = _mean_of_means(references["opt", "batch"])
    print(f"\nFor comparison, the mean of three micro-batches' own losses: {value:.0e} / {gradient:.0e}")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The loss beside a float64 reference.")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--accumulation", type=int, nargs="+", default=[1, 2, 3])
    return parser.parse_args(arguments)


def _measure_all(
    rank: int,
    num_ranks: int,
    accumulation: Sequence[int],
    references: References,
    port: int,
    out_path: Path,
) -> None:
    """What each process does; the first one writes."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(num_ranks), LOCAL_RANK=str(rank))
    with join_ranks(os.environ, "cpu") as ranks:
        for layout in _layouts(num_ranks, accumulation):
            loss, gradient = _run(layout, ranks)
            expected_loss, expected_gradient = references[layout.model, layout.normalise]
            errors = Errors(
                value=abs(loss - expected_loss) / expected_loss,
                gradient=((gradient - expected_gradient).norm() / expected_gradient.norm()).item(),
            )
            if ranks.is_first:
                with out_path.open("a") as file:
                    file.write(json.dumps({"layout": asdict(layout), "errors": asdict(errors)}) + "\n")


def _layouts(num_ranks: int, accumulation: Sequence[int]) -> Iterator[Layout]:
    shapes: list[tuple[bool, int, Normalise]] = [
        *((True, number, "batch") for number in accumulation),
        (True, accumulation[-1], "sequence"),
        (True, accumulation[-1], "none"),
        (False, NUM_SEQUENCES // num_ranks, "batch"),
    ]
    for model, dtype, parallel in product(("opt", "llama"), DTYPES, ("ddp", "fsdp2")):
        for packed, num_micro_batches, normalise in shapes:
            yield Layout(
                model=model,
                parallel=parallel,
                packed=packed,
                num_ranks=num_ranks,
                num_micro_batches=num_micro_batches,
                dtype=dtype,
                normalise=normalise,
            )


def _build_model(kind: str) -> PreTrainedModel:
    """A small model without dropout: OPT with a tied head, Llama with one of its own."""
    torch.manual_seed(0)
    sizes = {"vocab_size": NUM_IDS, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "opt":
        return OPTForCausalLM(OPTConfig(**sizes, ffn_dim=64, word_embed_proj_dim=WIDTH, dropout=0.0))
    return LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=64, tie_word_embeddings=False))


def _draw_sequences() -> list[TaskSequence]:
    """Sequences of one to three modalities; image tokens are rare, so that most micro-batches have none."""
    rng = np.random.default_rng(0)
    sequences = []
    for number in range(NUM_SEQUENCES):
        kinds = [-1, 0, 1] if number % 8 else [2]
        codes = rng.choice(kinds, int(rng.integers(4, 40)))
        tokens = rng.integers(0, NUM_IDS, len(codes) + 1)
        sequences.append(
            TaskSequence(
                tokens_T=tokens.astype(np.int32), modality_T=np.array([-1, *codes], np.int8), num_prompt=1
            )
        )
    return sequences


def _reference(kind: str, normalise: Normalise) -> tuple[float, Tensor]:
    """Loss and gradient by the formula: stock model, float64, one sequence at a time, nothing of dmlm."""
    model, config = _build_model(kind).double(), LossConfig()
    losses, codes = [], []
    for sequence in _draw_sequences():
        tokens_T = torch.tensor(sequence.tokens_T, dtype=torch.int64)
        shares_TV = model(input_ids=tokens_T[None]).logits[0].log_softmax(dim=-1)
        places_N = torch.tensor(np.flatnonzero(sequence.modality_T >= 0))
        losses.append(-shares_TV[places_N - 1, tokens_T[places_N]])
        codes.append(torch.tensor(sequence.modality_T)[places_N])
    if normalise == "none":
        loss = torch.cat(losses).mean()
    elif normalise == "batch":
        loss = _weigh_means(torch.cat(losses), torch.cat(codes), config)
    else:
        loss = torch.stack(list(map(_weigh_means, losses, codes, repeat(config)))).mean()
    loss.backward()
    return loss.item(), _flatten(model)


def _weigh_means(losses_N: Tensor, modality_N: Tensor, config: LossConfig) -> Tensor:
    """Sum over the modalities that are present of weight × mean."""
    present = modality_N.unique().tolist()
    means = [getattr(config, MODALITIES[code]) * losses_N[modality_N == code].mean() for code in present]
    return torch.stack(means).sum()


def _run(layout: Layout, ranks: Ranks) -> tuple[float, Tensor]:
    """Loss and gradient as the trainer makes them."""
    model = _build_model(layout.model).to(DTYPES[layout.dtype])
    packed = spread(PackedModel(model), ranks, layout.parallel)
    config = LossConfig(normalise=layout.normalise)
    batches = _micro_batches(layout)[ranks.rank :: ranks.world_size]
    mine = count_loss_tokens(batches)
    counts = LossCounts(ranks.sum(mine.num_tokens_M), ranks.sum(mine.num_sequences))
    total = torch.zeros((), dtype=torch.float64)
    for index, batch in enumerate(batches):
        with gradients_kept_back(packed, index < len(batches) - 1):
            loss, _ = packed(batch, token_weights(batch, counts, config))
            loss.backward()
        total += loss.detach()
    return ranks.sum(total).item(), _flatten(model)


def _mean_of_means(reference: tuple[float, Tensor]) -> tuple[float, float]:
    """Errors of what accumulation gives when every micro-batch counts its own tokens."""
    model = _build_model("opt").double()
    packed, total = PackedModel(model), 0.0
    sequences, borders = _draw_sequences(), (0, 8, 16, NUM_SEQUENCES)
    for batch in [pack_sequences(sequences[i:j]) for i, j in pairwise(borders)]:
        loss, _ = packed(batch, token_weights(batch, count_loss_tokens([batch]), LossConfig()) / 3)
        loss.backward()
        total += loss.item()
    gradient_error = (_flatten(model) - reference[1]).norm() / reference[1].norm()
    return abs(total - reference[0]) / reference[0], gradient_error.item()


def _micro_batches(layout: Layout) -> list[PackedBatch]:
    sequences = _draw_sequences()
    num_rows = layout.num_ranks * layout.num_micro_batches
    borders = np.linspace(0, len(sequences), num_rows + 1).astype(int)
    return [pack_sequences(sequences[i:j]) for i, j in pairwise(borders)]


def _flatten(model: PreTrainedModel) -> Tensor:
    return torch.cat([whole_tensor(p.grad).double().flatten() for p in model.parameters()])


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _report(results: Sequence[tuple[Layout, Errors]]) -> None:
    """Markdown: the worse of the two models in each layout, value / gradient."""
    columns = list(product(DTYPES, ("ddp", "fsdp2")))
    print(
        "| ranks | rows of a rank | "
        + " | ".join(f"{dtype}, {parallel}" for dtype, parallel in columns)
        + " |"
    )
    print("|---|---|" + "---|" * len(columns))
    rows = dict.fromkeys((o.num_ranks, o.packed, o.num_micro_batches, o.normalise) for o, _ in results)
    for num_ranks, packed, num_micro_batches, normalise in rows:
        cells = []
        for dtype, parallel in columns:
            errors = [
                error
                for layout, error in results
                if (layout.num_ranks, layout.packed, layout.num_micro_batches, layout.normalise)
                == (num_ranks, packed, num_micro_batches, normalise)
                and (layout.dtype, layout.parallel) == (dtype, parallel)
            ]
            worst = max(error.value for error in errors), max(error.gradient for error in errors)
            cells.append(f"{worst[0]:.0e} / {worst[1]:.0e}")
        shape = "packed" if packed else "one sequence each"
        loss = "" if normalise == "batch" else f", `{normalise}`"
        print(f"| {num_ranks} | {num_micro_batches}, {shape}{loss} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
