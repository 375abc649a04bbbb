import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperModel
from whisper.audio import log_mel_spectrogram, pad_or_trim

from dmlm.pipeline.converters.whisper import WhisperEncoderWeights, load_whisper_weights
from dmlm.pipeline.encoders import WindowMode
from dmlm.pipeline.encoders.registry import open_encoder
from dmlm.pipeline.encoders.whisper import count_frames
from dmlm.pipeline.errors import ConfigError, CorruptInputError
from dmlm.pipeline.samples import Waveform

NUM_LAYERS = 3


@pytest.fixture(scope="module")
def model() -> WhisperModel:
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=48,
        encoder_layers=NUM_LAYERS,
        encoder_attention_heads=4,
        encoder_ffn_dim=192,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=48,
        vocab_size=100,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=1,
    )
    model = WhisperModel(config).eval()
    with torch.no_grad():  # biases and norms are born zero and one, which would hide a wrong map
        for parameter in model.encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture
def checkpoint(model: WhisperModel, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "whisper-small-random")
    return tmp_path / "whisper-small-random"


def transformers_activations(model: WhisperModel, waveform: Waveform, layer: int | None) -> torch.Tensor:
    mel_BMT = log_mel_spectrogram(pad_or_trim(waveform))[None]
    with torch.no_grad():
        result = model.encoder(mel_BMT, output_hidden_states=layer is not None)
    # The last of `hidden_states` is after the final norm: hooks see the true output of the last block.
    if layer is None:
        return result.last_hidden_state[0]
    seen: list[torch.Tensor] = []
    hook = model.encoder.layers[layer - 1].register_forward_hook(
        lambda _, __, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        model.encoder(mel_BMT)
    hook.remove()
    return seen[0].reshape(1500, -1)


@pytest.mark.parametrize("layer", [*range(1, NUM_LAYERS + 1), None])
def test_every_layer_equals_transformers(
    model: WhisperModel, checkpoint: Path, speech: list[Waveform], layer: int | None
) -> None:
    encoder = open_encoder(f"whisper:{checkpoint}", layer=layer, window=WindowMode.PADDED, device="cpu")
    for waveform, found in zip(speech[:2], encoder.encode(speech[:2]), strict=True):
        expected = transformers_activations(model, waveform, layer)[: count_frames(len(waveform))]
        torch.testing.assert_close(found.activations_FD, expected, rtol=1e-4, atol=1e-4)


def test_model_for_transcription_holds_the_same_encoder(
    model: WhisperModel, checkpoint: Path, tmp_path: Path
) -> None:
    whole = WhisperForConditionalGeneration(model.config)
    whole.model.load_state_dict(model.state_dict())
    whole.save_pretrained(tmp_path / "whole")
    assert load_whisper_weights(tmp_path / "whole").sha256 == load_whisper_weights(checkpoint).sha256


def test_equal_weights_in_two_formats_have_one_sha256(tiny_en: WhisperEncoderWeights, tmp_path: Path) -> None:
    names = {
        "blocks": "layers",
        "attn.query": "self_attn.q_proj",
        "attn.key": "self_attn.k_proj",
        "attn.value": "self_attn.v_proj",
        "attn.out": "self_attn.out_proj",
        "attn_ln": "self_attn_layer_norm",
        "mlp.0": "fc1",
        "mlp.2": "fc2",
        "mlp_ln": "final_layer_norm",
        "ln_post": "layer_norm",
        "positional_embedding": "embed_positions.weight",
    }

    def hugging_face_name(name: str) -> str:
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        return f"model.encoder.{name}"

    state = {hugging_face_name(name): tensor.contiguous() for name, tensor in tiny_en.state.items()}
    save_file(state, tmp_path / "model.safetensors")
    settings = {"model_type": "whisper", "encoder_attention_heads": tiny_en.num_heads}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert load_whisper_weights(tmp_path).sha256 == tiny_en.sha256
    assert replace(tiny_en, num_heads=1).num_heads != load_whisper_weights(tmp_path).num_heads


def test_another_model_is_refused(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="a bert model, not Whisper"):
        load_whisper_weights(checkpoint)


def test_checkpoint_in_several_files_is_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00002.safetensors")
    with pytest.raises(ConfigError, match="in one file"):
        load_whisper_weights(checkpoint)


def test_damaged_weights_are_refused(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptInputError, match="cut off or damaged"):
        load_whisper_weights(checkpoint)
    path.write_bytes(whole)
    state = load_file(path)
    for name, message in {
        "encoder.layers.0.fc1.bias": "mlp.0.bias: expected",
        "encoder.conv2.weight": "conv2.weight: expected",
    }.items():
        save_file({key: tensor for key, tensor in state.items() if key != name}, path)
        with pytest.raises(CorruptInputError, match=message):
            load_whisper_weights(checkpoint)
    save_file(state | {"encoder.layers.0.adapter.weight": torch.zeros(2)}, path)
    with pytest.raises(CorruptInputError, match=r"layers\.0\.adapter\.weight is not part"):
        load_whisper_weights(checkpoint)


def test_half_precision_is_read_as_float32(model: WhisperModel, tmp_path: Path) -> None:
    WhisperModel(model.config).half().save_pretrained(tmp_path)
    weights = load_whisper_weights(tmp_path)
    assert {tensor.dtype for tensor in weights.state.values()} == {torch.float32}
    assert np.isfinite(weights.state["conv1.weight"].numpy()).all()
