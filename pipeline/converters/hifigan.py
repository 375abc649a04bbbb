"""Reads HiFi-GAN generators (jik876/hifi-gan, `generator…pth.tar`) for transformers' `SpeechT5HifiGan`.

The two are one architecture. The files keep each kernel as a direction and a length (weight norm), which are
multiplied out here.
"""

import re
from pathlib import Path

import torch

from dmlm.pipeline.converters.checkpoints import LOAD_ERRORS, State, check_claims, check_torch_is_safe
from dmlm.pipeline.errors import CorruptInputError


def load_hifigan_weights(path: Path) -> State:
    """float32 tensors of a generator by the names of `SpeechT5HifiGan`, weight norm multiplied out.

    The published files are older than torch's zip archives, whose sizes can be checked before they are read:
    give it a file with a pinned sha256 only. It cannot run code, whatever it holds.

    Raises:
        ConfigError: This torch cannot read such files safely.
        CorruptInputError: The file is cut, damaged or not a HiFi-GAN generator.
    """
    state = _read_generator(path)
    weights: State = {}
    for name, tensor in state.items():
        module, _, kind = re.sub(r"^ups\.", "upsampler.", str(name)).rpartition(".")
        if kind == "weight_v":
            length = state.get(f"{str(name).removesuffix('_v')}_g")
            if length is None or length.shape != (len(tensor), *[1] * (tensor.ndim - 1)):
                raise CorruptInputError(f"{path}: {name} has no length beside it")
            weights[f"{module}.weight"] = torch._weight_norm(tensor.float(), length.float(), 0)
        elif kind != "weight_g":
            weights[f"{module}.{kind}"] = tensor.float()
    return weights


def _read_generator(path: Path) -> State:
    check_torch_is_safe(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except LOAD_ERRORS as error:
        raise CorruptInputError(f"{path}: not a readable torch checkpoint: {error}") from error
    state = checkpoint.get("generator") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CorruptInputError(f"{path}: not a HiFi-GAN checkpoint (no generator)")
    check_claims(state.values(), path)
    return state
