"""How the model is spread over processes: the only file that knows.

FSDP2 shards every decoder layer, on CPUs with gloo exactly as on GPUs with nccl. One process runs the same
code over a mesh of one, so that a checkpoint means the same at every size.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from trainer.config import TrainConfig

# A peer that died is found by its closed socket; this bounds the wait for one that merely hangs.
_COLLECTIVE_TIMEOUT = timedelta(minutes=10)
# In the background one process may rightly wait for another's slow upload; the supervisor finds dead ones.
_BACKGROUND_TIMEOUT = timedelta(hours=12)


@dataclass(frozen=True, slots=True)
class World:
    """This process among all of them.

    save_group and commit_group are gloo groups of their own: a collective of the background save that shared
    the training group would interleave with FSDP's and corrupt both.
    """

    rank: int
    size: int
    device: torch.device
    machine: str
    """What bit-exactness depends on besides the number of processes."""
    mesh: DeviceMesh
    save_group: dist.ProcessGroup
    commit_group: dist.ProcessGroup

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def agree(self, *values: float) -> list[float]:
        """The sum of each value over all processes, the same on each. One small all-reduce."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return [float(value) for value in total]


@contextmanager
def joined(rank: int, size: int, rendezvous: str, threads: int) -> Iterator[World]:
    """Join the other processes at `rendezvous` (a torch.distributed init URL); leave on exit."""
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    torch.set_num_threads(threads)
    dist.init_process_group(
        "cuda:nccl,cpu:gloo" if on_gpu else "gloo",
        init_method=rendezvous,
        rank=rank,
        world_size=size,
        timeout=_COLLECTIVE_TIMEOUT,
    )
    try:
        yield World(
            rank,
            size,
            device,
            f"{torch.cuda.get_device_name(device) if on_gpu else 'cpu'}, {threads} threads",
            init_device_mesh(device.type, (size,)),
            dist.new_group(backend="gloo", timeout=_BACKGROUND_TIMEOUT),
            dist.new_group(backend="gloo", timeout=_BACKGROUND_TIMEOUT),
        )
    finally:
        dist.destroy_process_group()


def shard(model: nn.Module, config: TrainConfig, world: World) -> None:
    """Shard in place: each decoder layer is gathered just before its use and freed after it."""
    policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if config.train.bf16
        else MixedPrecisionPolicy()
    )
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=world.mesh, mp_policy=policy)
    fully_shard(model, mesh=world.mesh, mp_policy=policy)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks that the architecture itself names as indivisible."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def reshard(model: nn.Module) -> None:
    """Free gathered weights. A forward pass without a backward leaves the root's behind, and whoever then
    walks the parameters (a save) would see those instead of the shards that the optimiser knows."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def synchronise_gradients(model: nn.Module, now: bool) -> None:
    """Reduce gradients in the coming backward pass, or only add them up."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
