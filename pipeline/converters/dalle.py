"""Reads `encoder.pkl` and `decoder.pkl` of DALL-E: whole pickled modules -> safetensors, once.

Such a file names classes of torch.nn and of the package `dall_e`. Each is read as an inert stand-in that only
keeps its attributes; torch's restricted unpickler refuses every other name. Nothing in the file runs.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from torch import nn

from dmlm.pipeline.converters.checkpoints import (
    LOAD_ERRORS,
    State,
    check_archive,
    check_claims,
    check_state,
    check_torch_is_safe,
)
from dmlm.pipeline.encoders.dvae import Decoder, Encoder, build_decoder, build_encoder
from dmlm.pipeline.errors import ConfigError, CorruptInputError
from dmlm.pipeline.storage import as_os_errors, atomic_writer

ADDRESS: Final = "https://cdn.openai.com/dall-e"
LICENCE: Final = "modified MIT (openai/DALL-E)"

_CLASSES = (
    *("dall_e.encoder.Encoder", "dall_e.encoder.EncoderBlock"),
    *("dall_e.decoder.Decoder", "dall_e.decoder.DecoderBlock"),
    "dall_e.utils.Conv2d",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.pooling.MaxPool2d",
    "torch.nn.modules.upsampling.Upsample",
)
M = TypeVar("M", bound=nn.Module)
_MAX_DEPTH = 10


def load_dalle_encoder(directory: Path) -> tuple[Encoder, State]:
    """Encoder and its weights from DIR/encoder.safetensors, which is made of DIR/encoder.pkl when missing.

    Raises:
        ConfigError: Neither file is there; the message says where to get it.
        CorruptInputError: The file is damaged or holds something else.
    """
    state, path = _load_state(directory, "encoder")
    return _fill(build_encoder(_with_ends(state, path)), state, path), state


def load_dalle_decoder(directory: Path) -> Decoder:
    """Decoder from DIR/decoder.safetensors, which is made of DIR/decoder.pkl when missing.

    Raises:
        ConfigError: Neither file is there; the message says where to get it.
        CorruptInputError: The file is damaged or holds something else.
    """
    state, path = _load_state(directory, "decoder")
    return _fill(build_decoder(_with_ends(state, path)), state, path)


def read_pickled_module(path: Path) -> State:
    """float32 tensors of a pickled module by the names of its `state_dict()`.

    Raises:
        ConfigError: This torch cannot read such files safely.
        CorruptInputError: The file is damaged, would unfold to many times its size, or names a class that no
            dVAE is made of.
    """
    check_torch_is_safe(path)
    check_archive(path)
    stand_ins: list[Any] = [(type(name.rpartition(".")[2], (_StandIn,), {}), name) for name in _CLASSES]
    try:
        with torch.serialization.safe_globals(stand_ins):
            module = torch.load(path, map_location="cpu", weights_only=True)
    except (*LOAD_ERRORS, OSError) as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it names {named[1]}" if named else "cut or damaged"
        raise CorruptInputError(f"{path}: not the pickled dVAE of DALL-E ({reason})") from error
    state = dict(_iter_parameters(module, ()))
    check_claims(state.values(), path)
    return {name: tensor.detach().float().contiguous() for name, tensor in state.items()}


class _StandIn:
    """An object that had behaviour where it was saved; here it is its attributes and nothing else."""


def _iter_parameters(module: object, path: tuple[str, ...]) -> Iterator[tuple[str, torch.Tensor]]:
    attributes = vars(module) if isinstance(module, _StandIn) and len(path) < _MAX_DEPTH else {}
    parameters, modules = (attributes.get(name) for name in ("_parameters", "_modules"))
    for name, value in parameters.items() if isinstance(parameters, dict) else ():
        if isinstance(value, torch.Tensor):
            yield ".".join((*path, str(name))), value
    for name, value in modules.items() if isinstance(modules, dict) else ():
        yield from _iter_parameters(value, (*path, str(name)))


def _load_state(directory: Path, part: str) -> tuple[State, Path]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path, pickled = directory / f"{part}.safetensors", directory / f"{part}.pkl"
    if not path.is_file():
        if not pickled.is_file():
            raise ConfigError(
                f"{path}: no such file, nor {pickled.name} beside it; get {ADDRESS}/{pickled.name}"
                f" (licence: {LICENCE}) and put it into {directory}"
            )
        _convert(pickled, path)
    try:
        return load_file(path), path
    except SafetensorError as error:
        raise CorruptInputError(
            f"{path}: damaged ({error}); delete it to convert {pickled.name} again"
        ) from error


def _convert(pickled: Path, path: Path) -> None:
    from safetensors.torch import save_file

    state = read_pickled_module(pickled)
    build = build_encoder if path.stem == "encoder" else build_decoder
    check_state(state, build(_with_ends(state, pickled)).state_dict(), pickled)
    # Tasks that start together may all convert.
    with atomic_writer(path, is_shared=True) as file, as_os_errors(path):
        save_file(state, file.name, metadata={"format": "pt"})


def _with_ends(state: State, path: Path) -> State:
    """The state itself, if it has the first and last kernel, from which the sizes are read."""
    ends = (state.get("blocks.input.w"), state.get("blocks.output.conv.w"))
    if any(end is None or end.ndim != 4 for end in ends):
        raise CorruptInputError(f"{path}: holds no {path.stem} of DALL-E")
    return state


def _fill(module: M, state: State, path: Path) -> M:
    check_state(state, module.state_dict(), path)
    module.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return module.eval().requires_grad_(False)
