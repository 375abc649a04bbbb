"""Starting from a pretrained LLM: what is kept, what is new, and that packed rows are exact for each kind."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2Tokenizer,
    Qwen3Config,
)

from dmlm.pipeline.errors import ConfigError, FingerprintMismatchError
from dmlm.pipeline.tokenizers.text import train_bpe
from dmlm.pipeline.vocabulary import Vocabulary
from dmlm.trainer.config import ModelConfig
from dmlm.trainer.data.packing import pack_sequences
from dmlm.trainer.data.tasks import TaskSequence
from dmlm.trainer.models.attention import use_kernel
from dmlm.trainer.models.model import build_model, load_model, save_model
from dmlm.trainer.models.packed_forward import packed_hidden

VOCABULARY = Vocabulary(num_text=258, num_speech=20, num_image=16, bos_id=0, eos_id=0)
NUM_ROWS = 264
"""Six more than the text tokenizer has entries."""
ROTARY = {
    "vocab_size": NUM_ROWS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GROUPED = {**ROTARY, "num_key_value_heads": 2, "head_dim": 8}
CONFIGS: dict[str, Callable[..., PretrainedConfig]] = {
    "opt": lambda **more: OPTConfig(
        vocab_size=NUM_ROWS,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        pad_token_id=1,
        **more,
    ),
    "gpt2": lambda **more: GPT2Config(
        vocab_size=NUM_ROWS, n_positions=16, n_embd=32, n_layer=2, n_head=4, eos_token_id=0, **more
    ),
    "llama": lambda **more: LlamaConfig(**GROUPED, **more),
    "qwen2": lambda **more: Qwen2Config(**{**GROUPED, **more}),
    "qwen3": lambda **more: Qwen3Config(**{**GROUPED, **more}),
    "gpt_neox": lambda **more: GPTNeoXConfig(**ROTARY, **more),
    "phi": lambda **more: PhiConfig(**ROTARY, **more),
}
LEARNED = ("opt", "gpt2")


@pytest.fixture(scope="module")
def text_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bytes; with the token and the rules that transformers gives to every tokenizer of a Qwen model."""
    directory = tmp_path_factory.mktemp("text")
    train_bpe([], 256).save(directory)
    for path in directory.iterdir():
        path.write_text(path.read_text().replace("<pad>", "<|endoftext|>"))
    Qwen2Tokenizer.from_pretrained(directory).save_pretrained(directory)
    return directory


def save_llm(directory: Path, text_dir: Path, config: PretrainedConfig) -> PreTrainedModel:
    """A "pretrained" model with spare embedding rows and a bent embedding, and its tokenizer."""
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            module.weight += 0.03 * torch.randn(module.weight.shape[1])  # text rows have a mean
            if getattr(module, "bias", None) is not None:
                module.bias.normal_()
    save_model(model, directory)
    AutoTokenizer.from_pretrained(text_dir).save_pretrained(directory)
    return model


def grow(
    init: Path, text_dir: Path, max_length: int = 16, dropout: float = 0.0, seed: int = 0
) -> PreTrainedModel:
    config = ModelConfig(init=str(init), dropout=dropout)
    return build_model(config, VOCABULARY, text_dir=text_dir, max_length=max_length, seed=seed)


def random_sequences(max_length: int) -> list[TaskSequence]:
    rng = np.random.default_rng(0)
    lengths = [max_length, *rng.integers(3, max_length, 5)]
    return [
        TaskSequence(
            tokens_T=rng.integers(0, VOCABULARY.num_used, length).astype(np.int32),
            modality_T=np.array([-1, *[0] * (length - 1)], np.int8),
            num_prompt=1,
        )
        for length in lengths
    ]


@pytest.mark.parametrize("max_length", [16, 40])
@pytest.mark.parametrize("kind", CONFIGS)
def test_packed_rows_give_the_logits_of_stock_transformers(
    kind: str, max_length: int, tmp_path: Path, text_dir: Path
) -> None:
    """Also beyond the positions that the model was pretrained with, and after saving."""
    save_llm(tmp_path / "llm", text_dir, CONFIGS[kind]())
    model = grow(tmp_path / "llm", text_dir, max_length).double().eval()
    save_model(model, tmp_path / "grown")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "grown", dtype=torch.float64)
    use_kernel(model, "sequences")
    sequences = random_sequences(max_length)
    with torch.no_grad():
        packed = model.get_output_embeddings()(packed_hidden(model, pack_sequences(sequences)))
        alone = [stock(torch.tensor(s.tokens_T[None].astype(np.int64))).logits[0, :-1] for s in sequences]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("kind", ["opt", "gpt2", "llama", "qwen2", "qwen3"])
def test_text_is_kept_and_everything_behind_it_is_new(
    kind: str, is_tied: bool, tmp_path: Path, text_dir: Path
) -> None:
    old = save_llm(tmp_path, text_dir, CONFIGS[kind](tie_word_embeddings=is_tied))
    new = grow(tmp_path, text_dir)
    assert new.config.vocab_size == VOCABULARY.size
    assert (new.config.bos_token_id, new.config.eos_token_id) == (0, 0)
    tied = new.get_output_embeddings().weight is new.get_input_embeddings().weight
    assert tied is is_tied
    for find in (PreTrainedModel.get_input_embeddings, PreTrainedModel.get_output_embeddings):
        old_rows, new_rows = find(old).weight, find(new).weight
        assert new_rows.shape[0] == VOCABULARY.size
        assert torch.equal(new_rows[:258], old_rows[:258])
        assert not torch.isclose(new_rows[258:264], old_rows[258:264]).all(dim=1).any()  # spare rows
        spread = (new_rows[258:] - old_rows[:258].mean(0)) / old_rows[:258].std(0)
        assert spread.mean(0).std().item() == pytest.approx(1.0, abs=0.35)  # what new rows share
        assert spread.std(0).mean().item() == pytest.approx(0.5, rel=0.1)  # what each has alone


def test_a_bias_of_the_head_grows_with_it(tmp_path: Path, text_dir: Path) -> None:
    old = save_llm(tmp_path, text_dir, CONFIGS["phi"]())
    bias = grow(tmp_path, text_dir).get_output_embeddings().bias
    assert torch.equal(bias[:258], old.get_output_embeddings().bias[:258])
    assert bias[258:].tolist() == pytest.approx([bias[:258].mean().item()] * (VOCABULARY.size - 258))
    assert bias[:258].mean().abs() > 1e-3


def test_the_seed_decides_the_new_rows(tmp_path: Path, text_dir: Path) -> None:
    save_llm(tmp_path, text_dir, CONFIGS["llama"]())
    first, again, other = (
        grow(tmp_path, text_dir, seed=seed).get_input_embeddings().weight for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", LEARNED)
def test_learned_positions_repeat_from_the_first(kind: str, tmp_path: Path, text_dir: Path) -> None:
    old, new = save_llm(tmp_path, text_dir, CONFIGS[kind]()), grow(tmp_path, text_dir, max_length=40)
    name, offset = {"opt": ("model.decoder.embed_positions", 2), "gpt2": ("transformer.wpe", 0)}[kind]
    table, old_table = (model.get_submodule(name).weight for model in (new, old))
    assert len(table) == 40 + offset
    assert torch.equal(table[: 16 + offset], old_table)
    assert torch.equal(table[16 + offset : 32 + offset], old_table[offset:])
    assert new.config.max_position_embeddings == 40


def test_rotary_positions_are_stretched_by_yarn(tmp_path: Path, text_dir: Path) -> None:
    save_llm(tmp_path, text_dir, CONFIGS["llama"](rope_theta=5_000.0))
    config = grow(tmp_path, text_dir, max_length=40).config
    assert config.max_position_embeddings == 40
    assert config.rope_parameters["rope_type"] == "yarn"
    assert config.rope_parameters["factor"] == 2.5
    assert config.rope_parameters["original_max_position_embeddings"] == 16
    assert grow(tmp_path, text_dir, max_length=16).config.rope_parameters["rope_type"] == "default"


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("opt", ("dropout",)),
        ("gpt2", ("resid_pdrop", "embd_pdrop", "attn_pdrop")),
        ("llama", ("attention_dropout",)),
        ("qwen2", ("attention_dropout",)),
        ("gpt_neox", ("hidden_dropout", "attention_dropout")),
    ],
)
def test_dropout_is_what_the_recipe_says_and_acts(
    kind: str, fields: tuple[str, ...], tmp_path: Path, text_dir: Path
) -> None:
    save_llm(tmp_path, text_dir, CONFIGS[kind]())
    tokens = torch.arange(12)[None]
    for dropout in (0.0, 0.4):
        model = grow(tmp_path, text_dir, dropout=dropout)
        assert {getattr(model.config, name) for name in fields} == {dropout}
        model.set_attn_implementation("eager")
        is_same = torch.equal(model(tokens).logits, model(tokens).logits)
        assert is_same is (dropout == 0.0)


def test_a_model_without_dropout_says_so(
    tmp_path: Path, text_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmlm.trainer.models.pretrained.DROPOUT_FIELDS", (("nothing",),))
    save_llm(tmp_path, text_dir, CONFIGS["llama"]())
    with caplog.at_level(logging.WARNING):
        grow(tmp_path, text_dir, dropout=0.2)
    assert "has no dropout; model.dropout 0.2 is not used" in caplog.text


def first_loss(model: PreTrainedModel, start: int, stop: int) -> float:
    """Mean loss of random tokens of a range, each after others of the same range."""
    tokens = torch.randint(start, stop, (8, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return float(model(input_ids=tokens, labels=tokens).loss)


def test_new_rows_neither_start_far_off_nor_drown_the_text(tmp_path: Path, text_dir: Path) -> None:
    """Against transformers' plain resizing, where text rows have a large mean, as those of LLMs have."""
    pretrained = save_llm(tmp_path, text_dir, CONFIGS["llama"](tie_word_embeddings=True))
    with torch.no_grad():
        direction = torch.randn(32, generator=torch.Generator().manual_seed(1))
        pretrained.get_input_embeddings().weight[:258] += 0.5 * direction
    save_model(pretrained, tmp_path)
    grown, plain = grow(tmp_path, text_dir).eval(), load_model(tmp_path).eval()
    plain.resize_token_embeddings(VOCABULARY.size, mean_resizing=False)
    grown_text, plain_text = (first_loss(model, 0, 258) for model in (grown, plain))
    grown_new, plain_new = (first_loss(model, 258, VOCABULARY.num_used) for model in (grown, plain))
    print(
        grown_text,
        plain_text,
        first_loss(pretrained.eval(), 0, 258),
        grown_new,
        plain_new,
        math.log(VOCABULARY.size),
    )
    assert grown_new == pytest.approx(math.log(VOCABULARY.size), abs=0.3)
    assert grown_text == pytest.approx(math.log(VOCABULARY.size), abs=0.3)
    assert plain_new > grown_new + 0.5


def test_another_text_tokenizer_is_refused_with_the_command_that_helps(
    tmp_path: Path, text_dir: Path
) -> None:
    save_llm(tmp_path, text_dir, CONFIGS["opt"]())
    other = tmp_path / "other"
    train_bpe(["the cat the cat the cat"], 260).save(other)
    vocabulary = Vocabulary(num_text=262, num_speech=20, num_image=16, bos_id=0, eos_id=0)
    with pytest.raises(FingerprintMismatchError, match=r"258 entries.*262 entries.*--text-tokenizer"):
        build_model(ModelConfig(init=str(tmp_path)), vocabulary, text_dir=other, max_length=8, seed=0)


def test_a_text_tokenizer_of_the_same_entries_and_other_rules_is_refused(tmp_path: Path) -> None:
    text_dir, init = tmp_path / "text", tmp_path / "llm"
    train_bpe([], 256).save(text_dir)
    save_llm(init, text_dir, CONFIGS["opt"]())
    assert grow(init, text_dir).config.vocab_size == VOCABULARY.size
    path = init / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": {"type": "Lowercase"}}))
    with pytest.raises(FingerprintMismatchError, match=r"gives texts other ids.*--text-tokenizer"):
        grow(init, text_dir)


def test_a_text_tokenizer_that_cannot_be_read_is_refused(tmp_path: Path, text_dir: Path) -> None:
    save_llm(tmp_path, text_dir, CONFIGS["llama"]())
    for path in tmp_path.rglob("tokenizer.json"):
        path.write_text('{"version": "9.0", "model": {"type": "BPE", "merges": 7}}')
    with pytest.raises(ConfigError, match=r"--init .*: no tokenizer: "):
        grow(tmp_path, text_dir)


def test_a_checkpoint_of_another_vocabulary_is_refused(tmp_path: Path, text_dir: Path) -> None:
    save_llm(tmp_path, text_dir, CONFIGS["opt"]())
    theirs = Vocabulary(num_text=258, num_speech=99, num_image=16, bos_id=0, eos_id=0)
    (tmp_path / "vocabulary.json").write_text(json.dumps(theirs.to_json()))
    with pytest.raises(FingerprintMismatchError, match=r"99 speech.*20 speech"):
        grow(tmp_path, text_dir)


@pytest.mark.parametrize(("name", "tied"), [("opt", True), ("phi", False)])
@pytest.mark.parametrize("lacking", ["num_speech", "num_image"])
def test_a_checkpoint_that_learns_a_modality_keeps_the_rows_of_all_its_tokens(
    name: str, tied: bool, lacking: str, tmp_path: Path, text_dir: Path
) -> None:
    theirs = replace(VOCABULARY, **{lacking: 0})
    save_llm(tmp_path / "llm", text_dir, CONFIGS[name](tie_word_embeddings=tied))
    config = ModelConfig(init=str(tmp_path / "llm"), dropout=0.0)
    before = build_model(config, theirs, text_dir=text_dir, max_length=16, seed=0)
    save_model(before, tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "vocabulary.json").write_text(json.dumps(theirs.to_json()))
    after = grow(tmp_path / "checkpoint", text_dir, seed=1)
    old_names = [f"text {number}" for number in range(theirs.num_text)] + theirs.added_tokens()
    new_names = [f"text {number}" for number in range(VOCABULARY.num_text)] + VOCABULARY.added_tokens()
    places = {token: row for row, token in enumerate(new_names)}
    kept = [places[token] for token in old_names]
    for old, new in (
        (before.get_input_embeddings(), after.get_input_embeddings()),
        (before.get_output_embeddings(), after.get_output_embeddings()),
    ):
        assert torch.equal(new.weight[kept], old.weight[: len(kept)])
        if getattr(old, "bias", None) is not None:
            assert torch.equal(new.bias[kept], old.bias[: len(kept)])
    rows = after.get_input_embeddings().weight
    added = [row for token, row in places.items() if token not in old_names]
    assert len(added) == getattr(VOCABULARY, lacking)
    assert rows[added].std(dim=0).min() > 0
    assert (after.get_output_embeddings().weight is rows) is tied


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_every_new_token_is_learnt_wherever_the_padding_was(
    kind: str, tmp_path: Path, text_dir: Path
) -> None:
    save_llm(tmp_path / "llm", text_dir, CONFIGS[kind](tie_word_embeddings=False))
    config = json.loads((tmp_path / "llm" / "config.json").read_text())
    (tmp_path / "llm" / "config.json").write_text(json.dumps({**config, "pad_token_id": NUM_ROWS - 1}))
    save_model(grow(tmp_path / "llm", text_dir), tmp_path / "grown")
    for model in (grow(tmp_path / "llm", text_dir), load_model(tmp_path / "grown")):
        ids = torch.arange(NUM_ROWS - 4, NUM_ROWS + 4)[None]
        model(input_ids=ids, labels=ids).loss.backward()
        gradients_VD = model.get_input_embeddings().weight.grad
        assert gradients_VD[ids[0, :-1]].abs().sum(dim=1).min() > 0


def rotary(kind: str) -> PretrainedConfig:
    return LlamaConfig(**GROUPED, rope_parameters={"rope_type": kind, "factor": 2.0, "rope_theta": 10_000.0})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BloomConfig(vocab_size=NUM_ROWS, hidden_size=32, n_layer=1, n_head=2), "cannot run on packed rows"),
        (MistralConfig(**GROUPED, sliding_window=8), "attends to 8 tokens only"),
        (Gemma2Config(**GROUPED, sliding_window=64), "caps its attention scores"),
        (GraniteConfig(**{**ROTARY, "num_key_value_heads": 4}, logits_scaling=3.0), "other logits on packed"),
        (rotary("linear"), "scales them already"),
        (rotary("dynamic"), "depend on the longest sequence"),
        (Phi3Config(**{**ROTARY, "num_key_value_heads": 4}), "a phi3 model cannot be lengthened"),
        (MixtralConfig(**{**ROTARY, "num_key_value_heads": 4}), r"cannot be grown or run .* \(TypeError"),
    ],
    ids=lambda value: value.model_type if isinstance(value, PretrainedConfig) else "",
)
def test_what_would_not_be_exact_is_refused(
    config: PretrainedConfig, message: str, tmp_path: Path, text_dir: Path
) -> None:
    save_llm(tmp_path, text_dir, config)
    with pytest.raises(ConfigError, match=message):
        grow(tmp_path, text_dir, max_length=20)


def test_an_init_that_is_no_model_is_refused(tmp_path: Path, text_dir: Path) -> None:
    with pytest.raises(ConfigError, match="not a causal language model"):
        grow(tmp_path, text_dir)


def test_pickled_weights_are_refused_with_a_conversion_that_works(
    tmp_path: Path, text_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "llm"
    model = save_llm(folder, text_dir, CONFIGS["opt"]())
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="no readable safetensors weights") as caught:
        grow(folder, text_dir)
    code = str(caught.value).partition("python -c '")[2].rstrip("'")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert grow(tmp_path / "converted", text_dir).config.vocab_size == VOCABULARY.size


def test_a_cut_weight_file_is_refused(tmp_path: Path, text_dir: Path) -> None:
    save_llm(tmp_path, text_dir, CONFIGS["opt"]())
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="no readable safetensors weights"):
        grow(tmp_path, text_dir)
