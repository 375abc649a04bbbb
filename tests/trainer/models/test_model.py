from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from dmlm.pipeline.errors import FingerprintMismatchError
from dmlm.pipeline.vocabulary import Vocabulary
from dmlm.trainer.config import LossConfig, ModelConfig
from dmlm.trainer.data.packing import PackedBatch, pack_sequences
from dmlm.trainer.data.tasks import TaskSequence
from dmlm.trainer.loss import count_loss_tokens, token_weights
from dmlm.trainer.models.attention import use_kernel
from dmlm.trainer.models.model import build_model
from dmlm.trainer.models.packed_forward import PackedModel, packed_hidden

VOCABULARY = Vocabulary(num_text=258, num_speech=20, num_image=16, bos_id=0, eos_id=0)
TINY = ModelConfig(num_layers=2, width=32, num_heads=2, dropout=0.0)


@pytest.fixture
def model(text_dir: Path) -> PreTrainedModel:
    return build_model(TINY, VOCABULARY, text_dir=text_dir, max_length=64, seed=0)


def random_sequences(num_sequences: int = 6, seed: int = 0) -> list[TaskSequence]:
    rng = np.random.default_rng(seed)
    sequences = []
    for length in rng.integers(3, 40, num_sequences):
        tokens = rng.integers(0, VOCABULARY.num_used, length).astype(np.int32)
        codes = np.array([-1, *rng.integers(-1, 3, length - 1)], np.int8)
        sequences.append(TaskSequence(tokens_T=tokens, modality_T=codes, num_prompt=1))
    return sequences


def packed_logits(model: PreTrainedModel, batch: PackedBatch) -> torch.Tensor:
    """Of the tokens that carry loss."""
    return model.get_output_embeddings()(packed_hidden(model, batch))


def loss_of(model: PreTrainedModel, batches: list[PackedBatch]) -> torch.Tensor:
    counts = count_loss_tokens(batches)
    packed = PackedModel(model)
    return sum(packed(batch, token_weights(batch, counts, LossConfig()))[0] for batch in batches)


def gradients(model: PreTrainedModel, batches: list[PackedBatch]) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = loss_of(model, batches)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_packed_equals_one_sample_at_a_time(
    model: PreTrainedModel, dtype: torch.dtype, tolerance: float
) -> None:
    model = model.to(dtype)
    use_kernel(model, "sequences")
    sequences = random_sequences()
    packed_loss, packed_gradients = gradients(model, [pack_sequences(sequences)])
    single_loss, single_gradients = gradients(model, [pack_sequences([sequence]) for sequence in sequences])
    assert packed_loss == pytest.approx(single_loss, rel=tolerance)
    for name, gradient in packed_gradients.items():
        torch.testing.assert_close(gradient, single_gradients[name], rtol=tolerance, atol=tolerance)


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY.size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
    )


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_packed_logits_equal_those_of_stock_transformers(kind: str, model: PreTrainedModel) -> None:
    model = model if kind == "opt" else llama()
    sequences = random_sequences()
    with torch.no_grad():
        stock = []
        for sequence in sequences:
            logits_TV = model(input_ids=torch.tensor(sequence.tokens_T[None].astype(np.int64))).logits[0]
            stock.append(logits_TV[np.flatnonzero(sequence.modality_T >= 0) - 1])
        use_kernel(model, "sequences")
        packed = packed_logits(model, pack_sequences(sequences))
    torch.testing.assert_close(packed, torch.cat(stock), rtol=1e-4, atol=1e-5)


def test_a_changed_sample_leaves_the_logits_of_the_others_alone(model: PreTrainedModel) -> None:
    use_kernel(model, "sequences")
    sequences = random_sequences()
    changed = list(sequences)
    tokens = (sequences[2].tokens_T + 7) % VOCABULARY.num_used
    changed[2] = TaskSequence(tokens_T=tokens, modality_T=sequences[2].modality_T, num_prompt=1)
    batch = pack_sequences(sequences)
    with torch.no_grad():
        before, after = packed_logits(model, batch), packed_logits(model, pack_sequences(changed))
    others = batch.sequence_N != 2
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[~others], after[~others])


def test_a_later_token_does_not_change_an_earlier_logit(model: PreTrainedModel) -> None:
    use_kernel(model, "sequences")
    (sequence,) = random_sequences(1)
    cut = len(sequence.tokens_T) // 2
    tokens = sequence.tokens_T.copy()
    tokens[cut:] = (tokens[cut:] + 7) % VOCABULARY.num_used
    changed = TaskSequence(tokens_T=tokens, modality_T=sequence.modality_T, num_prompt=1)
    batch = pack_sequences([sequence])
    with torch.no_grad():
        before, after = packed_logits(model, batch), packed_logits(model, pack_sequences([changed]))
    early = batch.predictors_N < cut
    assert torch.equal(before[early], after[early])


@pytest.mark.parametrize("architecture", ["opt", "llama"])
def test_from_scratch_follows_the_architecture_the_vocabulary_and_the_seed(
    text_dir: Path, architecture: Literal["opt", "llama"]
) -> None:
    config = replace(TINY, architecture=architecture)
    models = [
        build_model(config, VOCABULARY, text_dir=text_dir, max_length=64, seed=seed) for seed in (1, 1, 2)
    ]
    assert models[0].config.model_type == architecture
    weights = [model.get_input_embeddings().weight for model in models]
    assert weights[0].shape == (VOCABULARY.size, 32)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert models[0].get_output_embeddings().weight is weights[0]
    assert models[0].config.max_position_embeddings == 64
    # No row is taken for padding, whose gradient torch would drop.
    assert models[0].get_input_embeddings().padding_idx is None


def test_a_text_tokenizer_that_has_one_of_our_tokens_is_refused_before_the_first_step(
    text_dir: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(text_dir)
    tokenizer.add_tokens(["<image>"])
    tokenizer.save_pretrained(tmp_path)
    vocabulary = replace(VOCABULARY, num_text=259)
    with pytest.raises(FingerprintMismatchError, match="has <image> already"):
        build_model(TINY, vocabulary, text_dir=tmp_path, max_length=64, seed=0)


def test_new_positions_begin_like_their_neighbours_and_smaller_than_the_tokens(
    model: PreTrainedModel,
) -> None:
    positions_TD = model.get_submodule("model.decoder.embed_positions").weight
    tokens_VD = model.get_input_embeddings().weight
    assert positions_TD.requires_grad
    assert positions_TD.square().mean().item() == pytest.approx(
        0.01 * tokens_VD.square().mean().item(), rel=0.2
    )
    similarity = torch.nn.functional.cosine_similarity
    near = similarity(positions_TD[:-1], positions_TD[1:], dim=1)
    far = similarity(positions_TD[:-30], positions_TD[30:], dim=1)
    assert near.min() > far.max()
