"""Language models inside GGUF files, as the transformers models that they were made of.

Four architectures, by a table each. llama.cpp reorders the query and key rows of `llama`, which is undone
here. Quantised weights become float32 and are trained as such.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import numpy.typing as npt
import torch

from dmlm.pipeline.converters.gguf import SUFFIX, GgufFile, open_gguf
from dmlm.pipeline.errors import ConfigError, CorruptInputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_LLAMA_NAMES: Final = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GPT2_NAMES: Final = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_TENSOR: Final = re.compile(r"(?:blk\.(?P<block>\d+)\.)?(?P<part>\w+)\.(?P<kind>weight|bias)")


def is_gguf(init: str) -> bool:
    """Whether a model's name is that of a GGUF file."""
    return init.endswith(SUFFIX)


def read_gguf_config(path: Path) -> "PretrainedConfig":
    """Config of the model in a GGUF file.

    Raises:
        ConfigError: There is no such file, or its architecture cannot be read exactly.
        CorruptInputError: The file is damaged.
    """
    file = open_gguf(path)
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in _CONFIGS:
        raise ConfigError(
            f"{path}: a GGUF file of architecture {architecture!r}; only {', '.join(_CONFIGS)} can be read: "
            "use the model's Hugging Face folder instead"
        )
    if "rope_freqs.weight" in file.tensors or f"{architecture}.rope.scaling.type" in file.metadata:
        raise ConfigError(
            f"{path}: its rotary positions are scaled, which a GGUF file does not say in full; "
            "use the model's Hugging Face folder instead"
        )
    try:
        return _CONFIGS[architecture](file)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptInputError(f"{path}: the model's shape is incomplete: {error!r}") from error


def load_gguf_model(path: Path, config: "PretrainedConfig") -> "PreTrainedModel":
    """The model in a GGUF file, in float32 and training mode.

    Args:
        path: The file.
        config: `read_gguf_config` of it, with dropout or positions changed as wanted.

    Raises:
        CorruptInputError: A tensor is missing, damaged or of a wrong shape.
        MissingDependencyError: The package `gguf` is not installed.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    file = open_gguf(path)
    state = {_parameter_name(file, name): torch.from_numpy(_read(file, name)) for name in file.tensors}
    try:
        model, report = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
            None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
        )
    except RuntimeError as error:
        raise CorruptInputError(f"{path}: {' '.join(str(error).split())[:300]}") from error
    if wrong := sorted(report["missing_keys"] | report["unexpected_keys"]):
        raise CorruptInputError(f"{path}: {len(wrong)} tensors missing or too many, such as {wrong[0]}")
    return cast("PreTrainedModel", model.train())


def _parameter_name(file: GgufFile, name: str) -> str:
    """Name in the transformers model of a tensor of the file."""
    names = _GPT2_NAMES if file.metadata["general.architecture"] == "gpt2" else _LLAMA_NAMES
    match = _TENSOR.fullmatch(name)
    if match is None or match["part"] not in names:
        raise CorruptInputError(f"{file.path}: unknown tensor {name}")
    layers = "transformer.h" if names is _GPT2_NAMES else "model.layers"
    prefix = f"{layers}.{match['block']}." if match["block"] is not None else ""
    return f"{prefix}{names[match['part']]}.{match['kind']}"


def _read(file: GgufFile, name: str) -> npt.NDArray[np.float32]:
    values, metadata = file.read(name), file.metadata
    part = name.split(".")[-2]
    if metadata["general.architecture"] == "llama" and part in ("attn_q", "attn_k"):
        num_heads = metadata["llama.attention.head_count"]
        if part == "attn_k":
            num_heads = metadata.get("llama.attention.head_count_kv", num_heads)
        return _restore_rows(values, num_heads)
    if metadata["general.architecture"] == "gpt2" and name.startswith("blk.") and values.ndim == 2:
        return np.ascontiguousarray(values.T)  # transformers' GPT-2 multiplies from the other side
    return values


def _restore_rows(values: npt.NDArray[np.float32], num_heads: int) -> npt.NDArray[np.float32]:
    """Halves of each head side by side again; llama.cpp has them interleaved."""
    pairs = values.reshape(num_heads, -1, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


def _shape_of(file: GgufFile) -> dict[str, Any]:
    """What the configs of Llama and its like have in common."""
    architecture = file.metadata["general.architecture"]

    def value(name: str, otherwise: Any = None) -> Any:
        key = f"{architecture}.{name}"
        return file.metadata[key] if otherwise is None else file.metadata.get(key, otherwise)

    num_heads = value("attention.head_count")
    head_size = value("rope.dimension_count", value("embedding_length") // num_heads)
    return {
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "hidden_size": value("embedding_length"),
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": value("attention.head_count_kv", num_heads),
        "head_dim": value("attention.key_length", head_size),
        "max_position_embeddings": value("context_length"),
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "rope_parameters": {"rope_type": "default", "rope_theta": value("rope.freq_base", 10_000.0)},
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def _llama_config(file: GgufFile) -> "PretrainedConfig":
    from transformers import LlamaConfig

    return LlamaConfig(**_shape_of(file))


def _qwen2_config(file: GgufFile) -> "PretrainedConfig":
    from transformers import Qwen2Config

    return Qwen2Config(**_shape_of(file))


def _qwen3_config(file: GgufFile) -> "PretrainedConfig":
    from transformers import Qwen3Config

    return Qwen3Config(**_shape_of(file))


def _gpt2_config(file: GgufFile) -> "PretrainedConfig":
    from transformers import GPT2Config

    metadata = file.metadata
    return GPT2Config(
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        n_positions=metadata["gpt2.context_length"],
        n_embd=metadata["gpt2.embedding_length"],
        n_layer=metadata["gpt2.block_count"],
        n_head=metadata["gpt2.attention.head_count"],
        n_inner=metadata["gpt2.feed_forward_length"],
        layer_norm_epsilon=metadata["gpt2.attention.layer_norm_epsilon"],
        tie_word_embeddings="output.weight" not in file.tensors,
        bos_token_id=None,
        eos_token_id=None,
    )


_CONFIGS: Final[Mapping[str, Callable[[GgufFile], "PretrainedConfig"]]] = {
    "llama": _llama_config,
    "qwen2": _qwen2_config,
    "qwen3": _qwen3_config,
    "gpt2": _gpt2_config,
}
"""By llama.cpp's name of the architecture."""
