import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlm.trainer.config import LossConfig
from dmlm.trainer.loss import count_loss_tokens, loss_terms, token_losses, token_weights, weighted_loss
from dmlm.trainer.packing import PackedBatch, pack_sequences
from dmlm.trainer.tasks import MODALITIES, TaskSequence

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
        ]
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
        weighted_loss(token_losses(logits, batch.targets_N), token_weights(batch, counts, config)).item()
        for batch, logits in parts
    )
    assert loss == pytest.approx(reference(parts, normalise), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("normalise", ["batch", "sequence", "none"])
def test_an_absent_modality_gives_zero_and_no_gradient(normalise: str) -> None:
    batch = batch_of([[0, 0, 0]], np.random.default_rng(0))
    logits = torch.randn(3, NUM_IDS, requires_grad=True)
    losses = token_losses(logits, batch.targets_N)
    weights = token_weights(batch, count_loss_tokens([batch]), LossConfig(normalise=normalise))
    loss = weighted_loss(losses, weights)
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(logits.grad).all()
    terms = loss_terms(losses, batch)
    assert terms.means()[1:].tolist() == [0.0, 0.0]
    assert terms.num_tokens_M.tolist() == [3, 0, 0]


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


def test_half_precision_logits_lose_nothing_more_in_the_loss() -> None:
    logits = (torch.randn(50, 2000) * 5).bfloat16()
    targets = torch.arange(50)
    expected = torch.tensor(cross_entropies(logits.float(), targets))
    torch.testing.assert_close(token_losses(logits, targets).double(), expected, rtol=1e-5, atol=1e-5)


def test_terms_add_up_in_float64() -> None:
    rng = np.random.default_rng(0)
    batch = batch_of([[0, 1, 2]], rng)
    big, small = torch.tensor([1e8, 1.0, 1.0]), torch.tensor([1e-3, 2.0, 3.0])
    total = loss_terms(big, batch) + loss_terms(small, batch)
    assert total.sums_M.tolist() == pytest.approx([1e8 + 1e-3, 3.0, 4.0], rel=1e-13)
    assert total.num_tokens_M.tolist() == [2, 2, 2]
