"""A small XLS-R of 36 blocks with 10,000 random centroids; the golden units where the weights are."""

import importlib.util
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

from dmlm.pipeline.audio import load_waveform
from dmlm.pipeline.converters.checkpoints import MIN_TORCH
from dmlm.pipeline.converters.xlsr import convert_xlsr, xlsr_1b_config
from dmlm.pipeline.errors import ConfigError, CorruptInputError, MissingDependencyError
from dmlm.pipeline.samples import Waveform
from dmlm.pipeline.tokenizers.seamless import (
    CENTROIDS,
    CHECKPOINT,
    CONVERTED,
    LAYER,
    NUM_UNITS,
    SeamlessTokenizer,
    open_seamless_tokenizer,
    read_centroids,
)

WIDTH = 32
GOLDEN_DIR = "DMLM_SEAMLESS_DIR"
GOLDEN_UNITS = [5884, 2411, 5280, 1803, 5932, 3421, 3992, 1867, 1867, 4783]
"""Of LJ003-0001: seamless_communication, pull request 61."""


@pytest.fixture(scope="module")
def model() -> Wav2Vec2Model:
    torch.manual_seed(0)
    config = xlsr_1b_config(
        hidden_size=WIDTH,
        num_hidden_layers=36,
        num_attention_heads=4,
        intermediate_size=48,
        conv_dim=[24] * 7,
    )
    model = Wav2Vec2Model(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def folder(model: Wav2Vec2Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is left of a user's folder after the first run, but smaller."""
    folder = tmp_path_factory.mktemp("seamless")
    model.save_pretrained(folder / CONVERTED)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder / CONVERTED)
    # Scattered around real frames: those of a random model lie close to each other.
    rng, frames_FD = np.random.default_rng(0), released_frames(model, noise(32_000, 1))
    scatter_KD = rng.standard_normal((NUM_UNITS, WIDTH)) * frames_FD.std(axis=0) * 0.3
    centroids_KD = frames_FD[rng.integers(0, len(frames_FD), NUM_UNITS)] + scatter_KD
    np.save(folder / CENTROIDS, centroids_KD.astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> SeamlessTokenizer:
    return open_seamless_tokenizer(folder, device="cpu")


def fairseq2_name(name: str) -> str:
    for ours, theirs in (
        ("feature_extractor.conv_layers", "encoder_frontend.feature_extractor.layers"),
        ("feature_projection.layer_norm", "encoder_frontend.post_extract_layer_norm"),
        ("feature_projection.projection", "encoder_frontend.model_dim_proj"),
        ("encoder.pos_conv_embed.conv", "encoder_frontend.pos_encoder.conv"),
        ("parametrizations.weight.original0", "weight_g"),
        ("parametrizations.weight.original1", "weight_v"),
        (".final_layer_norm", ".ffn_layer_norm"),
        ("attention.out_proj", "self_attn.output_proj"),
        ("attention", "self_attn"),
        ("feed_forward.intermediate_dense", "ffn.inner_proj"),
        ("feed_forward.output_dense", "ffn.output_proj"),
    ):
        name = name.replace(ours, theirs)
    in_block = name.startswith("encoder.layers.")
    return name.replace(".layer_norm", ".self_attn_layer_norm") if in_block else name


def noise(num_samples: int, seed: int = 0) -> Waveform:
    return (np.random.default_rng(seed).standard_normal(num_samples) * 0.1 + 0.02).astype(np.float32)


def encode(tokenizer: SeamlessTokenizer, waveforms: list[Waveform]) -> list[list[int]]:
    return [units.tolist() for units in tokenizer.encode(iter(waveforms))]


@torch.no_grad()
def released_frames(model: Wav2Vec2Model, waveform: Waveform) -> np.ndarray:
    """Frames [F, D] of the released recipe, step by step."""
    padded = np.append(waveform, np.float32(1)) if len(waveform) % 2 else waveform
    double = padded.astype(np.float64)
    normed = ((double - double.mean()) / np.sqrt(double.var() + 1e-5)).astype(np.float32)
    outputs = []
    block = model.encoder.layers[LAYER - 1]
    hook = block.register_forward_hook(lambda _block, _input, output: outputs.append(output))
    model(torch.from_numpy(normed)[None])
    hook.remove()
    (output,) = outputs
    return (output if isinstance(output, torch.Tensor) else output[0])[0].double().numpy()


def test_units_are_those_of_the_released_recipe_whatever_shares_the_batch(
    model: Wav2Vec2Model, folder: Path, tokenizer: SeamlessTokenizer
) -> None:
    centroids_KD = np.load(folder / CENTROIDS).astype(np.float64)
    recordings = [noise(length, length) for length in (16_000, 8_001, 12_345, 719)]
    loud = [noise(length, length) * 100 for length in (1_111, 8_000, 30_000)]
    found = encode(tokenizer, [*loud, *recordings])[len(loud) :]
    for waveform, units in zip(recordings, found, strict=True):
        frames_FD = released_frames(model, waveform)
        distances_FK = np.stack([np.square(centroids_KD - frame_D).sum(axis=1) for frame_D in frames_FD])
        # Rounding may decide between centroids that are equally near.
        excess_F = distances_FK[np.arange(len(units)), units] / distances_FK.min(axis=1) - 1
        assert excess_F.max() < 1e-3
        assert np.mean(distances_FK.argmin(axis=1) == units) > 0.95
    assert len({unit for units in found for unit in units}) > 20


def test_odd_recording_is_filled_up_with_a_one_before_the_norm(tokenizer: SeamlessTokenizer) -> None:
    odd = noise(719)  # one sample short of two frames
    by_hand = np.append(odd, np.float32(1))
    found, expected = encode(tokenizer, [odd, by_hand])
    assert found == expected
    assert len(found) == 2


def test_empty_recording_has_no_units(tokenizer: SeamlessTokenizer) -> None:
    assert encode(tokenizer, [noise(0), noise(160)])[0] == []


def test_fingerprint_names_weights_layer_and_centroids(tokenizer: SeamlessTokenizer) -> None:
    fingerprint = tokenizer.fingerprint
    assert (fingerprint["layer"], fingerprint["num_clusters"]) == (35, 10_000)
    assert {"encoder_sha256", "codebook_sha256", "batch_seconds", "backend"} <= fingerprint.keys()


@pytest.mark.skipif(torch.__version__ < MIN_TORCH, reason="this torch may not read .pt files")
def test_converted_checkpoint_gives_the_same_units(
    model: Wav2Vec2Model, folder: Path, tokenizer: SeamlessTokenizer, tmp_path: Path
) -> None:
    state = {fairseq2_name(name): tensor for name, tensor in model.state_dict().items()}
    torch.save({"model": state}, tmp_path / CHECKPOINT)
    convert_xlsr(tmp_path / CHECKPOINT, tmp_path / CONVERTED, model.config)
    (tmp_path / CHECKPOINT).unlink()
    shutil.copy(folder / CENTROIDS, tmp_path)
    converted = open_seamless_tokenizer(tmp_path, device="cpu")
    assert converted.fingerprint == tokenizer.fingerprint
    assert encode(converted, [noise(5_001)]) == encode(tokenizer, [noise(5_001)])


def test_missing_files_are_named_with_their_address_and_licence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{CHECKPOINT} and {CENTROIDS} there \(CC BY-NC 4.0, from https:"):
        open_seamless_tokenizer(tmp_path)
    (tmp_path / CHECKPOINT).touch()
    with pytest.raises(ConfigError, match="CC BY-NC"):
        open_seamless_tokenizer(tmp_path)


def test_unknown_backend_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="transformers, fairseq2"):
        open_seamless_tokenizer(folder, backend="fairseq")


@pytest.mark.skipif(importlib.util.find_spec("fairseq2") is not None, reason="fairseq2 is installed")
def test_missing_fairseq2_names_the_extra(folder: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r"dmlm\[fairseq2\]"):
        open_seamless_tokenizer(folder, device="cpu", backend="fairseq2")


@pytest.mark.skipif(importlib.util.find_spec("fairseq2") is None, reason="fairseq2 is not installed")
def test_fairseq2_gives_the_same_units(folder: Path, tokenizer: SeamlessTokenizer) -> None:
    reference = open_seamless_tokenizer(folder, device="cpu", backend="fairseq2")
    for length in (16_000, 8_001, 719):
        assert encode(reference, [noise(length)]) == encode(tokenizer, [noise(length)])
    one, other = ({**t.fingerprint, "backend": 0, "batch_seconds": 0} for t in (reference, tokenizer))
    assert one == other


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, WIDTH), np.float32), "shape"),
        (np.zeros((NUM_UNITS, WIDTH), np.int32), "int32"),
        (np.full((NUM_UNITS, WIDTH), np.inf, np.float32), "not finite"),
    ],
)
def test_centroids_of_another_kind_are_corrupt(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / CENTROIDS, array)
    with pytest.raises(CorruptInputError, match=message):
        read_centroids(tmp_path / CENTROIDS, WIDTH)


def test_damaged_centroids_are_corrupt(folder: Path, tmp_path: Path) -> None:
    content = (folder / CENTROIDS).read_bytes()
    for damaged in (content[:-1], content[:20], b"", b"PK" + content):
        (tmp_path / CENTROIDS).write_bytes(damaged)
        with pytest.raises(CorruptInputError, match="not a whole npy file"):
            read_centroids(tmp_path / CENTROIDS, WIDTH)


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_centroids_cannot_run_code(tmp_path: Path) -> None:
    evil = _Canary(tmp_path / "canary")
    np.save(tmp_path / "objects.npy", np.array([evil], object), allow_pickle=True)
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(evil))
    for path in (tmp_path / "objects.npy", tmp_path / "pickle.npy"):
        with pytest.raises(CorruptInputError):
            read_centroids(path, WIDTH)
    assert not (tmp_path / "canary").exists()


def test_golden_units_of_ljspeech() -> None:
    folder = Path(os.environ.get(GOLDEN_DIR, "/nonexistent"))
    recording = folder / "LJ003-0001.wav"
    if not recording.is_file():
        pytest.skip(
            f"set {GOLDEN_DIR} to a folder with {CHECKPOINT}, {CENTROIDS} and LJSpeech's {recording.name}"
        )
    tokenizer = open_seamless_tokenizer(folder)
    waveform = load_waveform(recording)
    (units,) = encode(tokenizer, [waveform])
    assert units[: len(GOLDEN_UNITS)] == GOLDEN_UNITS
