import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.torch_version import TorchVersion
from whisper.model import AudioEncoder

from dmlm.pipeline.converters.whisper import WhisperEncoderWeights, load_whisper_weights
from dmlm.pipeline.errors import ConfigError, CorruptInputError, DmlmError

CT2_TYPES = {"float32": 0, "int8": 1, "int16": 2, "float16": 4}
NUM_HEADS, WIDTH = 2, 32


def ct2_text(text: str) -> bytes:
    raw = text.encode() + b"\0"
    return struct.pack("<H", len(raw)) + raw


def ct2_file(variables: dict[str, np.ndarray], spec: str = "WhisperSpec", version: int = 6) -> bytes:
    parts = [struct.pack("<I", version), ct2_text(spec), struct.pack("<II", 3, len(variables))]
    for name, array in variables.items():
        shape = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        kind = struct.pack("<BI", CT2_TYPES[str(array.dtype)], array.nbytes)
        parts += [ct2_text(name), shape, kind, array.tobytes()]
    return b"".join(
        [*parts, struct.pack("<I", 1), ct2_text("decoder/projection"), ct2_text("decoder/embeddings")]
    )


@pytest.fixture(scope="module")
def encoder() -> AudioEncoder:
    torch.manual_seed(0)
    return AudioEncoder(80, 16, WIDTH, NUM_HEADS, 2).half()


@pytest.fixture
def variables(encoder: AudioEncoder) -> dict[str, np.ndarray]:
    """A small Whisper encoder as CTranslate2 names it."""
    state = {name: tensor.numpy() for name, tensor in encoder.state_dict().items()}
    named = {"conv1": "conv1", "conv2": "conv2"}
    for index in range(2):
        source, target = f"blocks.{index}", f"layer_{index}"
        named |= {
            f"{source}.attn.out": f"{target}/self_attention/linear_1",
            f"{source}.mlp.0": f"{target}/ffn/linear_0",
            f"{source}.mlp.2": f"{target}/ffn/linear_1",
        }
    arrays = {
        f"encoder/{target}/{kind}": state[f"{source}.{kind}"]
        for source, target in named.items()
        for kind in ("weight", "bias")
    }
    norms = {"ln_post": "layer_norm"}
    for index in range(2):
        source, target = f"blocks.{index}", f"encoder/layer_{index}/self_attention"
        norms |= {
            f"{source}.attn_ln": f"layer_{index}/self_attention/layer_norm",
            f"{source}.mlp_ln": f"layer_{index}/ffn/layer_norm",
        }
        query, key, value = (state[f"{source}.attn.{part}.weight"] for part in ("query", "key", "value"))
        arrays[f"{target}/linear_0/weight"] = np.concatenate([query, key, value])
        bias = [state[f"{source}.attn.{part}.bias"] for part in ("query", "value")]
        arrays[f"{target}/linear_0/bias"] = np.concatenate([bias[0], np.zeros(WIDTH, np.float16), bias[1]])
    for source, target in norms.items():
        arrays[f"encoder/{target}/gamma"] = state[f"{source}.weight"]
        arrays[f"encoder/{target}/beta"] = state[f"{source}.bias"]
    arrays["encoder/position_encodings/encodings"] = state["positional_embedding"]
    arrays["encoder/num_heads"] = np.array(NUM_HEADS, np.int16)
    arrays["decoder/embeddings"] = np.zeros((3, WIDTH), np.float16)
    return arrays


def load_bytes(folder: Path, content: bytes, name: str = "model.bin") -> WhisperEncoderWeights:
    (folder / name).write_bytes(content)
    return load_whisper_weights(folder / name)


def save_openai(path: Path, weights: WhisperEncoderWeights) -> Path:
    state = {f"encoder.{name}": tensor.half() for name, tensor in weights.state.items()}
    state["decoder.positional_embedding"] = torch.zeros(4, 8)
    torch.save({"dims": {"n_audio_head": weights.num_heads}, "model_state_dict": state}, path)
    return path


def test_packaged_tiny_en_has_the_shape_of_tiny_en(tiny_en: WhisperEncoderWeights) -> None:
    shape = (tiny_en.num_mels, tiny_en.num_positions, tiny_en.width, tiny_en.num_heads, tiny_en.num_layers)
    assert shape == (80, 1500, 384, 6, 4)
    assert all(tensor.dtype == torch.float32 for tensor in tiny_en.state.values())


def test_folder_and_its_model_bin_are_the_same(tiny_en: WhisperEncoderWeights, tiny_en_path: Path) -> None:
    assert load_whisper_weights(tiny_en_path.parent).sha256 == tiny_en.sha256


def test_every_tensor_comes_back_under_its_openai_name(
    encoder: AudioEncoder, variables: dict[str, np.ndarray], tmp_path: Path
) -> None:
    weights = load_bytes(tmp_path, ct2_file(variables))
    expected = encoder.float().state_dict()
    encoder.half()
    assert weights.num_heads == NUM_HEADS
    assert weights.state.keys() == expected.keys()
    assert all(torch.equal(weights.state[name], expected[name]) for name in expected)


def test_both_file_formats_give_equal_encoders(tiny_en: WhisperEncoderWeights, tmp_path: Path) -> None:
    openai = load_whisper_weights(save_openai(tmp_path / "tiny.en.pt", tiny_en))
    assert openai.num_heads == tiny_en.num_heads
    assert openai.sha256 == tiny_en.sha256


def test_bfloat16_is_widened(variables: dict[str, np.ndarray], tmp_path: Path) -> None:
    values = torch.arange(WIDTH, dtype=torch.bfloat16) / 8
    content = ct2_file({**variables, "encoder/conv1/bias": values.view(torch.int16).numpy()})
    marker = ct2_text("encoder/conv1/bias") + struct.pack("<BI", 1, WIDTH)
    start = content.index(marker) + len(marker)
    weights = load_bytes(tmp_path, content[:start] + b"\x05" + content[start + 1 :])
    assert torch.equal(weights.state["conv1.bias"], values.float())


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.5, 0.9999])
def test_cut_model_bin_is_corrupt(variables: dict[str, np.ndarray], tmp_path: Path, share: float) -> None:
    content = ct2_file(variables)
    with pytest.raises(CorruptInputError, match=r"model\.bin"):
        load_bytes(tmp_path, content[: int(len(content) * share)])


def test_bytes_left_over_are_corrupt(variables: dict[str, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(CorruptInputError, match="left over"):
        load_bytes(tmp_path, ct2_file(variables) + b"x")


def test_flipped_bytes_never_escape_as_other_errors(variables: dict[str, np.ndarray], tmp_path: Path) -> None:
    content, rng = ct2_file(variables), np.random.default_rng(0)
    header = content.index(ct2_text("encoder/conv1/weight"))
    num_refused = 0
    for position in [*range(header + 60), *rng.integers(0, len(content), 80)]:
        damaged = bytearray(content)
        damaged[position] ^= int(rng.integers(1, 256))
        try:
            load_bytes(tmp_path, bytes(damaged))
        except DmlmError:
            num_refused += 1
    assert num_refused >= header


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("encoder/conv1/bias"), "conv1.bias: expected"),
        (lambda v: v.pop("encoder/conv1/weight"), "no Whisper audio encoder"),
        (lambda v: v.update({"encoder/extra/weight": np.zeros(3, np.float16)}), "encoder/extra/weight"),
        (lambda v: v["encoder/layer_1/self_attention/linear_0/bias"].fill(1), "bias of the key"),
        (lambda v: v.update({"encoder/conv2/bias": np.full(WIDTH, np.nan, np.float32)}), "not finite"),
        (lambda v: v.update({"encoder/layer_0/ffn/linear_0/bias": np.zeros(5, np.float16)}), "found"),
        (lambda v: v.update({"encoder/num_heads": np.array(5, np.int16)}), "5 heads"),
    ],
)
def test_incomplete_or_odd_encoder_is_corrupt(
    variables: dict[str, np.ndarray],
    tmp_path: Path,
    change: Callable[[dict[str, np.ndarray]], object],
    message: str,
) -> None:
    change(variables)
    with pytest.raises(CorruptInputError, match=message):
        load_bytes(tmp_path, ct2_file(variables))


def test_integer_weights_are_refused(variables: dict[str, np.ndarray], tmp_path: Path) -> None:
    variables["encoder/layer_0/ffn/linear_0/weight"] = np.zeros((WIDTH * 4, WIDTH), np.int8)
    with pytest.raises(ConfigError, match="float16"):
        load_bytes(tmp_path, ct2_file(variables))


def test_another_kind_of_model_is_corrupt(variables: dict[str, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(CorruptInputError, match="Whisper"):
        load_bytes(tmp_path, ct2_file(variables, spec="TransformerSpec"))


def test_missing_checkpoint_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.pt file or a folder"):
        load_whisper_weights(tmp_path)


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_pt_file_cannot_run_code(tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"dims": _Canary(tmp_path / "canary")}, path)
    with pytest.raises(CorruptInputError, match=r"evil\.pt"):
        load_whisper_weights(path)
    assert not (tmp_path / "canary").exists()


def test_cut_or_foreign_pt_file_is_corrupt(tiny_en: WhisperEncoderWeights, tmp_path: Path) -> None:
    content = save_openai(tmp_path / "whole.pt", tiny_en).read_bytes()
    for damaged in (content[: len(content) // 2], pickle.dumps({"dims": {}}), b""):
        with pytest.raises(CorruptInputError):
            load_bytes(tmp_path, damaged, "damaged.pt")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(CorruptInputError, match="not an openai-whisper checkpoint"):
        load_whisper_weights(tmp_path / "other.pt")


def test_pt_file_is_refused_by_an_unsafe_torch(
    tiny_en: WhisperEncoderWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_openai(tmp_path / "tiny.en.pt", tiny_en)
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.9.1"))
    with pytest.raises(ConfigError, match=r"torch >= 2\.10"):
        load_whisper_weights(path)
