"""What may be done to the layers of a model: compile them, or compute them again in the backward pass."""

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch._functorch import config as functorch_config
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def layers_of(model: "PreTrainedModel") -> list[torch.nn.Module]:
    """The decoder layers, in order."""
    names = set(model._no_split_modules or ())
    # FSDP2 puts a class of its own in front of a layer's.
    return [m for m in model.modules() if names & {kind.__name__ for kind in type(m).__mro__}]


def checkpoint_layers(model: "PreTrainedModel") -> None:
    """Keeps only what goes into each layer; the backward pass computes it again, with equal dropout.

    Call it before `compile_layers`: nothing inside of a checkpoint is compiled unless the checkpoint is.
    That of transformers lies outside of the layer's forward.
    """
    # Graphs kept on disk from other runs: what is inside of a checkpoint, such as the dropout, is no part of
    # their key (torch 2.13).
    functorch_config.enable_autograd_cache = False
    for layer in layers_of(model):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def compile_layers(model: "PreTrainedModel", backend: str = "inductor") -> None:
    """Compiles the layers with rows of any length; all layers share one graph.

    Call it last: what DDP and FSDP2 do around a layer stays outside of the graph.
    """
    for layer in layers_of(model):
        layer.forward = torch.compile(layer.forward, dynamic=True, backend=backend)
