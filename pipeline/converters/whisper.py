"""Reads openai-whisper `.pt` files and CTranslate2 `model.bin`, and the audio encoder of them.

Both give the audio encoder in openai-whisper's own names, float32, checked for completeness, shapes
and finite values before anything is computed with it. Nothing in a checkpoint can run code.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dmlm.pipeline.converters.checkpoints import State, check_state, hash_state, load_torch_checkpoint
from dmlm.pipeline.converters.huggingface_whisper import SETTINGS as HUGGINGFACE_SETTINGS
from dmlm.pipeline.converters.huggingface_whisper import read_huggingface_whisper
from dmlm.pipeline.errors import ConfigError, CorruptInputError


@dataclass(frozen=True, kw_only=True, eq=False)
class WhisperEncoderWeights:
    """The audio encoder of a Whisper checkpoint."""

    num_heads: int
    state: State
    """float32 tensors by the names of openai-whisper's `AudioEncoder`."""

    @property
    def num_mels(self) -> int:
        """Mel bands of the input: 80, or 128 from large-v3 on."""
        return self.state["conv1.weight"].shape[1]

    @property
    def width(self) -> int:
        """Width of the activations."""
        return self.state["conv1.weight"].shape[0]

    @property
    def num_positions(self) -> int:
        """Most frames of one window: 1,500."""
        return self.state["positional_embedding"].shape[0]

    @property
    def num_layers(self) -> int:
        """Number of transformer blocks."""
        return len({name.split(".")[1] for name in self.state if name.startswith("blocks.")})

    @cached_property
    def sha256(self) -> str:
        """Hash of names, shapes and values, so that equal weights in two file formats are equal."""
        return hash_state(self.state)


def load_whisper_weights(path: Path) -> WhisperEncoderWeights:
    """Reads an openai-whisper `.pt` file, or a folder of CTranslate2 (or its `model.bin`) or Hugging Face.

    Raises:
        ConfigError: `path` is none of these, or its weights are quantised to integers.
        CorruptInputError: The file is cut, damaged or not a Whisper model.
    """
    num_heads, state = _read(path)
    state = {name: tensor.float() for name, tensor in state.items()}
    weights = WhisperEncoderWeights(num_heads=num_heads, state=state)
    _check_encoder(weights, path)
    return weights


def _read(path: Path) -> tuple[int, State]:
    if (path / "model.bin").is_file():
        return read_ctranslate2(path / "model.bin", "encoder", _openai_tensors)
    if (path / HUGGINGFACE_SETTINGS).is_file():
        return read_huggingface_whisper(path)
    if path.is_file():
        if path.suffix == ".pt":
            return read_openai(path, "encoder", "n_audio_head")
        return read_ctranslate2(path, "encoder", _openai_tensors)
    raise ConfigError(
        f"{path}: no Whisper checkpoint; expected a .pt file or a folder with model.bin (CTranslate2) "
        "or with config.json and model.safetensors (Hugging Face)"
    )


def _check_encoder(weights: WhisperEncoderWeights, path: Path) -> None:
    from whisper.model import AudioEncoder

    shapes = {name: tuple(tensor.shape) for name, tensor in weights.state.items()}
    ranks = {"conv1.weight": 3, "positional_embedding": 2}
    if any(len(shapes.get(name, ())) != rank for name, rank in ranks.items()):
        raise CorruptInputError(f"{path}: holds no Whisper audio encoder")
    width, num_heads = weights.width, weights.num_heads
    if num_heads < 1 or width % (2 * num_heads) or weights.num_mels not in (80, 128):
        raise CorruptInputError(
            f"{path}: {num_heads} heads, width {width}, {weights.num_mels} mels: not Whisper"
        )
    with torch.device("meta"):
        encoder = AudioEncoder(weights.num_mels, weights.num_positions, width, num_heads, weights.num_layers)
    check_state(weights.state, encoder.state_dict(), path)


def read_openai(path: Path, part: str, heads_name: str) -> tuple[int, State]:
    """Heads (0: not said) of `encoder` or `decoder` in a `.pt` file, and its tensors without that prefix.

    Raises:
        CorruptInputError: The file is cut, damaged or no checkpoint of openai-whisper.
    """
    content, prefix = load_torch_checkpoint(path), f"{part}."
    dims, state = content.get("dims"), content.get("model_state_dict")
    if not isinstance(dims, dict) or not isinstance(state, dict):
        raise CorruptInputError(f"{path}: not an openai-whisper checkpoint (no dims or model_state_dict)")
    tensors = {
        str(name).removeprefix(prefix): tensor
        for name, tensor in state.items()
        if str(name).startswith(prefix) and isinstance(tensor, torch.Tensor)
    }
    num_heads = dims.get(heads_name)
    return num_heads if isinstance(num_heads, int) else 0, tensors


_CT2_VERSIONS = (5, 6)
_CT2_BFLOAT16 = 5
_CT2_DTYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2", _CT2_BFLOAT16: "<u2"}

_CT2_NAMES = {
    "conv1/weight": "conv1.weight",
    "conv1/bias": "conv1.bias",
    "conv2/weight": "conv2.weight",
    "conv2/bias": "conv2.bias",
    "position_encodings/encodings": "positional_embedding",
    "layer_norm/gamma": "ln_post.weight",
    "layer_norm/beta": "ln_post.bias",
}
_CT2_BLOCK_NAMES = {
    "self_attention/layer_norm/gamma": "attn_ln.weight",
    "self_attention/layer_norm/beta": "attn_ln.bias",
    "self_attention/linear_1/weight": "attn.out.weight",
    "self_attention/linear_1/bias": "attn.out.bias",
    "ffn/layer_norm/gamma": "mlp_ln.weight",
    "ffn/layer_norm/beta": "mlp_ln.bias",
    "ffn/linear_0/weight": "mlp.0.weight",
    "ffn/linear_0/bias": "mlp.0.bias",
    "ffn/linear_1/weight": "mlp.2.weight",
    "ffn/linear_1/bias": "mlp.2.bias",
}


class _Cursor:
    """Reads little-endian fields; every length is checked against the bytes that are left."""

    def __init__(self, path: Path) -> None:
        self.data = np.memmap(path, np.uint8, mode="r")
        self.path, self.position = path, 0

    @property
    def num_left(self) -> int:
        return len(self.data) - self.position

    def take(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        if num_bytes > self.num_left:
            raise CorruptInputError(
                f"{self.path}: cut off or damaged: {num_bytes} bytes wanted at byte {self.position},"
                f" {self.num_left} left"
            )
        self.position += num_bytes
        return self.data[self.position - num_bytes : self.position]

    def integer(self, num_bytes: int) -> int:
        return int.from_bytes(self.take(num_bytes).tobytes(), "little")

    def text(self) -> str:
        name = self.take(self.integer(2)).tobytes().rstrip(b"\0")
        try:
            return name.decode("ascii")
        except UnicodeDecodeError as error:
            raise CorruptInputError(f"{self.path}: damaged name before byte {self.position}") from error

    def array(self) -> npt.NDArray[np.generic]:
        shape = tuple(self.integer(4) for _ in range(self.integer(1)))
        type_id, num_bytes = self.integer(1), self.integer(4)
        data, dtype = self.take(num_bytes), _CT2_DTYPES.get(type_id)
        if dtype is None or len(shape) > 4 or math.prod(shape) * np.dtype(dtype).itemsize != num_bytes:
            raise CorruptInputError(
                f"{self.path}: type {type_id} and shape {shape} do not fill {num_bytes} bytes"
            )
        array = data.view(dtype).reshape(shape)
        return (array.astype("<u4") << 16).view("<f4") if type_id == _CT2_BFLOAT16 else array


def read_ctranslate2(
    path: Path, part: str, to_openai: Callable[[str, torch.Tensor, Path], State]
) -> tuple[int, State]:
    """Heads and tensors of `encoder` or `decoder` in a CTranslate2 file, by the names that `to_openai` gives.

    Raises:
        ConfigError: The weights are quantised to integers.
        CorruptInputError: The file is cut, damaged or no Whisper model.
    """
    variables = _read_variables(path, part)
    heads = variables.pop("num_heads", None)
    state: State = {}
    for name, array in variables.items():
        if array.ndim == 0 or name.startswith("alignment"):
            continue  # a setting of the runtime
        if array.dtype.kind != "f":
            raise ConfigError(
                f"{path}: holds {array.dtype} weights, which distort the activations;"
                " convert the model again with --quantization float16"
            )
        state |= to_openai(name, torch.from_numpy(array.astype(np.float32)), path)
    if heads is not None and heads.ndim == 0 and heads.dtype.kind == "i":
        return int(heads), state
    # Specs before revision 3 do not say; every Whisper has heads of width 64.
    return (state["positional_embedding"].shape[-1] // 64 if "positional_embedding" in state else 0), state


def _read_variables(path: Path, part: str) -> dict[str, npt.NDArray[np.generic]]:
    """Arrays of `encoder` or `decoder`, without that prefix; the whole file is checked."""
    if path.stat().st_size == 0:
        raise CorruptInputError(f"{path}: is empty")
    cursor = _Cursor(path)
    version = cursor.integer(4)
    if version not in _CT2_VERSIONS or cursor.text() != "WhisperSpec":
        raise CorruptInputError(f"{path}: not a CTranslate2 Whisper model of binary version 5 or 6")
    cursor.integer(4)  # revision of the spec
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for _ in range(cursor.integer(4)):
        name = cursor.text()
        if name in arrays:
            raise CorruptInputError(f"{path}: {name} occurs twice")
        arrays[name] = cursor.array()
    for _ in range(cursor.integer(4)):
        alias, name = cursor.text(), cursor.text()
        if name not in arrays:
            raise CorruptInputError(f"{path}: {alias} stands for {name}, which is not there")
        arrays[alias] = arrays[name]
    if cursor.num_left:
        raise CorruptInputError(f"{path}: {cursor.num_left} bytes left over")
    prefix = f"{part}/"
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _openai_tensors(name: str, tensor: torch.Tensor, path: Path) -> State:
    """Tensors of openai-whisper that one encoder variable of CTranslate2 holds."""
    if name in _CT2_NAMES:
        return {_CT2_NAMES[name]: tensor}
    match = re.fullmatch(r"layer_(\d+)/(.+)", name)
    if match and match[2] in _CT2_BLOCK_NAMES:
        return {f"blocks.{match[1]}.{_CT2_BLOCK_NAMES[match[2]]}": tensor}
    if match and match[2] in ("self_attention/linear_0/weight", "self_attention/linear_0/bias"):
        prefix, kind = f"blocks.{match[1]}.attn", match[2].rpartition("/")[2]
        return split_attention(prefix, ("query", "key", "value"), kind, tensor, path)
    raise CorruptInputError(f"{path}: encoder/{name} is not part of a Whisper encoder")


def split_attention(prefix: str, parts: tuple[str, ...], kind: str, fused: torch.Tensor, path: Path) -> State:
    """Takes apart what CTranslate2 stacks, such as query, key and value; openai-whisper's key has no bias.

    Raises:
        CorruptInputError: The rows are not those parts, or the key has a bias.
    """
    if fused.shape[0] % len(parts):
        raise CorruptInputError(f"{path}: {prefix}: {fused.shape[0]} rows are not {', '.join(parts)}")
    tensors = dict(zip(parts, fused.chunk(len(parts)), strict=True))
    if kind == "bias" and tensors.pop("key").any():
        raise CorruptInputError(f"{path}: {prefix}: the bias of the key is not zero")
    return {f"{prefix}.{name}.{kind}": tensor.contiguous() for name, tensor in tensors.items()}
