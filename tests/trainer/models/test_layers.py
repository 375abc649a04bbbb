"""Compiled layers, layers computed twice, and products in bfloat16 beside the plain model."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from dmlm.pipeline.vocabulary import Vocabulary
from dmlm.trainer.config import LossConfig, ModelConfig
from dmlm.trainer.data.packing import PackedBatch, pack_sequences
from dmlm.trainer.data.tasks import TaskSequence
from dmlm.trainer.loss import count_loss_tokens, token_weights
from dmlm.trainer.models.attention import KernelName
from dmlm.trainer.models.layers import checkpoint_layers, compile_layers, layers_of
from dmlm.trainer.models.model import build_model
from dmlm.trainer.models.packed_forward import PackedModel

VOCABULARY = Vocabulary(num_text=258, num_speech=20, num_image=16, bos_id=0, eos_id=0)
OPT = ModelConfig(num_layers=3, width=32, num_heads=2, dropout=0.2)
LLAMA = replace(OPT, architecture="llama")
CASES = pytest.mark.parametrize("config", [OPT, LLAMA], ids=["opt", "llama"])


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def build(config: ModelConfig, text_dir: Path) -> PreTrainedModel:
    return build_model(config, VOCABULARY, text_dir=text_dir, max_length=64, seed=0)


def random_row(seed: int) -> PackedBatch:
    rng = np.random.default_rng(seed)
    sequences = []
    for length in rng.integers(3, 40, rng.integers(2, 8)):
        tokens = rng.integers(0, VOCABULARY.num_used, length).astype(np.int32)
        codes = np.array([-1, *rng.integers(-1, 3, length - 1)], np.int8)
        sequences.append(TaskSequence(tokens_T=tokens, modality_T=codes, num_prompt=1))
    return pack_sequences(sequences)


def run(packed: PackedModel, batch: PackedBatch) -> torch.Tensor:
    """The loss and the gradient of all parameters, in one."""
    packed.zero_grad()
    torch.manual_seed(5)  # for dropout
    loss, _ = packed(batch, token_weights(batch, count_loss_tokens([batch]), LossConfig()))
    loss.backward()
    return torch.cat([loss.detach().float()[None], *(p.grad.ravel() for p in packed.parameters())])


@CASES
def test_layers_computed_twice_give_equal_gradients_with_equal_dropout(
    config: ModelConfig, text_dir: Path
) -> None:
    plain, thrifty = (build(config, text_dir) for _ in range(2))
    checkpoint_layers(thrifty)
    num_runs = []
    for layer in layers_of(thrifty):
        layer.self_attn.register_forward_hook(lambda *_: num_runs.append(1))
    expected, found = (run(PackedModel(model), random_row(0)) for model in (plain, thrifty))
    assert torch.equal(found, expected)
    assert len(num_runs) == 2 * len(layers_of(thrifty)) == 6


@pytest.mark.parametrize(
    ("config", "kernel", "twice"),
    [(OPT, "sequences", False), (LLAMA, "dense", False), (LLAMA, "dense", True)],
)
def test_compiled_layers_give_the_same_and_one_graph_serves_rows_of_any_length(
    config: ModelConfig, kernel: KernelName, twice: bool, text_dir: Path, fresh_compiler: None
) -> None:
    config = replace(config, dropout=0.0)
    plain, compiled = (build(config, text_dir) for _ in range(2))
    expected = [run(PackedModel(plain, kernel), random_row(seed)) for seed in range(6)]
    if twice:
        checkpoint_layers(compiled)
    compile_layers(compiled, "aot_eager")
    packed = PackedModel(compiled, kernel)
    found = [run(packed, random_row(seed)) for seed in range(2)]
    with torch.compiler.set_stance("fail_on_recompile"):
        found += [run(packed, random_row(seed)) for seed in range(2, 6)]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    for vector, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(vector, reference, rtol=1e-4, atol=1e-6)


@pytest.mark.soak  # half a minute of compiling
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++")
def test_graphs_kept_on_disk_bring_no_dropout_of_another_run(
    text_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_compiler: None
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    found = {}
    for dropout in (0.2, 0.0):
        model = build(replace(OPT, dropout=dropout, num_layers=1), text_dir)
        checkpoint_layers(model)
        compile_layers(model)
        found[dropout] = run(PackedModel(model, "dense"), random_row(0))
        torch._dynamo.reset()  # as in another process
    plain = build(replace(OPT, dropout=0.0, num_layers=1), text_dir)
    torch.testing.assert_close(
        found[0.0], run(PackedModel(plain, "dense"), random_row(0)), rtol=1e-4, atol=1e-6
    )


@CASES
def test_products_in_bfloat16_are_close_and_sums_stay_float32(config: ModelConfig, text_dir: Path) -> None:
    model, batch = build(replace(config, dropout=0.0), text_dir), random_row(0)
    exact = run(PackedModel(model), batch)
    rough = run(PackedModel(model, products=torch.bfloat16), batch)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}
    assert rough[0].item() == pytest.approx(exact[0].item(), rel=5e-3)
    error = (rough[1:] - exact[1:]).norm() / exact[1:].norm()
    assert 1e-4 < error < 0.1
