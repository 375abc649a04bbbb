"""Every kernel attends as one call per sequence does."""

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from dmlm.pipeline.errors import ConfigError
from dmlm.trainer.config import Recipe, recipe_from_json
from dmlm.trainer.data.packing import PackedBatch, pack_sequences
from dmlm.trainer.data.tasks import TaskSequence
from dmlm.trainer.models.attention import KERNELS, choose_kernel

LENGTHS = (7, 1, 40, 3, 130, 12)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def row(lengths: tuple[int, ...] = LENGTHS) -> PackedBatch:
    return pack_sequences(
        [
            TaskSequence(tokens_T=np.zeros(n, np.int32), modality_T=np.full(n, -1, np.int8), num_prompt=1)
            for n in lengths
        ]
    )


def heads(num_key_heads: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Query, key and value of 4 heads."""
    torch.manual_seed(0)
    shapes = [(1, number, sum(LENGTHS), 16) for number in (4, num_key_heads, num_key_heads)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def attend(name: str, inputs: list[torch.Tensor], scale: float | None = None) -> torch.Tensor:
    kernel = KERNELS[name]
    return kernel.attend(*inputs, kernel.lay_out(row()), scale, 0.0)


@pytest.mark.parametrize("num_key_heads", [4, 2])
def test_a_dense_mask_gives_the_same_values_and_gradients(num_key_heads: int) -> None:
    expected_inputs, inputs = (heads(num_key_heads, torch.float64) for _ in range(2))
    expected, found = attend("sequences", expected_inputs, 0.3), attend("dense", inputs, 0.3)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    weights = torch.rand_like(expected)
    for output in (expected, found):
        (output * weights).sum().backward()
    for tensor, reference in zip(inputs, expected_inputs, strict=True):
        torch.testing.assert_close(tensor.grad, reference.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_gives_the_same_values() -> None:
    inputs = [tensor.detach() for tensor in heads(2, torch.float32)]
    torch.testing.assert_close(attend("flex", inputs, 0.3), attend("sequences", inputs, 0.3))


def attend_end_to_end(
    query_THD: torch.Tensor,
    key_THD: torch.Tensor,
    value_THD: torch.Tensor,
    query_bounds_S: torch.Tensor,
    key_bounds_S: torch.Tensor,
    max_query: int,
    max_key: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> torch.Tensor:
    """What torch documents of `varlen_attn`, which itself runs on CUDA only."""
    assert window_size == (-1, 0)  # causal
    assert query_bounds_S.dtype == key_bounds_S.dtype == torch.int32
    borders = query_bounds_S.tolist()
    assert borders == key_bounds_S.tolist() == [0, *np.cumsum(LENGTHS).tolist()]
    assert max(LENGTHS) <= max_query == max_key
    outputs = []
    for start, stop in pairwise(borders):
        q, k, v = (part[start:stop].transpose(0, 1)[None] for part in (query_THD, key_THD, value_THD))
        output = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=enable_gqa)
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)


def test_varlen_is_called_as_torch_documents_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", attend_end_to_end)
    inputs = heads(2, torch.float64)
    torch.testing.assert_close(attend("varlen", inputs, 0.3), attend("sequences", inputs, 0.3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["dense", "flex", "varlen"])
def test_on_a_gpu_every_kernel_gives_the_same_values_and_gradients(name: str) -> None:
    outputs, gradients = [], []
    for kernel in (KERNELS["sequences"], KERNELS[name]):
        inputs = [tensor.detach().cuda().bfloat16().requires_grad_() for tensor in heads(2, torch.float32)]
        output = kernel.attend(*inputs, kernel.lay_out(row().to(CUDA)), 0.3, 0.0)
        output.float().square().sum().backward()
        outputs.append(output)
        gradients.append(torch.cat([tensor.grad.ravel() for tensor in inputs]))
    torch.testing.assert_close(*outputs, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(*gradients, rtol=5e-2, atol=5e-2)


def recipe(**more: Any) -> Recipe:
    plain = {"name": "r", "num_steps": 1, "mix": [{"task": "asr", "weight": 1}]}
    return recipe_from_json(json.loads(json.dumps(plain | more)))


def llama(dropout: float) -> PreTrainedModel:
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=8, attention_dropout=dropout, **shape))


@pytest.mark.parametrize(
    ("device", "products", "max_tokens", "dropout", "expected"),
    [
        (CPU, torch.float32, 4096, 0.0, "sequences"),
        (CPU, torch.bfloat16, 4096, 0.1, "sequences"),
        (CUDA, torch.bfloat16, 4096, 0.0, "varlen"),
        (CUDA, torch.bfloat16, 512, 0.0, "varlen"),
        (CUDA, torch.float32, 512, 0.0, "dense"),
        (CUDA, torch.float32, 4096, 0.0, "flex"),
        (CUDA, torch.bfloat16, 512, 0.1, "dense"),
        (CUDA, torch.bfloat16, 4096, 0.1, "sequences"),
    ],
)
def test_the_kernel_follows_from_the_device_the_row_and_the_dropout(
    device: torch.device, products: torch.dtype, max_tokens: int, dropout: float, expected: str
) -> None:
    short = recipe(batch={"max_tokens": max_tokens}, sequence={"max_length": 64})
    assert choose_kernel(short, llama(dropout), device, products) == expected


def test_a_kernel_can_be_forced_where_it_can_train() -> None:
    assert choose_kernel(recipe(attention="dense"), llama(0.1), CPU, torch.float32) == "dense"
    assert choose_kernel(recipe(attention="sequences"), llama(0.0), CUDA, torch.bfloat16) == "sequences"
    for name in ("flex", "varlen"):
        with pytest.raises(ConfigError, match=f"attention: {name} needs CUDA.*here: cpu, bfloat16"):
            choose_kernel(recipe(attention=name), llama(0.0), CPU, torch.bfloat16)
        gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=1, attn_pdrop=0.1))
        with pytest.raises(ConfigError, match=r"dropout 0\.1"):
            choose_kernel(recipe(attention=name), gpt2, CUDA, torch.bfloat16)
