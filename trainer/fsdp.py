"""Fully sharded data parallelism: PyTorch's FSDP2, on CPUs with gloo exactly as on GPUs with nccl.

Each decoder layer is gathered just before its use and freed after it. One process runs the same code over a mesh
of one, so that a checkpoint means the same at every size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from trainer import model as building
from trainer.choices import reduces_each
from trainer.config import TrainConfig
from trainer.optim import adamw, set_learning_rate, set_steps_taken
from trainer.optim_8bit import EightBitAdamW
from trainer.parallel import Read, Source, World
from trainer.quantize import whole as whole_weights


class FullyShardedModel:
    """`parallel.Sharded` through FSDP2."""

    def __init__(self, model: PreTrainedModel, config: TrainConfig, world: World) -> None:
        self.model = model
        self._config, self._world = config, world
        self._unfilled = building.unfilled(model)
        self._reduces_each = reduces_each(config, world.device.type == "cuda")
        _shard(model, config, world)
        self._optimiser: torch.optim.AdamW | EightBitAdamW

    def fill(self, source: Source | None) -> None:
        building.allocate(self.model, self._home)
        if source is not None:
            _copy(self.model, source, self._unfilled)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if self._config.train.optim == "adamw_bnb_8bit":
            embeddings = {m.weight for m in self.model.modules() if isinstance(m, nn.Embedding)}
            self._optimiser = EightBitAdamW(trained, self._config.train, embeddings)
        else:
            self._optimiser = adamw(trained, self._config.train)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(last or self._reduces_each)
        # Gradients are averaged over processes; the loss is a sum over them.
        (loss * self._world.size).backward()

    def step(self, rate: float) -> float:
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self._config.train.max_grad_norm)
        set_learning_rate(self._optimiser, rate)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def settle(self) -> None:
        """The root's gathered weights: whoever then walks the parameters (a save) would see those instead of the
        shards that the optimiser knows."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def state(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for name, parameter in self._trained():
            state[f"model.{name}"] = parameter.detach()
            moments = self._optimiser.state[parameter]
            state |= {f"{key}.{name}": moments[key] for key in moments if key != "step"}
        return state

    def load(self, read: Read, steps: int, saved_by: int) -> None:
        """Any number of processes reads what any other has saved: each takes its part of the whole tensors."""
        read(self.state())
        set_steps_taken(self._optimiser, steps)

    def gathered(self, dtype: torch.dtype) -> dict[str, Tensor]:
        whole: dict[str, Tensor] = {}
        for name, parameter in self._trained():
            weight: Any = parameter.detach()
            if isinstance(weight, DTensor):
                sharded: DTensor = weight.to(self._world.device)  # type: ignore[assignment]
                weight = sharded.full_tensor()
            if self._world.leads:
                whole[name] = weight.to("cpu", dtype, copy=True)
        return whole

    @property
    def _home(self) -> torch.device:
        """Where shards live between their uses."""
        return torch.device("cpu") if self._config.parallel.offload == "all" else self._world.device

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks that the architecture itself names as indivisible."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def _shard(model: nn.Module, config: TrainConfig, world: World) -> None:
    precision = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if config.train.bf16
        else MixedPrecisionPolicy()
    )
    on_gpu = world.device.type == "cuda"
    offload = CPUOffloadPolicy(pin_memory=on_gpu) if config.parallel.offload == "all" else OffloadPolicy()
    whole = whole_weights(model)
    for module in (*decoder_layers(model), model):
        fully_shard(
            module, mesh=world.mesh, mp_policy=precision, offload_policy=offload, ignored_params=whole
        )


@torch.no_grad()
def _copy(model: nn.Module, source: Source, names: list[str]) -> None:
    parameters = dict(model.named_parameters())
    for name in names:
        parameter = parameters[name]
        full: Tensor = source(name).detach().to(dtype=parameter.dtype)
        if isinstance(parameter, DTensor):
            mesh = parameter.device_mesh
            sharded = distribute_tensor(
                full.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None
            )
            parameter.copy_(sharded)
        else:
            parameter.copy_(full)
