"""A small XLS-R of the true architecture, written with the names of fairseq and of fairseq2."""

import errno
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch.torch_version import TorchVersion
from transformers import Wav2Vec2Config, Wav2Vec2Model

from dmlm.pipeline.converters.xlsr import convert_xlsr, xlsr_1b_config
from dmlm.pipeline.errors import ConfigError, CorruptInputError
from dmlm.pipeline.weights_terms import SEAMLESS, TERMS, load_terms

State = dict[str, torch.Tensor]

BLOCK = {
    "attention.q_proj": "self_attn.q_proj",
    "attention.k_proj": "self_attn.k_proj",
    "attention.v_proj": "self_attn.v_proj",
    "layer_norm": "self_attn_layer_norm",
}
FAIRSEQ_BLOCK = BLOCK | {
    "attention.out_proj": "self_attn.out_proj",
    "feed_forward.intermediate_dense": "fc1",
    "feed_forward.output_dense": "fc2",
    "final_layer_norm": "final_layer_norm",
}
FAIRSEQ2_BLOCK = BLOCK | {
    "attention.out_proj": "self_attn.output_proj",
    "feed_forward.intermediate_dense": "ffn.inner_proj",
    "feed_forward.output_dense": "ffn.output_proj",
    "final_layer_norm": "ffn_layer_norm",
}
FAIRSEQ = {
    "feature_extractor.conv_layers.{}.conv": "feature_extractor.conv_layers.{}.0",
    "feature_extractor.conv_layers.{}.layer_norm": "feature_extractor.conv_layers.{}.2.1",
    "feature_projection.layer_norm": "layer_norm",
    "feature_projection.projection": "post_extract_proj",
    "encoder.pos_conv_embed.conv": "encoder.pos_conv.0",
    "encoder.layer_norm": "encoder.layer_norm",
    **{f"encoder.layers.{{}}.{ours}": f"encoder.layers.{{}}.{its}" for ours, its in FAIRSEQ_BLOCK.items()},
}
FAIRSEQ2 = {
    "feature_extractor.conv_layers.{}.conv": "encoder_frontend.feature_extractor.layers.{}.conv",
    "feature_extractor.conv_layers.{}.layer_norm": "encoder_frontend.feature_extractor.layers.{}.layer_norm",
    "feature_projection.layer_norm": "encoder_frontend.post_extract_layer_norm",
    "feature_projection.projection": "encoder_frontend.model_dim_proj",
    "encoder.pos_conv_embed.conv": "encoder_frontend.pos_encoder.conv",
    "encoder.layer_norm": "encoder.layer_norm",
    **{f"encoder.layers.{{}}.{ours}": f"encoder.layers.{{}}.{its}" for ours, its in FAIRSEQ2_BLOCK.items()},
}
KINDS = {
    "weight": "weight",
    "bias": "bias",
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}


def foreign_names(state: State, style: dict[str, str]) -> State:
    """The same tensors by the names of fairseq or fairseq2, written down apart from the converter's rules."""
    names = {
        f"{ours.format(i)}.{kind}": f"{theirs.format(i)}.{its_kind}"
        for ours, theirs in style.items()
        for kind, its_kind in KINDS.items()
        for i in range(7)
    }
    return {names[name]: tensor for name, tensor in state.items()}


@pytest.fixture(scope="module")
def config() -> Wav2Vec2Config:
    return xlsr_1b_config(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        conv_dim=[24] * 7,
    )


@pytest.fixture(scope="module")
def model(config: Wav2Vec2Config) -> Wav2Vec2Model:
    torch.manual_seed(0)
    return Wav2Vec2Model(config).eval()


@pytest.fixture
def checkpoint(model: Wav2Vec2Model, tmp_path: Path) -> Path:
    return save(tmp_path / "xlsr.pt", foreign_names(model.state_dict(), FAIRSEQ2))


def save(path: Path, state: State) -> Path:
    pretraining = {"quantizer.entries": torch.zeros(1, 4, 2), "final_proj.weight": torch.zeros(2, 2)}
    torch.save({"model": {**state, **pretraining, "masker.temporal_mask_embed": torch.zeros(32)}}, path)
    return path


@pytest.mark.parametrize(
    ("style", "sign"),
    [
        (FAIRSEQ, "encoder.layers.1.fc1.weight"),
        (FAIRSEQ2, "encoder_frontend.pos_encoder.conv.weight_g"),
    ],
)
def test_converted_folder_opens_as_the_model_that_was_saved(
    model: Wav2Vec2Model, config: Wav2Vec2Config, tmp_path: Path, style: dict[str, str], sign: str
) -> None:
    state = foreign_names(model.state_dict(), style)
    assert sign in state
    convert_xlsr(save(tmp_path / "xlsr.pt", state), tmp_path / "xlsr", config)
    found, report = Wav2Vec2Model.from_pretrained(tmp_path / "xlsr", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    waveform = torch.randn(1, 4_000)
    with torch.no_grad():
        assert torch.equal(found.eval()(waveform)[0], model(waveform)[0])


def test_second_conversion_reads_nothing(checkpoint: Path, config: Wav2Vec2Config, tmp_path: Path) -> None:
    convert_xlsr(checkpoint, tmp_path / "xlsr", config)
    files = sorted(path.name for path in (tmp_path / "xlsr").iterdir())
    checkpoint.unlink()
    convert_xlsr(checkpoint, tmp_path / "xlsr", config)
    assert files == ["config.json", "model.safetensors", "preprocessor_config.json", "terms.json"]


def test_converted_folder_says_its_licence(checkpoint: Path, config: Wav2Vec2Config, tmp_path: Path) -> None:
    convert_xlsr(checkpoint, tmp_path / "xlsr", config)
    terms = load_terms(tmp_path / "xlsr")
    assert terms == TERMS[SEAMLESS]
    assert "CC BY-NC 4.0, not for commercial use" in str(terms)


def test_folder_of_an_earlier_version_gets_its_licence(
    checkpoint: Path, config: Wav2Vec2Config, tmp_path: Path
) -> None:
    convert_xlsr(checkpoint, tmp_path / "xlsr", config)
    (tmp_path / "xlsr" / "terms.json").unlink()
    checkpoint.unlink()
    convert_xlsr(checkpoint, tmp_path / "xlsr", config)
    assert load_terms(tmp_path / "xlsr") == TERMS[SEAMLESS]


def test_conversion_that_was_interrupted_is_done_again(
    checkpoint: Path, config: Wav2Vec2Config, tmp_path: Path
) -> None:
    (tmp_path / "xlsr").mkdir()
    (tmp_path / "xlsr" / "model.safetensors").write_bytes(b"half")
    convert_xlsr(checkpoint, tmp_path / "xlsr", config)
    assert Wav2Vec2Model.from_pretrained(tmp_path / "xlsr").config.num_hidden_layers == 3


def test_tasks_that_start_together_may_all_convert(
    checkpoint: Path, config: Wav2Vec2Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = safetensors.torch.save_file

    def save_while_another_converts(*arguments: Any, **settings: Any) -> None:
        real(*arguments, **settings)
        monkeypatch.undo()
        convert_xlsr(checkpoint, tmp_path / "xlsr", config)

    monkeypatch.setattr(safetensors.torch, "save_file", save_while_another_converts)
    convert_xlsr(checkpoint, tmp_path / "xlsr", config)
    assert Wav2Vec2Model.from_pretrained(tmp_path / "xlsr").config.num_hidden_layers == 3
    assert not list((tmp_path / "xlsr").glob("*.tmp"))


def test_full_disk_is_an_os_error_and_leaves_no_weights(
    files_up_to: Callable[[int], AbstractContextManager[None]],
    checkpoint: Path,
    config: Wav2Vec2Config,
    tmp_path: Path,
) -> None:
    with pytest.raises(OSError, match=r"File too large: .*model\.safetensors'") as raised, files_up_to(4_096):
        convert_xlsr(checkpoint, tmp_path / "xlsr", config)
    assert raised.value.errno == errno.EFBIG
    assert not list((tmp_path / "xlsr").iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("encoder.layers.1.ffn.inner_proj.bias"), "intermediate_dense.bias: expected"),
        (
            lambda s: s.update({"encoder.layers.1.adapter.weight": torch.zeros(2)}),
            "adapter.weight is no part",
        ),
        (lambda s: s.update({"encoder.layers.1.fc1.bias": torch.zeros(48)}), "mixes"),
        (lambda s: s.update({"encoder.layer_norm.bias": torch.full((32,), torch.nan)}), "not finite"),
        (lambda s: s.update({"encoder.layer_norm.bias": torch.zeros(5)}), "found"),
        (lambda s: s.update({"encoder.layer_norm.bias": "text"}), "layer_norm.bias: expected"),
    ],
)
def test_checkpoint_of_another_shape_is_corrupt(
    model: Wav2Vec2Model, config: Wav2Vec2Config, tmp_path: Path, change: object, message: str
) -> None:
    state = foreign_names(model.state_dict(), FAIRSEQ2)
    change(state)
    with pytest.raises(CorruptInputError, match=message):
        convert_xlsr(save(tmp_path / "xlsr.pt", state), tmp_path / "xlsr", config)
    assert not (tmp_path / "xlsr").exists()


def test_small_model_is_not_taken_for_the_true_one(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CorruptInputError, match="1280"):
        convert_xlsr(checkpoint, tmp_path / "xlsr")


def test_checkpoint_without_tensors_is_corrupt(config: Wav2Vec2Config, tmp_path: Path) -> None:
    torch.save({"model": 3}, tmp_path / "odd.pt")
    with pytest.raises(CorruptInputError, match="no XLS-R"):
        convert_xlsr(tmp_path / "odd.pt", tmp_path / "xlsr", config)
    torch.save([1, 2], tmp_path / "odd.pt")
    with pytest.raises(CorruptInputError, match="expected"):
        convert_xlsr(tmp_path / "odd.pt", tmp_path / "xlsr", config)


def test_missing_checkpoint_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        convert_xlsr(tmp_path / "xlsr.pt", tmp_path / "xlsr")


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    torch.save({"model": _Canary(tmp_path / "canary")}, tmp_path / "evil.pt")
    with pytest.raises(CorruptInputError, match=r"evil\.pt"):
        convert_xlsr(tmp_path / "evil.pt", tmp_path / "xlsr")
    assert not (tmp_path / "canary").exists()


def test_checkpoint_is_refused_by_an_unsafe_torch(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.9.1"))
    with pytest.raises(ConfigError, match=r"torch >= 2\.10"):
        convert_xlsr(checkpoint, tmp_path / "xlsr")
