import os
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.torch_version import TorchVersion

from dmlm.pipeline.converters.dalle import load_dalle_decoder, load_dalle_encoder, read_pickled_module
from dmlm.pipeline.encoders.dvae import Encoder
from dmlm.pipeline.errors import ConfigError, CorruptInputError

WIDTH, NUM_CODES = 8, 32


@pytest.fixture
def pickled_module(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A small encoder put together from torch's modules and classes named as in `dall_e`."""
    modules = {name: types.ModuleType(name) for name in ("dall_e", "dall_e.encoder", "dall_e.utils")}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    classes = {
        name: type(name, (nn.Module,), {"__module__": module})
        for name, module in (
            ("Encoder", "dall_e.encoder"),
            ("EncoderBlock", "dall_e.encoder"),
            ("Conv2d", "dall_e.utils"),
        )
    }
    for name, kind in classes.items():
        setattr(modules[kind.__module__], name, kind)
    root = classes["Encoder"]()
    for name, parameter in Encoder(WIDTH, NUM_CODES).named_parameters():
        *path, last = name.split(".")
        node = root
        for part in path:
            if part not in node._modules:
                kind = classes["Conv2d"] if part.startswith(("conv", "input", "id_path")) else nn.Sequential
                node.add_module(part, classes["EncoderBlock"]() if part.startswith("block_") else kind())
            node = node._modules[part]
        node.register_parameter(last, nn.Parameter(parameter.detach(), requires_grad=False))
    root.blocks.group_1.add_module("pool", nn.MaxPool2d(2))
    root.device, root.use_mixed_precision = torch.device("cpu"), True
    return root


def test_pickled_module_becomes_safetensors_once(pickled_module: nn.Module, tmp_path: Path) -> None:
    torch.save(pickled_module, tmp_path / "encoder.pkl")
    _, state = load_dalle_encoder(tmp_path)
    expected = pickled_module.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    (tmp_path / "encoder.pkl").unlink()
    assert load_dalle_encoder(tmp_path)[1].keys() == expected.keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder.safetensors"]


def test_half_precision_is_widened(pickled_module: nn.Module, tmp_path: Path) -> None:
    torch.save(pickled_module.half(), tmp_path / "encoder.pkl")
    assert {tensor.dtype for tensor in read_pickled_module(tmp_path / "encoder.pkl").values()} == {
        torch.float32
    }


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("is_zip", [True, False])
def test_pickle_cannot_run_code(pickled_module: nn.Module, tmp_path: Path, is_zip: bool) -> None:
    pickled_module.canary = _Canary(tmp_path / "canary")
    torch.save(pickled_module, tmp_path / "encoder.pkl", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CorruptInputError, match=r"encoder\.pkl"):
        load_dalle_encoder(tmp_path)
    assert not (tmp_path / "canary").exists()
    assert not (tmp_path / "encoder.safetensors").exists()


def test_other_classes_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "encoder.pkl")
    with pytest.raises(CorruptInputError, match="Linear"):
        read_pickled_module(tmp_path / "encoder.pkl")


def test_reading_leaves_no_class_allowed(pickled_module: nn.Module, tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    torch.save(pickled_module, tmp_path / "encoder.pkl")
    read_pickled_module(tmp_path / "encoder.pkl")
    assert set(torch.serialization.get_safe_globals()) == before


def test_missing_weights_say_what_to_get_and_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"https://cdn\.openai\.com/dall-e/encoder\.pkl.*{tmp_path}"):
        load_dalle_encoder(tmp_path)
    with pytest.raises(ConfigError, match=r"https://cdn\.openai\.com/dall-e/decoder\.pkl.*modified MIT"):
        load_dalle_decoder(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_cut_files_are_corrupt(pickled_module: nn.Module, tmp_path: Path, share: float) -> None:
    path = tmp_path / "encoder.pkl"
    torch.save(pickled_module, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(CorruptInputError, match=r"encoder\.pkl"):
        load_dalle_encoder(tmp_path)
    save_file(pickled_module.state_dict(), tmp_path / "encoder.safetensors")
    content = (tmp_path / "encoder.safetensors").read_bytes()
    (tmp_path / "encoder.safetensors").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CorruptInputError, match=r"encoder\.safetensors"):
        load_dalle_encoder(tmp_path)


def test_weights_of_something_else_are_corrupt(pickled_module: nn.Module, tmp_path: Path) -> None:
    path, state = tmp_path / "encoder.safetensors", pickled_module.state_dict()
    name = "blocks.group_2.block_1.res_path.conv_3.w"
    for change, message in (
        ({name: torch.zeros(3)}, name),
        ({name: torch.full_like(state[name], torch.nan)}, "not finite"),
        ({"blocks.input.w": torch.zeros(3)}, "no encoder of DALL-E"),
        ({"extra": torch.zeros(3)}, "extra"),
    ):
        save_file({**state, **change}, path)
        with pytest.raises(CorruptInputError, match=message):
            load_dalle_encoder(tmp_path)


def test_pickle_is_refused_by_an_unsafe_torch(
    pickled_module: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(pickled_module, tmp_path / "encoder.pkl")
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.9.1"))
    with pytest.raises(ConfigError, match=r"torch >= 2\.10"):
        load_dalle_encoder(tmp_path)


def test_files_of_the_reference_package_are_read(tmp_path: Path) -> None:
    dall_e = pytest.importorskip(
        "dall_e", reason="needs `pip install --no-deps dall-e==0.1` and attrs, requests"
    )
    for part, module in {"encoder": dall_e.Encoder(n_hid=64), "decoder": dall_e.Decoder(n_hid=64)}.items():
        torch.save(module, tmp_path / f"{part}.pkl")
        (load_dalle_encoder if part == "encoder" else load_dalle_decoder)(tmp_path)
        state, expected = load_file(tmp_path / f"{part}.safetensors"), module.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)
