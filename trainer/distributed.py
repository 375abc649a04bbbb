"""Several processes as one: who they are, how their gradients become one sum, how whole tensors come back.

`torchrun` starts one process per device. The loss of a rank is its share of a sum (loss.py), so gradients are
summed over ranks, never averaged.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dmlm.pipeline.devices import open_device
from dmlm.pipeline.errors import ConfigError, RankError
from dmlm.trainer.models.layers import layers_of
from dmlm.trainer.models.packed_forward import PackedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TIMEOUT: Final = timedelta(seconds=60)
"""How long a rank waits in a step for another one that lives; one that died is seen at once."""
PATIENCE: Final = timedelta(minutes=10)
"""How long it waits where ranks do not work side by side: they open data, and the first one saves."""

_SET_BY_TORCHRUN: Final = ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """The processes that train together, seen from one of them."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """On this machine; the number of its GPU."""
    meeting: "dist.ProcessGroup | None" = None
    """Where ranks wait with PATIENCE; None: no process group was started, there is one rank."""

    @property
    def joined(self) -> bool:
        """Whether there is a process group."""
        return self.meeting is not None

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what all have in common."""
        return self.rank == 0

    def device_name(self, name: str) -> str:
        """`name` with the number of this rank's GPU where it stands for any GPU."""
        return _with_own_gpu(name, self.local_rank) if self.joined else name

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum of the ranks' tensors, on every rank."""
        if self.joined:
            dist.all_reduce(tensor)
        return tensor

    def tell_all(self, values: Sequence[int]) -> list[int]:
        """What the first rank gives, on every rank; all give equally many values."""
        told = torch.tensor(values)
        if self.meeting is not None:
            dist.broadcast(told, src=0, group=self.meeting)
        return [int(value) for value in told]

    def wait_for_all(self) -> None:
        """Returns when every rank is here; called wherever one may come much later than another."""
        if self.meeting is not None:
            dist.barrier(self.meeting)


ALONE: Final = Ranks()


@contextmanager
def join_ranks(environment: Mapping[str, str], device: str) -> Iterator[Ranks]:
    """Joins the processes that `torchrun` started with this environment; alone there is nothing to join.

    Args:
        environment: Of this process.
        device: Where it will train, as `--device` names it.

    Raises:
        ConfigError: There is no such device here, no GPU for each rank, or only a part of what torchrun sets.
        RankError: Another rank died or does not answer, or the ranks cannot meet.
    """
    if "RANK" not in environment:
        yield ALONE
        return
    if missing := [name for name in _SET_BY_TORCHRUN if name not in environment]:
        raise ConfigError(f"RANK is set but not {', '.join(missing)}; start with torchrun, or unset RANK")
    rank, world_size, local_rank = (
        _read_number(environment, n) for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    )
    take_gpu(device, local_rank)
    _meet(environment)
    try:
        with _lost_ranks_named(rank):
            meeting = dist.new_group(timeout=PATIENCE, backend="gloo")  # which waits without a GPU
            world = dist.group.WORLD
            assert world is not None, "it was started above"
            world.set_timeout(TIMEOUT)
            yield Ranks(rank=rank, world_size=world_size, local_rank=local_rank, meeting=meeting)
    finally:
        dist.destroy_process_group()


def _read_number(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    if not text.isdecimal():
        raise ConfigError(f"{name}={text} is no number; start with torchrun, or unset RANK")
    return int(text)


def _meet(environment: Mapping[str, str]) -> None:
    try:
        dist.init_process_group(timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        rank, host, port = (environment[name] for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"))
        raise RankError(
            f"rank {rank}: the ranks cannot meet at {host}:{port} ({str(error).strip().splitlines()[0]}); "
            "look at the output of the others, and whether that port is free"
        ) from error


def take_gpu(name: str, local_rank: int) -> None:
    """Makes this rank's GPU the one of its process, unless it trains without; ConfigError: there is none."""
    device = open_device(_with_own_gpu(name, local_rank))
    if device.type == "cuda":
        torch.cuda.set_device(device)


def _with_own_gpu(name: str, local_rank: int) -> str:
    wants_gpu = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    return f"cuda:{local_rank}" if wants_gpu else name


@contextmanager
def _lost_ranks_named(rank: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # Gloo has no class of its own for this.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise RankError(
            f"rank {rank}: another rank ended or does not answer ({_what_was_lost(error)}); "
            "look at its output, then go on with --resume"
        ) from error


def _what_was_lost(error: RuntimeError) -> str:
    """First sentence of the last line, without the frames of Python that follow where a hook met the loss."""
    text, _, _ = str(error).partition("\n\nAt:\n")
    return text.strip().splitlines()[-1].split(". ")[0].rpartition("RuntimeError: ")[2]


def spread(model: PackedModel, ranks: Ranks, parallel: Literal["ddp", "fsdp2"]) -> nn.Module:
    """The model as the ranks run it together; its gradients are sums over all of them.

    With `fsdp2`, the parameters of `model` become shards, in place.
    """
    if not ranks.joined:
        return model
    if parallel == "ddp":
        replica = nn.parallel.DistributedDataParallel(model)
        replica.register_comm_hook(None, _sum_gradients)
        return replica
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # Layers give views, which nothing changes in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(next(model.parameters()).device.type, (ranks.world_size,))
    for module in (*layers_of(model.model), model):
        sharded = fully_shard(module, mesh=mesh)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
    return model


def _sum_gradients(
    state: None,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[Tensor]:
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    summed: torch.futures.Future[Tensor] = work.get_future().then(lambda future: future.value()[0])
    return summed


@contextmanager
def gradients_kept_back(model: nn.Module, keep_back: bool) -> Iterator[None]:
    """If `keep_back`, gradients of the pass inside are added up here and summed over ranks in a later one."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(not keep_back)
    if isinstance(model, nn.parallel.DistributedDataParallel) and keep_back:
        with model.no_sync():
            yield
    else:
        yield


def whole_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor of which each rank may have a shard; every rank has to ask for it."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(whole: Tensor, parameter: Tensor) -> Tensor:
    """This rank's part of `whole`, laid out as `parameter` is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    whole = whole.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return whole
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


def whole_model(model: "PreTrainedModel", *, is_kept: bool = True) -> "PreTrainedModel":
    """The model, or a whole copy in main memory if its parameters are shards; every rank must ask for it.

    With `is_kept` False this rank only gives its shards to the others, and gets its model back as it is.
    """
    from torch.distributed.tensor import DTensor

    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return model
    weights = {}
    for name, tensor in model.state_dict().items():
        whole = whole_tensor(tensor)
        if is_kept:
            weights[name] = whole.cpu()
    if not is_kept:
        return model
    with torch.device("meta"):
        copy = type(model)(deepcopy(model.config))
    copy.load_state_dict(weights, assign=True)
    copy.tie_weights()
    copy.generation_config = model.generation_config
    return copy
