"""Hugging Face Whisper checkpoints (`config.json`, `model.safetensors`) in openai-whisper's names."""

import json
import re
from pathlib import Path
from typing import Any

import torch

from dmlm.pipeline.errors import ConfigError, CorruptInputError

WEIGHTS, SETTINGS = "model.safetensors", "config.json"

_PREFIX = re.compile(r"(model\.)?encoder\.")
_NAMES = {
    "embed_positions.weight": "positional_embedding",
    "layer_norm": "ln_post",
    "conv1": "conv1",
    "conv2": "conv2",
}
_BLOCK_NAMES = {
    "self_attn.q_proj": "attn.query",
    "self_attn.k_proj": "attn.key",
    "self_attn.v_proj": "attn.value",
    "self_attn.out_proj": "attn.out",
    "self_attn_layer_norm": "attn_ln",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    "final_layer_norm": "mlp_ln",
}


def read_huggingface_whisper(directory: Path) -> tuple[int, dict[str, torch.Tensor]]:
    """Number of heads, and the audio encoder's tensors by the names of openai-whisper.

    Raises:
        ConfigError: The checkpoint is of another model, or in several files.
        CorruptInputError: A file is damaged, or the encoder holds a tensor that Whisper has not.
    """
    from safetensors import SafetensorError, safe_open

    settings = _read_settings(directory / SETTINGS)
    path = directory / WEIGHTS
    if not path.is_file():
        raise ConfigError(f"{directory}: no {WEIGHTS}; save the model again in one file")
    try:
        with safe_open(path, framework="pt") as file:
            state = {
                _openai_name(name[match.end() :], path): file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118 (no mapping)
                if (match := _PREFIX.match(name))
            }
    except SafetensorError as error:
        raise CorruptInputError(f"{path}: cut off or damaged: {error}") from error
    return settings["encoder_attention_heads"], state


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = dict(json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise ConfigError(f"{path}: missing; a Hugging Face checkpoint has one") from None
    except (ValueError, TypeError) as error:
        raise CorruptInputError(f"{path}: damaged ({error})") from error
    if settings.get("model_type") != "whisper" or settings.get("activation_function", "gelu") != "gelu":
        raise ConfigError(f"{path}: a {settings.get('model_type')} model, not Whisper")
    if not isinstance(settings.get("encoder_attention_heads"), int):
        raise CorruptInputError(f"{path}: does not say encoder_attention_heads")
    return settings


def _openai_name(name: str, path: Path) -> str:
    """openai-whisper's name of a tensor of the encoder."""
    if name in _NAMES:
        return _NAMES[name]
    block = re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if block and block[2] in _BLOCK_NAMES:
        return f"blocks.{block[1]}.{_BLOCK_NAMES[block[2]]}.{block[3]}"
    module, _, kind = name.rpartition(".")
    if module in _NAMES and kind in ("weight", "bias"):
        return f"{_NAMES[module]}.{kind}"
    raise CorruptInputError(f"{path}: encoder.{name} is not part of a Whisper encoder")
