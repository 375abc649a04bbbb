import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.samples import TokenArray
from dmlm.pipeline.vocabulary import TokenRange, Vocabulary
from dmlm.trainer.decoding import Constraint, Decoded, DecodingConfig, constraint_of, decode
from dmlm.trainer.decoding.fast_rows import FastRows
from dmlm.trainer.decoding.rows import open_rows
from dmlm.trainer.decoding.transformers_rows import TransformersRows

TEXT = TokenRange(0, 12)
EOS, TAG = 2, 17
CONSTRAINTS = {
    "end in range": Constraint(allowed=TEXT, end_id=EOS),
    "tag": Constraint(allowed=TEXT, end_id=TAG),
}
NUM_TOKENS, NUM_POSITIONS = 20, 40
SPREAD = 0.5
"""Of the weights: far apart logits, so that rounding never decides."""


def build_opt(
    num_tokens: int = NUM_TOKENS, num_positions: int = NUM_POSITIONS, width: int = 16
) -> OPTForCausalLM:
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=num_tokens,
        hidden_size=width,
        word_embed_proj_dim=width,
        ffn_dim=4 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=num_positions,
        init_std=SPREAD,
    )
    return OPTForCausalLM(config).eval()


def build_llama(num_kv_heads: int = 4, **options: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=NUM_TOKENS,
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=num_kv_heads,
        max_position_embeddings=NUM_POSITIONS,
        initializer_range=SPREAD,
        pad_token_id=None,
        **options,
    )
    return LlamaForCausalLM(config).eval()


def build_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": NUM_TOKENS, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": NUM_POSITIONS}
    return GPT2LMHeadModel(
        GPT2Config(**sizes, initializer_range=SPREAD, bos_token_id=EOS, eos_token_id=EOS)
    ).eval()


def build_mistral() -> MistralForCausalLM:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=NUM_TOKENS,
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=NUM_POSITIONS,
        initializer_range=SPREAD,
        sliding_window=6,
        pad_token_id=None,
    )
    return MistralForCausalLM(config).eval()


YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 10}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "opt": build_opt,
    "llama": build_llama,
    "llama, two heads for one key": lambda: build_llama(2, attention_bias=True),
    "llama, stretched": lambda: build_llama(1, rope_parameters=YARN),
    "gpt2": build_gpt2,
    "mistral": build_mistral,
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return MODELS[request.param]()


@torch.no_grad()
def decode_plainly(
    model: PreTrainedModel, prompt: TokenArray, constraint: Constraint, max_new_tokens: int
) -> list[int]:
    """One prompt, no cache, no mask, the whole sequence anew for every token."""
    ids = prompt.tolist()
    output: list[int] = []
    while len(output) < max_new_tokens and len(ids) < NUM_POSITIONS:
        logits = model(torch.tensor([ids])).logits[0, -1]
        token = max(constraint.ids, key=lambda candidate: float(logits[candidate]))
        if token == constraint.end_id:
            break
        ids.append(token)
        output.append(token)
    return output


def run(
    model: PreTrainedModel,
    prompts: list[TokenArray],
    constraint: Constraint = CONSTRAINTS["end in range"],
    limits: list[int] | None = None,
    **options: float,
) -> list[Decoded]:
    limits = [10] * len(prompts) if limits is None else limits
    decoded = list(decode(model, prompts, constraint, DecodingConfig(**options), max_new_tokens=limits))
    return sorted(decoded, key=lambda output: output.index)


def tokens(outputs: list[Decoded]) -> list[list[int]]:
    return [output.tokens.tolist() for output in outputs]


def draw_prompts(num_prompts: int, seed: int = 0) -> list[TokenArray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, NUM_TOKENS, rng.integers(1, 14)).astype(np.int32) for _ in range(num_prompts)]


prompts_of_any_length = st.lists(st.integers(0, NUM_TOKENS - 1), min_size=1, max_size=NUM_POSITIONS).map(
    lambda ids: np.array(ids, np.int32)
)


@settings(max_examples=8)
@given(
    requests=st.lists(st.tuples(prompts_of_any_length, st.integers(0, 12)), max_size=7),
    batch_size=st.integers(1, 5),
    kind=st.sampled_from(sorted(CONSTRAINTS)),
)
def test_batches_with_cache_equal_one_prompt_without(
    model: PreTrainedModel, requests: list[tuple[TokenArray, int]], batch_size: int, kind: str
) -> None:
    prompts, limits = [prompt for prompt, _ in requests], [limit for _, limit in requests]
    outputs = run(model, prompts, CONSTRAINTS[kind], limits, batch_size=batch_size)
    assert tokens(outputs) == [decode_plainly(model, *r, CONSTRAINTS[kind], n) for *r, n in requests]


def generate(
    model: PreTrainedModel, prompt: TokenArray, constraint: Constraint, **options: object
) -> list[int]:
    def mask(_: torch.Tensor, scores_BV: torch.Tensor) -> torch.Tensor:
        masked = torch.full_like(scores_BV, -torch.inf)
        masked[:, constraint.ids] = scores_BV[:, constraint.ids]
        return masked

    ids = torch.from_numpy(prompt).long()[None]
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        logits_processor=[mask],
        max_new_tokens=10,
        do_sample=False,
        eos_token_id=constraint.end_id,
        pad_token_id=constraint.end_id,
        **options,
    )[0, len(prompt) :].tolist()
    return output[: [*output, constraint.end_id].index(constraint.end_id)]


@pytest.mark.parametrize("kind", CONSTRAINTS)
@pytest.mark.parametrize(("num_beams", "length_penalty"), [(1, 1.0), (3, 1.0), (2, 0.3)])
def test_ids_are_those_of_generate(
    model: PreTrainedModel, kind: str, num_beams: int, length_penalty: float
) -> None:
    prompts = draw_prompts(6)
    outputs = run(
        model, prompts, CONSTRAINTS[kind], batch_size=6, num_beams=num_beams, length_penalty=length_penalty
    )
    beams = {"num_beams": num_beams, "length_penalty": length_penalty, "renormalize_logits": True}
    options = beams if num_beams > 1 else {}
    assert tokens(outputs) == [generate(model, prompt, CONSTRAINTS[kind], **options) for prompt in prompts]


def test_llama_and_opt_take_the_fast_way_and_others_that_of_transformers() -> None:
    constraint = CONSTRAINTS["tag"]
    kinds = {name: type(open_rows(build(), constraint, 2, 9)) for name, build in MODELS.items()}
    others = ("gpt2", "mistral")
    assert kinds == {name: TransformersRows if name in others else FastRows for name in MODELS}
    changing = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    stretched = build_llama(rope_parameters=changing)
    assert isinstance(open_rows(stretched, constraint, 2, 9), TransformersRows)
    assert isinstance(open_rows(build_opt().double(), constraint, 2, 9), TransformersRows)


def test_sliding_window_holds_as_much_of_a_short_prompt_beside_a_long_one() -> None:
    model, constraint = build_mistral(), CONSTRAINTS["tag"]
    prompts = [np.arange(length, dtype=np.int32) for length in (2, 3, 20)]
    alone = [decode_plainly(model, prompt, constraint, 10) for prompt in prompts]
    assert tokens(run(model, prompts, constraint)) == alone


def test_random_models_end_some_outputs_before_others() -> None:
    """Keeps the comparisons above meaningful: rows do leave their batch at different steps."""
    prompts = [np.array([first, second], np.int32) for first in range(20) for second in range(20)]
    outputs = run(build_opt(), prompts, batch_size=64)
    assert len({len(output.tokens) for output in outputs}) > 3
    assert {output.is_finished for output in outputs} == {True, False}
    assert all(output.is_finished or len(output.tokens) == 10 for output in outputs)
    assert all(output.first_token_seconds > 0 for output in outputs)


def test_tokens_of_other_modalities_never_come_out() -> None:
    model = build_opt()
    with torch.no_grad():
        model.lm_head.weight[TEXT.stop :] *= 100.0
    prompts = [np.array([token], np.int32) for token in range(20)]
    free = model(torch.tensor([[token] for token in range(20)])).logits[:, -1].argmax(-1)
    assert (free >= TEXT.stop).any()
    for options in ({}, {"num_beams": 2}, {"temperature": 2.0}):
        outputs = run(model, prompts, **options)
        assert all(token < TEXT.stop and token != EOS for output in tokens(outputs) for token in output)


def test_prompt_that_fills_the_model_gets_an_empty_output(model: PreTrainedModel) -> None:
    full, nearly_full = np.zeros(NUM_POSITIONS, np.int32), np.zeros(NUM_POSITIONS - 1, np.int32)
    first, second = run(model, [full, nearly_full], CONSTRAINTS["tag"])
    assert first.tokens.tolist() == []
    assert not first.is_finished
    assert len(second.tokens) <= 1


def test_no_prompts_give_no_outputs() -> None:
    assert run(build_opt(), []) == []


def test_samples_depend_on_seed_and_place_but_not_on_the_batch() -> None:
    model, prompts = build_llama(), [np.array([3], np.int32)] * 9
    wide = tokens(run(model, prompts, temperature=1.0, seed=5))
    assert tokens(run(model, prompts, temperature=1.0, seed=5, batch_size=2)) == wide
    assert tokens(run(model, prompts, temperature=1.0, seed=6)) != wide
    assert len(set(map(tuple, wide))) > 1


def test_samples_are_as_frequent_as_they_are_probable() -> None:
    model, num_draws = build_opt(), 3000
    prompts = [np.array([3, 4], np.int32)] * num_draws
    with torch.no_grad():
        logits = model(torch.tensor([[3, 4]])).logits[0, -1, TEXT.start : TEXT.stop]
    expected = (logits / 3.0).softmax(-1).numpy()
    for top_p in (1.0, 0.7):
        outputs = run(model, prompts, limits=[1] * num_draws, temperature=3.0, top_p=top_p, batch_size=500)
        drawn = (
            np.bincount([o.tokens[0] if len(o.tokens) else EOS for o in outputs], minlength=12) / num_draws
        )
        order = np.argsort(-expected)
        before = np.cumsum(expected[order]) - expected[order]
        nucleus = np.zeros(12)
        nucleus[order[before < top_p]] = expected[order[before < top_p]]
        np.testing.assert_allclose(drawn, nucleus / nucleus.sum(), atol=0.035)
        assert not drawn[nucleus == 0].any()


def test_a_little_nucleus_is_greedy(model: PreTrainedModel) -> None:
    prompts = draw_prompts(8)
    assert tokens(run(model, prompts, temperature=1.0, top_p=1e-9)) == tokens(run(model, prompts))


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 0},
        {"batch_size": 0},
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"num_beams": 2, "length_penalty": math.nan},
        {"num_beams": 2, "length_penalty": math.inf},
        {"top_p": 0.0},
        {"num_beams": 2, "temperature": 1.0},
        {"top_p": 0.9},
        {"seed": 7},
        {"num_beams": 2, "seed": 7},
        {"num_beams": 2, "top_p": 0.9},
        {"length_penalty": 0.8},
        {"temperature": 1.0, "length_penalty": 0.8},
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        DecodingConfig(**options)


def test_each_task_ends_as_it_was_trained_to() -> None:
    vocabulary = Vocabulary(num_text=8, num_speech=5, num_image=3, bos_id=0, eos_id=1)
    assert (
        constraint_of("asr", vocabulary)
        == constraint_of("i2t", vocabulary)
        == constraint_of("s2tt", vocabulary)
    )
    assert constraint_of("asr", vocabulary).ids == list(range(8))
    speech = constraint_of("t2s", vocabulary)
    assert speech.allowed == vocabulary.speech
    assert speech.end_id == vocabulary.special_id("</speech>")
    assert speech.ids[speech.end_column] == speech.end_id
    text = replace(speech, allowed=vocabulary.text, end_id=vocabulary.eos_id)
    assert text.ids[text.end_column] == text.end_id


def test_a_hundred_utterances_take_seconds() -> None:
    model = build_opt(num_tokens=1024, num_positions=256, width=192)
    generator = np.random.default_rng(0)
    prompts = [generator.integers(0, 1024, generator.integers(60, 140)).astype(np.int32) for _ in range(100)]
    start = time.monotonic()
    constraint = Constraint(allowed=TokenRange(0, 400), end_id=1023)
    outputs = list(decode(model, prompts, constraint, DecodingConfig(), max_new_tokens=[60] * 100))
    assert time.monotonic() - start < 60  # well under a second on two free cores
    assert max(len(output.tokens) for output in outputs) == 60
