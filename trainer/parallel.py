"""The processes of an attempt, and what the rest of the trainer knows of a model that is spread over them.

The loop, the checkpoints and the export speak to `Sharded` alone; fsdp.py and zero.py are the two ways to be one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from transformers import PreTrainedModel

from trainer.config import TrainConfig

# A weight of the whole model by its name, on any device and in any float type.
Source = Callable[[str], Tensor]
# Fills the given tensors in place from a checkpoint, each process its own part; a collective.
Read = Callable[[dict[str, Tensor]], None]

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


class Sharded(Protocol):
    """A model and its optimiser, spread over processes.

    Every method is called by all processes at the same point. Order of a life: `fill`, perhaps `load`, then
    steps; each step is some `backward` and one `step`.
    """

    model: PreTrainedModel
    """What is called; its parameters that require a gradient are trained."""

    def fill(self, source: Source | None) -> None:
        """Take memory and copy the weights in; None leaves them undefined, for a checkpoint to fill."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add gradients. `loss` is this process's part of a sum over all; `last`: the step's last backward."""

    def step(self, rate: float) -> float:
        """Clip, update the weights, forget the gradients. Returns the gradient's norm before clipping."""

    def settle(self) -> None:
        """Free what a forward pass without a backward left behind."""

    def state(self) -> dict[str, Tensor]:
        """Trained weights and moments as they are, not copies; names are stable across attempts. Frozen weights
        are not in it: they come from the base."""

    def load(self, read: Read, steps: int, saved_by: int) -> None:
        """Continue after `steps` optimiser steps, with a state that `saved_by` processes have saved."""

    def gathered(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Every trained weight, whole, on the first process's CPU; nothing on the others. Tied ones come once."""


def spread(model: PreTrainedModel, config: TrainConfig, world: World) -> Sharded:
    """The model by the strategy that the config names, without weights yet.

    The heavy imports of one strategy are not paid by the other.

    Raises:
        NotReady: the strategy needs a package that is not installed.
    """
    if config.parallel.strategy == "deepspeed":
        from trainer.zero import ZeroModel

        return ZeroModel(model, config, world)
    from trainer.fsdp import FullyShardedModel

    return FullyShardedModel(model, config, world)
