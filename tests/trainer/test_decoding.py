import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import OPTConfig, OPTForCausalLM

from dmlm.pipeline.samples import TokenArray
from dmlm.pipeline.vocabulary import TokenRange
from dmlm.trainer.decoding import decode_greedy

TEXT = TokenRange(0, 12)
EOS = 2
NUM_POSITIONS = 40


def build_model(num_tokens: int = 20, num_positions: int = NUM_POSITIONS, width: int = 16) -> OPTForCausalLM:
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=num_tokens,
        hidden_size=width,
        word_embed_proj_dim=width,
        ffn_dim=4 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=num_positions,
        init_std=0.5,  # far apart logits: rounding never decides
    )
    return OPTForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model() -> OPTForCausalLM:
    return build_model()


@torch.no_grad()
def decode_plainly(
    model: OPTForCausalLM, prompt: TokenArray, allowed: list[int], eos_id: int, max_new_tokens: int
) -> list[int]:
    """One prompt, no cache, no mask, the whole sequence anew for every token."""
    ids = prompt.tolist()
    output: list[int] = []
    while len(output) < max_new_tokens and len(ids) < model.config.max_position_embeddings:
        logits = model(torch.tensor([ids])).logits[0, -1]
        token = max(allowed, key=lambda candidate: float(logits[candidate]))
        if token == eos_id:
            break
        ids.append(token)
        output.append(token)
    return output


def decode(model: OPTForCausalLM, prompts: list[TokenArray], **options: object) -> list[list[int]]:
    arguments = {"allowed": TEXT, "eos_id": EOS, "max_new_tokens": [10] * len(prompts), **options}
    outputs = dict(decode_greedy(model, prompts, **arguments))
    return [outputs[index].tolist() for index in range(len(prompts))]


prompts_of_any_length = st.lists(st.integers(0, 19), min_size=1, max_size=NUM_POSITIONS).map(
    lambda ids: np.array(ids, np.int32)
)


@settings(max_examples=40)
@given(
    requests=st.lists(st.tuples(prompts_of_any_length, st.integers(0, 12)), max_size=7),
    batch_size=st.integers(1, 5),
    eos_id=st.sampled_from([EOS, 17]),
)
def test_batches_with_cache_equal_one_prompt_without(
    model: OPTForCausalLM, requests: list[tuple[TokenArray, int]], batch_size: int, eos_id: int
) -> None:
    prompts, limits = [prompt for prompt, _ in requests], [limit for _, limit in requests]
    decoded = decode(model, prompts, batch_size=batch_size, max_new_tokens=limits, eos_id=eos_id)
    allowed = [*range(TEXT.start, TEXT.stop), eos_id]
    expected = [decode_plainly(model, prompt, allowed, eos_id, limit) for prompt, limit in requests]
    assert decoded == expected


def test_random_models_end_some_outputs_before_others(model: OPTForCausalLM) -> None:
    """Keeps the comparison above meaningful: rows do leave their batch at different steps."""
    prompts = [np.array([first, second], np.int32) for first in range(20) for second in range(20)]
    lengths = {len(output) for output in decode(model, prompts, batch_size=64)}
    assert len(lengths) > 3


def test_tokens_of_other_modalities_never_come_out() -> None:
    model = build_model()
    with torch.no_grad():
        model.lm_head.weight[TEXT.stop :] *= 100.0
    prompts = [np.array([token], np.int32) for token in range(20)]
    free = model(torch.tensor([[token] for token in range(20)])).logits[:, -1].argmax(-1)
    assert (free >= TEXT.stop).any()
    assert all(token < TEXT.stop for output in decode(model, prompts) for token in output)


def test_prompt_that_fills_the_model_gets_an_empty_output(model: OPTForCausalLM) -> None:
    full, nearly_full = np.zeros(NUM_POSITIONS, np.int32), np.zeros(NUM_POSITIONS - 1, np.int32)
    outputs = decode(model, [full, nearly_full], eos_id=17)
    assert outputs[0] == []
    assert len(outputs[1]) <= 1


def test_no_prompts_give_no_outputs(model: OPTForCausalLM) -> None:
    assert decode(model, []) == []


def test_a_hundred_utterances_take_seconds() -> None:
    model = build_model(num_tokens=1024, num_positions=256, width=192)
    generator = np.random.default_rng(0)
    prompts = [generator.integers(0, 1024, generator.integers(60, 140)).astype(np.int32) for _ in range(100)]
    start = time.monotonic()
    outputs = decode(model, prompts, allowed=TokenRange(0, 400), max_new_tokens=[60] * 100, eos_id=1023)
    assert time.monotonic() - start < 30  # 1 s on two free cores
    assert max(map(len, outputs)) == 60
