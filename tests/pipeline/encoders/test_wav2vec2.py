"""Small random models of the true architectures, against transformers' own forward of one recording."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    HubertConfig,
    HubertModel,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForPreTraining,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

from dmlm.pipeline.encoders import wav2vec2
from dmlm.pipeline.encoders.wav2vec2 import FrameGrid, Wav2Vec2Encoder, normalise, open_wav2vec2_encoder
from dmlm.pipeline.errors import ConfigError, CorruptInputError
from dmlm.pipeline.samples import Waveform

NUM_LAYERS = 3
TOLERANCE = 1e-5
"""Activations of these models reach about 4."""
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [24] * 7,
    "num_conv_pos_embedding_groups": 4,
}
BASE = {"feat_extract_norm": "group", "conv_bias": False, "do_stable_layer_norm": False}
LARGE = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
ARCHITECTURES = {
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model),
    "hubert": (HubertConfig, HubertModel),
    "wavlm": (WavLMConfig, WavLMModel),
}
KINDS = [
    pytest.param(f, k, id=f"{f}-{n}") for f in ARCHITECTURES for n, k in (("base", BASE), ("large", LARGE))
]


def build(family: str, kind: dict[str, object]) -> PreTrainedModel:
    config, model = ARCHITECTURES[family]
    torch.manual_seed(0)
    built = model(config(**SHAPE, **kind)).eval()
    for parameter in built.parameters():
        # Fresh biases and norms are zeros and ones, which would hide a mistake.
        parameter.data += 0.1 * torch.randn_like(parameter)
    return built


def noise(num_samples: int, seed: int = 0) -> Waveform:
    return (np.random.default_rng(seed).standard_normal(num_samples) * 0.3 + 0.1).astype(np.float32)


def encode(encoder: Wav2Vec2Encoder, waveforms: list[Waveform]) -> list[Tensor]:
    return [activations.activations_FD for activations in encoder.encode(iter(waveforms))]


@torch.no_grad()
def block_outputs(model: PreTrainedModel, waveform: Waveform) -> list[Tensor]:
    """What each block gives [F, D] in a forward of transformers itself; the model's own output last."""
    outputs: list[Tensor] = []

    def keep(_block: object, _input: object, output: Tensor | tuple[Tensor, ...]) -> None:
        outputs.append((output if isinstance(output, Tensor) else output[0])[0].clone())

    hooks = [block.register_forward_hook(keep) for block in model.encoder.layers]
    last_BFD = model(torch.from_numpy(waveform)[None]).last_hidden_state
    for hook in hooks:
        hook.remove()
    return [*outputs, last_BFD[0]]


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_batched_layers_equal_transformers_one_by_one(family: str, kind: dict[str, object]) -> None:
    recordings = [noise(length, length) for length in (7_000, 16_001, 400, 11_000, 16_001)]
    expected = [block_outputs(build(family, kind), waveform) for waveform in recordings]
    for layer in (1, 2, NUM_LAYERS, None):
        encoder = Wav2Vec2Encoder(build(family, kind), layer=layer, device="cpu", batch_seconds=60)
        for found_FD, outputs in zip(encode(encoder, recordings), expected, strict=True):
            expected_FD = outputs[-1 if layer is None else layer - 1]
            assert found_FD.shape == expected_FD.shape
            assert (found_FD - expected_FD).abs().max() < TOLERANCE, layer


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_result_does_not_depend_on_what_shares_the_batch(family: str, kind: dict[str, object]) -> None:
    recordings = [noise(length, length) for length in (5_000, 9_000)]
    loud = [noise(length, length) * 100 for length in (3_333, 8_999, 30_001)]
    alone, together = (
        Wav2Vec2Encoder(build(family, kind), device="cpu", batch_seconds=seconds) for seconds in (0.1, 60)
    )
    for one_FD, other_FD in zip(
        encode(alone, recordings), encode(together, [*loud, *recordings])[len(loud) :], strict=True
    ):
        assert (one_FD - other_FD).abs().max() < TOLERANCE


def test_last_layer_of_a_large_model_is_normed_and_its_number_is_not() -> None:
    numbered, last = (
        Wav2Vec2Encoder(build("wav2vec2", LARGE), layer=layer, device="cpu") for layer in (NUM_LAYERS, None)
    )
    norm = build("wav2vec2", LARGE).encoder.layer_norm
    (numbered_FD,), (last_FD,) = encode(numbered, [noise(4_000)]), encode(last, [noise(4_000)])
    assert (norm(numbered_FD) - last_FD).abs().max() < TOLERANCE
    assert (numbered_FD - last_FD).abs().max() > 0.1


def test_blocks_behind_the_layer_are_not_run() -> None:
    model = build("hubert", BASE)
    model.encoder.layers[2].forward = None
    assert encode(Wav2Vec2Encoder(model, layer=2, device="cpu"), [noise(4_000)])


def test_order_is_kept_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wav2vec2, "READ_AHEAD_SECONDS", 1)
    lengths = [9_000, 400, 17_000, 0, 1_600, 30_000, 800]
    encoder = Wav2Vec2Encoder(build("wav2vec2", BASE), layer=1, device="cpu")
    found = [len(frames_FD) for frames_FD in encode(encoder, [noise(length) for length in lengths])]
    assert found == [FrameGrid().count_frames(length) for length in lengths]


def test_normalisation_is_that_of_the_feature_extractor() -> None:
    waveform = noise(5_000)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    expected = extractor(waveform, sampling_rate=16_000, return_tensors="np").input_values[0]
    assert np.abs(normalise(waveform) - expected).max() < 1e-6
    normed, plain = (
        Wav2Vec2Encoder(build("wav2vec2", LARGE), device="cpu", do_normalize=flag) for flag in (True, False)
    )
    (found_FD,), (expected_FD,) = encode(normed, [waveform]), encode(plain, [expected])
    assert (found_FD - expected_FD).abs().max() < TOLERANCE


def test_recording_shorter_than_a_frame_gives_one() -> None:
    encoder = Wav2Vec2Encoder(build("wav2vec2", BASE), device="cpu")
    assert [len(frames_FD) for frames_FD in encode(encoder, [noise(160), noise(399), noise(720)])] == [
        1,
        1,
        2,
    ]


@given(st.integers(0, 60_000), st.integers(1, 30))
def test_windows_hold_every_frame_once_and_all_samples(num_samples: int, max_frames: int) -> None:
    grid = FrameGrid()
    waveform = np.arange(num_samples, dtype=np.float32)
    windows = grid.split(waveform, max_frames)
    frames = [grid.count_frames(len(window)) for window in windows]
    assert sum(frames) == grid.count_frames(num_samples)
    assert all(0 < count <= max_frames for count in frames)
    assert max(frames, default=0) - min(frames, default=0) <= 1
    starts = [int(window[0]) for window in windows]
    assert starts == [grid.hop * sum(frames[:index]) for index in range(len(frames))]
    if num_samples:
        assert waveform[-1] in windows[-1]


def test_long_recording_is_encoded_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wav2vec2, "MAX_WINDOW_FRAMES", 50)
    waveform = noise(16_000 + 4_000)  # 62 frames, in two windows of 31
    encoder = Wav2Vec2Encoder(build("wav2vec2", BASE), device="cpu")
    whole_FD, head_FD, tail_FD = encode(encoder, [waveform, waveform[: 30 * 320 + 400], waveform[31 * 320 :]])
    assert (whole_FD - torch.cat([head_FD, tail_FD])).abs().max() < TOLERANCE


@pytest.mark.parametrize("layer", [0, NUM_LAYERS + 1, -1])
def test_layer_that_does_not_exist_is_refused(layer: int) -> None:
    with pytest.raises(ConfigError, match="layers 1 to 3"):
        Wav2Vec2Encoder(build("wavlm", BASE), layer=layer, device="cpu")


def test_fingerprint_tells_weights_layer_family_and_normalisation_apart() -> None:
    def fingerprint(family: str, **settings: object) -> str:
        return str(Wav2Vec2Encoder(build(family, BASE), device="cpu", **settings).fingerprint)

    prints = [fingerprint("hubert"), fingerprint("hubert", layer=3), fingerprint("wavlm")]
    assert len({*prints, fingerprint("hubert", do_normalize=True)}) == 4
    assert fingerprint("hubert") == prints[0]


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[PreTrainedModel], Path]:
    """Function that saves a model as its Hugging Face folder."""

    def save(model: PreTrainedModel) -> Path:
        model.save_pretrained(tmp_path / "model")
        Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return save


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_folder_opens_as_the_model_it_holds(family: str, folder: Callable[[PreTrainedModel], Path]) -> None:
    model = build(family, LARGE)
    encoder = open_wav2vec2_encoder(f"{family}:{folder(model)}", layer=2, device="cpu")
    (found_FD,) = encode(encoder, [noise(8_000)])
    assert (found_FD - block_outputs(model, normalise(noise(8_000)))[1]).abs().max() < TOLERANCE
    assert encoder.fingerprint["normalised"] is True


def test_heads_of_pretraining_are_left_unread(folder: Callable[[PreTrainedModel], Path]) -> None:
    torch.manual_seed(0)
    whole = Wav2Vec2ForPreTraining(Wav2Vec2Config(**SHAPE, **LARGE)).eval()
    encoder = open_wav2vec2_encoder(str(folder(whole)), layer=None, device="cpu")
    (found_FD,) = encode(encoder, [noise(8_000)])
    assert (found_FD - block_outputs(whole.wav2vec2, normalise(noise(8_000)))[-1]).abs().max() < TOLERANCE


def test_training_only_tensor_may_be_missing_and_no_other(folder: Callable[[PreTrainedModel], Path]) -> None:
    from safetensors.torch import load_file, save_file

    place = folder(build("wav2vec2", BASE))
    path = place / "model.safetensors"
    state = load_file(path)
    del state["masked_spec_embed"]
    save_file(state, path, metadata={"format": "pt"})
    prints = [open_wav2vec2_encoder(str(place), layer=1, device="cpu").fingerprint for _ in range(2)]
    assert prints[0] == prints[1]
    del state["encoder.layers.1.attention.k_proj.weight"]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(CorruptInputError, match=r"lack encoder\.layers\.1\.attention\.k_proj\.weight"):
        open_wav2vec2_encoder(str(place), layer=1, device="cpu")


def test_cut_weights_are_corrupt(folder: Callable[[PreTrainedModel], Path]) -> None:
    path = folder(build("wav2vec2", BASE)) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptInputError, match="damaged weights"):
        open_wav2vec2_encoder(str(path.parent), layer=1, device="cpu")


def test_pickled_weights_are_not_read(folder: Callable[[PreTrainedModel], Path]) -> None:
    model = build("wav2vec2", BASE)
    place = folder(model)
    (place / "model.safetensors").unlink()
    torch.save(model.state_dict(), place / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        open_wav2vec2_encoder(str(place), layer=1, device="cpu")


def test_model_of_another_family_is_refused(folder: Callable[[PreTrainedModel], Path]) -> None:
    with pytest.raises(ConfigError, match="is a hubert, not a wavlm"):
        open_wav2vec2_encoder(f"wavlm:{folder(build('hubert', BASE))}", layer=1, device="cpu")


def test_name_that_is_not_here_is_refused_without_asking_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(ConfigError, match="hf download dmlm/there-is-none"):
        open_wav2vec2_encoder("hubert:dmlm/there-is-none", layer=1, device="cpu")
