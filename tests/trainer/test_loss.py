import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlm.trainer import linear_cross_entropy as linear_cross_entropy_module
from dmlm.trainer.config import LossConfig
from dmlm.trainer.data.packing import PackedBatch, pack_sequences
from dmlm.trainer.data.tasks import MODALITIES, TASKS, TaskSequence
from dmlm.trainer.linear_cross_entropy import chunk_tokens, linear_cross_entropy
from dmlm.trainer.loss import count_loss_tokens, sum_by_task, token_weights

NUM_IDS = 11
LAMBDAS = {"text": 0.93, "speech": 0.25, "image": 0.25}

# A sequence is the modality codes of its tokens behind BOS.
SEQUENCES = st.lists(
    st.lists(st.sampled_from([-1, 0, 1, 2]), min_size=1, max_size=12), min_size=1, max_size=8
).filter(lambda sequences: any(code >= 0 for codes in sequences for code in codes))


def batch_of(sequences: Sequence[Sequence[int]], rng: np.random.Generator) -> PackedBatch:
    return pack_sequences(
        [
            TaskSequence(
                tokens_T=rng.integers(0, NUM_IDS, len(codes) + 1).astype(np.int32),
                modality_T=np.array([-1, *codes], np.int8),
                num_prompt=1,
            )
            for codes in sequences
        ],
        tasks=["asr"] * len(sequences),
    )


def loss_of_logits(
    logits: torch.Tensor, batch: PackedBatch, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted loss, and losses of the tokens: a head that is the identity."""
    return linear_cross_entropy(
        logits, torch.eye(NUM_IDS, dtype=logits.dtype), None, batch.targets_N, weights
    )


def cross_entropies(logits: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    logits64 = logits.detach().numpy().astype(np.float64)
    log_sums = np.log(np.exp(logits64).sum(axis=1))
    return log_sums - logits64[np.arange(len(targets)), targets.numpy()]


def reference(parts: list[tuple[PackedBatch, torch.Tensor]], normalise: str) -> float:
    """The loss by its definition, in float64, over everything at once."""
    losses: list[tuple[int, int, float]] = []  # sequence, modality, cross-entropy
    num_sequences = 0
    for batch, logits in parts:
        values = cross_entropies(logits, batch.targets_N)
        codes, sequences = batch.modality_N.tolist(), (batch.sequence_N + num_sequences).tolist()
        losses += zip(sequences, codes, values, strict=True)
        num_sequences += len(batch.lengths)
    if normalise == "none":
        return math.fsum(loss for *_, loss in losses) / len(losses)
    total = 0.0
    for code, modality in enumerate(MODALITIES):
        if normalise == "batch":
            mine = [loss for _, m, loss in losses if m == code]
            total += LAMBDAS[modality] / len(mine) * math.fsum(mine) if mine else 0.0
        else:
            for number in range(num_sequences):
                mine = [loss for s, m, loss in losses if (s, m) == (number, code)]
                total += LAMBDAS[modality] * math.fsum(mine) / len(mine) / num_sequences if mine else 0.0
    return total


@settings(max_examples=100)
@given(
    sequences=SEQUENCES,
    cuts=st.sets(st.integers(1, 7)),
    normalise=st.sampled_from(["batch", "sequence", "none"]),
    seed=st.integers(0, 9),
)
def test_loss_equals_a_float64_reference_whatever_the_micro_batches(
    sequences: list[list[int]], cuts: set[int], normalise: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    borders = [0, *sorted(cut for cut in cuts if cut < len(sequences)), len(sequences)]
    batches = [batch_of(sequences[i:j], rng) for i, j in pairwise(borders)]
    parts = [
        (b, torch.tensor(rng.normal(0, 4, (len(b.targets_N), NUM_IDS)), dtype=torch.float32)) for b in batches
    ]
    config = LossConfig(normalise=normalise)
    counts = count_loss_tokens(batches)
    loss = sum(
        loss_of_logits(logits, batch, token_weights(batch, counts, config))[0].item()
        for batch, logits in parts
    )
    assert loss == pytest.approx(reference(parts, normalise), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("normalise", ["batch", "sequence", "none"])
def test_weights_are_in_float64(normalise: str) -> None:
    batch = batch_of([[0, 1], [2]], np.random.default_rng(0))
    weights = token_weights(batch, count_loss_tokens([batch]), LossConfig(normalise=normalise))
    assert weights.dtype == torch.float64


@pytest.mark.parametrize("normalise", ["batch", "sequence", "none"])
def test_an_absent_modality_gives_zero_and_no_gradient(normalise: str) -> None:
    batch = batch_of([[0, 0, 0]], np.random.default_rng(0))
    logits = torch.randn(3, NUM_IDS, requires_grad=True)
    weights = token_weights(batch, count_loss_tokens([batch]), LossConfig(normalise=normalise))
    loss, losses = loss_of_logits(logits, batch, weights)
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(logits.grad).all()
    assert not sum_by_task(losses[:, None], batch)[:, 1:].any()
    assert count_loss_tokens([batch]).num_tokens_M.tolist() == [3, 0, 0]


def test_the_weights_are_not_renormalised() -> None:
    batch = batch_of([[0, 1, 1, 2]], np.random.default_rng(0))
    weights = token_weights(batch, count_loss_tokens([batch]), LossConfig())
    assert weights.tolist() == [0.93, 0.125, 0.125, 0.25]


def test_a_micro_batch_without_a_modality_does_not_change_its_weight() -> None:
    rng = np.random.default_rng(0)
    batches = [batch_of([[0, 1]], rng), batch_of([[1]], rng)]
    counts = count_loss_tokens(batches)
    assert token_weights(batches[0], counts, LossConfig()).tolist() == [0.93, 0.125]
    assert token_weights(batches[1], counts, LossConfig()).tolist() == [0.125]


def test_the_sums_of_a_task_are_made_in_float64() -> None:
    rng = np.random.default_rng(0)
    batch = batch_of([[0, 0, 1, 2]], rng)
    sums_KMX = sum_by_task(torch.tensor([[1e8], [1e-3], [2.0], [3.0]]), batch)
    asr = list(TASKS).index(batch.tasks[0])
    assert sums_KMX[asr, :, 0].tolist() == pytest.approx([1e8 + 1e-3, 2.0, 3.0], rel=1e-13)
    assert sums_KMX.sum().item() == sums_KMX[asr].sum().item()


def test_sums_go_to_the_task_of_each_sequence() -> None:
    batch = replace(batch_of([[0, 1], [0, 2]], np.random.default_rng(0)), tasks=("i2t", "asr"))
    sums_KMX = sum_by_task(torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]]), batch)
    i2t, asr = (list(TASKS).index(task) for task in batch.tasks)
    assert sums_KMX[i2t, :, 1].tolist() == [10.0, 20.0, 0.0]
    assert sums_KMX[asr, :, 0].tolist() == [3.0, 0.0, 4.0]


class Case:
    """A head and some tokens, in float64; `plain` is the loss as anyone would write it."""

    def __init__(self, num_tokens: int, *, num_ids: int = 50, bias: bool = True) -> None:
        torch.manual_seed(num_tokens)
        self.hidden = torch.randn(num_tokens, 8, dtype=torch.float64) * 3
        self.weight = torch.randn(num_ids, 8, dtype=torch.float64)
        self.bias = torch.randn(num_ids, dtype=torch.float64) if bias else None
        self.targets = torch.randint(0, num_ids, (num_tokens,))
        self.weights = torch.rand(num_tokens, dtype=torch.float64) / max(num_tokens, 1)

    def leaves(self, dtype: torch.dtype) -> list[torch.Tensor]:
        given = [tensor for tensor in (self.hidden, self.weight, self.bias) if tensor is not None]
        return [tensor.to(dtype).requires_grad_() for tensor in given]

    def plain(self) -> tuple[torch.Tensor, list[torch.Tensor]]:
        leaves = self.leaves(torch.float64)
        logits = torch.nn.functional.linear(*leaves)
        losses = torch.nn.functional.cross_entropy(logits, self.targets, reduction="none")
        loss = (losses * self.weights).sum()
        return loss, list(torch.autograd.grad(loss, leaves))

    def chunked(self, dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
        leaves = self.leaves(dtype)
        hidden, weight, bias = (*leaves, None)[:3]
        loss, _ = linear_cross_entropy(hidden, weight, bias, self.targets, self.weights)
        return loss, list(torch.autograd.grad(loss, leaves))


def assert_close(case: Case, dtype: torch.dtype, tolerance: float) -> None:
    (expected, expected_gradients), (loss, gradients) = case.plain(), case.chunked(dtype)
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    for gradient, reference_gradient in zip(gradients, expected_gradients, strict=True):
        error = (gradient.double() - reference_gradient).norm() / reference_gradient.norm()
        assert error < tolerance


@pytest.fixture(params=[1, 7, 10**6])
def tokens_per_chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """At most so many tokens at a time."""
    monkeypatch.setattr(linear_cross_entropy_module, "chunk_tokens", lambda *_: request.param)
    return request.param


@pytest.mark.usefixtures("tokens_per_chunk")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6), (torch.bfloat16, 2e-2)]
)
def test_value_and_gradient_in_chunks_equal_the_plain_ones(
    bias: bool, dtype: torch.dtype, tolerance: float
) -> None:
    assert_close(Case(29, bias=bias), dtype, tolerance)


@pytest.mark.usefixtures("tokens_per_chunk")
def test_autocast_keeps_weights_and_softmax_in_float32() -> None:
    case = Case(29)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(case, torch.float32, 2e-2)
        assert {gradient.dtype for gradient in case.chunked(torch.float32)[1]} == {torch.float32}


def test_no_more_logits_exist_at_once_than_fit_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    linear = torch.nn.functional.linear

    def measure(*tensors: torch.Tensor) -> torch.Tensor:
        sizes.append(linear(*tensors).numel())
        return linear(*tensors)

    monkeypatch.setattr(linear_cross_entropy_module, "chunk_tokens", lambda *_: 4)
    monkeypatch.setattr(torch.nn.functional, "linear", measure)
    Case(29).chunked(torch.float32)
    assert sizes == [200] * 7 + [50]


def test_a_chunk_stays_in_the_cache_of_a_processor_unless_that_leaves_few_tokens() -> None:
    assert chunk_tokens("cpu", 2048) == 512
    assert chunk_tokens("cuda", 2048) == 8192
    assert chunk_tokens("cpu", 68_000) == 256


def test_no_token_gives_zero_and_a_gradient_of_zeros() -> None:
    loss, gradients = Case(0).chunked(torch.float32)
    assert loss.item() == 0.0
    assert [tuple(gradient.shape) for gradient in gradients] == [(0, 8), (50, 8), (50,)]
    assert not any(gradient.any() for gradient in gradients)


def test_a_gradient_from_outside_scales_the_gradient() -> None:
    case = Case(9)
    leaves = case.leaves(torch.float64)
    loss, _ = linear_cross_entropy(*leaves, case.targets, case.weights)
    gradients = torch.autograd.grad(3 * loss, leaves)
    for gradient, expected in zip(gradients, case.plain()[1], strict=True):
        torch.testing.assert_close(gradient, 3 * expected)


def test_a_second_backward_pass_is_refused() -> None:
    case = Case(9)
    leaves = case.leaves(torch.float64)
    loss, _ = linear_cross_entropy(*leaves, case.targets, case.weights)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once only"):
        loss.backward()


def test_losses_of_sure_and_hopeless_tokens_are_finite_and_exact() -> None:
    logits = torch.tensor([[0.0, 300.0], [300.0, 0.0]])
    targets = torch.tensor([1, 1])
    _, losses = linear_cross_entropy(logits, torch.eye(2), None, targets, torch.ones(2).double())
    assert losses.tolist() == [0.0, 300.0]
