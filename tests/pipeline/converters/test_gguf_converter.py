"""The GGUF reader against the files that llama.cpp's own Python package writes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlm.pipeline.converters.gguf import open_gguf
from dmlm.pipeline.errors import ConfigError, CorruptInputError, DmlmError

gguf = pytest.importorskip(
    "gguf", reason='GGUF files are written by the package gguf: pip install "dmlm[gguf]"'
)

VALUES = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("a.count", 7)
    writer.add_float32("a.rate", 0.5)
    writer.add_bool("a.flag", True)
    writer.add_string("a.name", "Ġé")
    writer.add_array("a.names", ["one", "", "drei"])
    writer.add_array("a.numbers", [1, 2, 3])
    for name in TYPES:
        kind = gguf.GGMLQuantizationType[name]
        writer.add_tensor(name, gguf.quants.quantize(VALUES, kind), raw_dtype=kind)
    writer.add_tensor("odd", np.arange(5, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_is_what_was_written(path: Path) -> None:
    metadata = open_gguf(path).metadata
    assert metadata["general.architecture"] == "llama"
    assert (metadata["a.count"], metadata["a.rate"], metadata["a.flag"]) == (7, 0.5, True)
    assert (metadata["a.name"], metadata["a.names"]) == ("Ġé", ["one", "", "drei"])
    assert metadata["a.numbers"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("name", TYPES)
def test_tensors_are_those_of_the_reference_reader(name: str, path: Path) -> None:
    (theirs,) = (tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == name)
    ours = open_gguf(path).read(name)
    assert ours.dtype == np.float32
    assert np.array_equal(ours, gguf.quants.dequantize(theirs.data, theirs.tensor_type))
    assert np.abs(ours - VALUES).max() < {"F32": 1e-9, "F16": 2e-3, "BF16": 2e-2, "Q8_0": 2e-2}.get(name, 0.4)


def test_tensors_lie_where_the_header_says(path: Path) -> None:
    assert open_gguf(path).read("odd").tolist() == [0, 1, 2, 3, 4]


def test_a_tensor_that_is_not_there_is_named(path: Path) -> None:
    with pytest.raises(CorruptInputError, match="no tensor other"):
        open_gguf(path).read("other")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        open_gguf(tmp_path / "none.gguf")


@settings(max_examples=150)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_and_nothing_else(data: st.DataObject, path: Path) -> None:
    content = bytearray(path.read_bytes())
    size = data.draw(st.integers(0, len(content)))
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    broken = path.with_name("broken.gguf")
    broken.write_bytes(content[:size])
    try:
        file = open_gguf(broken)
        for name in file.tensors:
            file.read(name)
    except DmlmError:
        pass


def test_every_cut_of_the_file_is_noticed(path: Path, tmp_path: Path) -> None:
    content, cut = path.read_bytes(), tmp_path / "cut.gguf"
    for size in range(0, len(content), 61):
        cut.write_bytes(content[:size])
        with pytest.raises(CorruptInputError):
            [open_gguf(cut).read(name) for name in open_gguf(cut).tensors]
