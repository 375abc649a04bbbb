"""The text decoder of Whisper: CTranslate2 and `.pt` give the same tensors; what is not whole is refused."""

from pathlib import Path

import pytest
import torch
from whisper.model import ModelDimensions, Whisper

from dmlm.pipeline.converters.whisper_decoder import load_whisper_decoder
from dmlm.pipeline.encoders.weights import find_whisper_weights
from dmlm.pipeline.errors import ConfigError, CorruptInputError

SMALL = ModelDimensions(80, 20, 64, 1, 1, 60, 10, 64, 1, 2)


def save(path: Path, state: dict[str, torch.Tensor]) -> Path:
    torch.save({"dims": vars(SMALL), "model_state_dict": state}, path)
    return path


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn_like(tensor) for name, tensor in Whisper(SMALL).state_dict().items()}


def test_openai_checkpoint_gives_its_own_tensors(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    weights = load_whisper_decoder(save(tmp_path / "small.pt", state | {"decoder.mask": torch.ones(10, 10)}))
    assert (weights.num_heads, weights.num_tokens, weights.num_positions) == (1, 60, 10)
    assert (weights.num_layers, weights.width) == (2, 64)
    for name, tensor in weights.state.items():
        assert torch.equal(tensor, state[f"decoder.{name}"])


def test_ctranslate2_gives_every_tensor_of_tiny_en() -> None:
    weights = load_whisper_decoder(find_whisper_weights("whisper:tiny.en"))
    assert (weights.num_heads, weights.num_tokens, weights.num_layers) == (6, 51_864, 4)
    assert weights.state["blocks.3.cross_attn.key.weight"].shape == (384, 384)


def test_what_is_no_decoder_is_refused(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.pt file or a folder"):
        load_whisper_decoder(tmp_path)
    encoder = {name: tensor for name, tensor in state.items() if name.startswith("encoder.")}
    with pytest.raises(CorruptInputError, match="no Whisper text decoder"):
        load_whisper_decoder(save(tmp_path / "deaf.pt", encoder))
    del state["decoder.ln.bias"]
    with pytest.raises(CorruptInputError, match=r"ln\.bias.*found nothing"):
        load_whisper_decoder(save(tmp_path / "half.pt", state))
