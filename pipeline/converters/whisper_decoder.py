"""Reads the text decoder of openai-whisper `.pt` and CTranslate2 `model.bin`, in openai-whisper's names."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from dmlm.pipeline.converters.checkpoints import State, check_state
from dmlm.pipeline.converters.whisper import read_ctranslate2, read_openai, split_attention
from dmlm.pipeline.errors import ConfigError, CorruptInputError


@dataclass(frozen=True, kw_only=True, eq=False)
class WhisperDecoderWeights:
    """The text decoder of a Whisper checkpoint."""

    num_heads: int
    state: State
    """float32 tensors by the names of openai-whisper's `TextDecoder`."""

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary: 51,864 without other languages than English."""
        return self.state["token_embedding.weight"].shape[0]

    @property
    def width(self) -> int:
        """Width of the decoder."""
        return self.state["token_embedding.weight"].shape[1]

    @property
    def num_positions(self) -> int:
        """Most tokens of one window: 448."""
        return self.state["positional_embedding"].shape[0]

    @property
    def num_layers(self) -> int:
        """Number of transformer blocks."""
        return len({name.split(".")[1] for name in self.state if name.startswith("blocks.")})


def load_whisper_decoder(path: Path) -> WhisperDecoderWeights:
    """Reads an openai-whisper `.pt` file, or a folder of CTranslate2 or its `model.bin`.

    Raises:
        ConfigError: `path` is neither, or its weights are quantised to integers.
        CorruptInputError: The file is cut, damaged or not a Whisper model.
    """
    model = path / "model.bin" if path.is_dir() else path
    if not model.is_file():
        raise ConfigError(
            f"{path}: to hear with, Whisper must be a .pt file or a folder with model.bin (CTranslate2)"
        )
    if model.suffix == ".pt":
        num_heads, state = read_openai(model, "decoder", "n_text_head")
        state.pop("mask", None)  # old checkpoints hold it; it is no weight
    else:
        num_heads, state = read_ctranslate2(model, "decoder", _openai_tensors)
    weights = WhisperDecoderWeights(
        num_heads=num_heads, state={name: tensor.float() for name, tensor in state.items()}
    )
    _check_decoder(weights, path)
    return weights


def _check_decoder(weights: WhisperDecoderWeights, path: Path) -> None:
    from whisper.model import TextDecoder

    matrices = (weights.state.get(name) for name in ("token_embedding.weight", "positional_embedding"))
    if any(matrix is None or matrix.ndim != 2 for matrix in matrices):
        raise CorruptInputError(f"{path}: holds no Whisper text decoder")
    if weights.num_heads < 1 or weights.width % weights.num_heads:
        raise CorruptInputError(f"{path}: {weights.num_heads} heads, width {weights.width}: not Whisper")
    shape = (weights.num_tokens, weights.num_positions, weights.width, weights.num_heads, weights.num_layers)
    with torch.device("meta"):
        decoder = TextDecoder(*shape)
    check_state(weights.state, decoder.state_dict(), path)


_NAMES = {
    "embeddings/weight": "token_embedding.weight",
    "position_encodings/encodings": "positional_embedding",
    "layer_norm/gamma": "ln.weight",
    "layer_norm/beta": "ln.bias",
    "projection/weight": None,  # the embeddings again
}
_MODULES = {
    "self_attention/layer_norm": "attn_ln",
    "self_attention/linear_1": "attn.out",
    "attention/layer_norm": "cross_attn_ln",
    "attention/linear_0": "cross_attn.query",
    "attention/linear_2": "cross_attn.out",
    "ffn/layer_norm": "mlp_ln",
    "ffn/linear_0": "mlp.0",
    "ffn/linear_1": "mlp.2",
}
_KINDS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
_STACKED = {
    "self_attention/linear_0": ("attn", ("query", "key", "value")),
    "attention/linear_1": ("cross_attn", ("key", "value")),
}


def _openai_tensors(name: str, tensor: torch.Tensor, path: Path) -> State:
    """Tensors of openai-whisper that one decoder variable of CTranslate2 holds."""
    if name in _NAMES:
        ours = _NAMES[name]
        return {} if ours is None else {ours: tensor}
    match = re.fullmatch(r"layer_(\d+)/(.+)/(\w+)", name)
    if match and match[3] in _KINDS:
        prefix, kind = f"blocks.{match[1]}", _KINDS[match[3]]
        if match[2] in _MODULES:
            return {f"{prefix}.{_MODULES[match[2]]}.{kind}": tensor}
        if match[2] in _STACKED:
            module, parts = _STACKED[match[2]]
            return split_attention(f"{prefix}.{module}", parts, kind, tensor, path)
    raise CorruptInputError(f"{path}: decoder/{name} is not part of a Whisper decoder")
