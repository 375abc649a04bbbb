"""GGUF, the file format of llama.cpp: metadata and tensors of a language model in one file.

The header is read here, with every length checked against the file; quantised tensors become float32 by the
reference code of the package `gguf`. Nothing of the file is run.
"""

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dmlm.pipeline.errors import ConfigError, CorruptInputError, MissingDependencyError

SUFFIX: Final = ".gguf"
MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
MAX_DIMENSIONS: Final = 4
_ALIGNMENT: Final = 32
_STRING, _ARRAY = 8, 9
_SCALARS: Final = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
"""Numpy's names of the types of plain values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """Where a tensor lies."""

    shape: tuple[int, ...]
    """As in torch: the last dimension is the contiguous one."""
    type_id: int
    offset: int
    """From the start of the file."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GgufFile:
    """An opened file; tensors are read when they are asked for."""

    path: Path
    metadata: Mapping[str, Any]
    """Plain values, strings, lists of strings, and numpy arrays."""
    tensors: Mapping[str, GgufTensor]

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """A tensor, in float32.

        Raises:
            CorruptInputError: It is not there, cut off, or of a type that this `gguf` does not know.
            MissingDependencyError: The package `gguf` is not installed.
        """
        quants, quantisation_types = _dequantiser()
        try:
            tensor = self.tensors[name]
            quantisation = quantisation_types(tensor.type_id)
            shape = quants.quant_shape_to_byte_shape(tensor.shape, quantisation)
            data = np.memmap(self.path, np.uint8, mode="r", offset=tensor.offset, shape=shape)
            values = quants.dequantize(data, quantisation)
        except KeyError:
            raise CorruptInputError(f"{self.path}: no tensor {name}") from None
        except (ValueError, OverflowError, IndexError, NotImplementedError) as error:
            raise CorruptInputError(f"{self.path}: tensor {name} cannot be read: {error}") from error
        return np.array(values, np.float32).reshape(tensor.shape)


def open_gguf(path: Path) -> GgufFile:
    """Reads the header of a GGUF file.

    Raises:
        ConfigError: There is no such file.
        CorruptInputError: It is cut off, damaged, or no GGUF file of version 2 or 3.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _read_header(path, content)
    except (struct.error, ValueError, OverflowError) as error:
        raise CorruptInputError(f"{path}: not a whole GGUF file ({error}); fetch it again") from error


class _Cursor:
    """Reads value after value; whatever reaches behind the end is a ValueError or a struct.error."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content, self.place = content, 0

    def integer(self, layout: str = "<Q") -> int:
        (value,) = struct.unpack_from(layout, self._content, self.place)
        self.place += struct.calcsize(layout)
        return int(value)

    def raw(self, num_bytes: int) -> bytes:
        end = self.place + num_bytes
        if end > len(self._content):
            raise ValueError(f"{num_bytes} bytes at {self.place} of {len(self._content)}")
        data = self._content[self.place : end]
        self.place = end
        return data

    def string(self) -> str:
        return self.raw(self.integer()).decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            kind, count = self.integer("<I"), self.integer()
            return [self.string() for _ in range(count)] if kind == _STRING else self._numbers(kind, count)
        return self._numbers(kind, 1)[0].item()

    def _numbers(self, kind: int, count: int) -> npt.NDArray[Any]:
        if kind not in _SCALARS:
            raise ValueError(f"value of type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self.raw(count * dtype.itemsize), dtype)


def _read_header(path: Path, content: mmap.mmap) -> GgufFile:
    cursor = _Cursor(content)
    magic, version = cursor.raw(len(MAGIC)), cursor.integer("<I")
    if magic != MAGIC or version not in VERSIONS:
        raise ValueError(f"begins with {magic!r}, version {version}")
    num_tensors, num_values = cursor.integer(), cursor.integer()
    metadata: dict[str, Any] = {}
    for _ in range(num_values):
        key, kind = cursor.string(), cursor.integer("<I")
        metadata[key] = cursor.value(kind)
    places = {}
    for _ in range(num_tensors):
        name = cursor.string()
        places[name] = _read_place(cursor)
    alignment = int(metadata.get("general.alignment", _ALIGNMENT))
    if alignment < 1:
        raise ValueError(f"alignment {alignment}")
    start = -(-cursor.place // alignment) * alignment
    tensors = {
        name: GgufTensor(shape=shape, type_id=type_id, offset=start + offset)
        for name, (shape, type_id, offset) in places.items()
    }
    return GgufFile(path=path, metadata=metadata, tensors=tensors)


def _read_place(cursor: _Cursor) -> tuple[tuple[int, ...], int, int]:
    """Shape, type and offset of a tensor; the file names the contiguous dimension first."""
    num_dimensions = cursor.integer("<I")
    if num_dimensions > MAX_DIMENSIONS:
        raise ValueError(f"a tensor of {num_dimensions} dimensions")
    shape = tuple(cursor.integer() for _ in range(num_dimensions))[::-1]
    return shape, cursor.integer("<I"), cursor.integer()


def _dequantiser() -> tuple[Any, Any]:
    try:
        from gguf import GGMLQuantizationType, quants
    except ImportError as error:
        raise MissingDependencyError(
            'the weights of a GGUF file need the package gguf: pip install "dmlm[gguf]"'
        ) from error
    return quants, GGMLQuantizationType
