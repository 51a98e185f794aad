"""DeepSpeed's ZeRO, stages 2 and 3, with or without offload: the other way to spread a model.

Its engine gathers weights, reduces gradients and runs AdamW over this process's part of float32 masters. Saving is
not the engine's: engine.save_checkpoint writes pickles, and no pickle is ever opened here. Masters and moments go
through the same checkpoints as FSDP's, as tensors that any number of processes can read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from transformers import PreTrainedModel

from trainer import model as building
from trainer import quantize, zero_engine
from trainer.config import TrainConfig
from trainer.optim import adamw_without_moments, allocate_moments, set_steps_taken
from trainer.parallel import Read, Source, World
from trainer.zero_parts import Flat, Partitioned, assembled


class ZeroModel:
    """`parallel.Sharded` through DeepSpeed.

    A step whose gradient is not finite changes nothing, as DeepSpeed has it; its norm is told as infinity.
    """

    def __init__(self, model: PreTrainedModel, config: TrainConfig, world: World) -> None:
        self.model = model
        self._config, self._world = config, world
        self._deepspeed = zero_engine.start(world.device)
        self._settings = zero_engine.settings(config, model.config.hidden_size, world.device)
        self._engine: Any
        self._optimiser: torch.optim.AdamW
        self._parts: Flat | Partitioned
        self._state: dict[str, Tensor]
        self._steps = 0

    def fill(self, source: Source | None) -> None:
        """One tensor of the source is whole in memory at a time; under stage 3 that is the most of the model that is
        ever on a device before the first forward pass."""
        missing = building.unfilled(self.model)
        _set_apart(self.model)
        self._allocate()
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        trained = [parameter for parameter in names if parameter.requires_grad]
        self._optimiser = adamw_without_moments(trained, self._config.train)
        self._engine = zero_engine.engine(self._deepspeed, self.model, self._optimiser, self._settings)
        layout = Partitioned if self._partitions else Flat
        self._parts = layout(self._engine.optimizer, names, self._world.rank)
        for master in self._parts.masters:
            if not self._optimiser.state[
                master
            ]:  # stage 3 leaves them to the first step: too late for a checkpoint
                allocate_moments(self._optimiser, master)
        self._state = self._saved()
        if source is not None:
            self._copy(source, missing)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        # gradients are averaged over processes; the loss is a sum over them
        self._engine.backward(loss * self._world.size, scale_wrt_gas=False)

    def step(self, rate: float) -> float:
        # DeepSpeed counts otherwise: one step to make stage 2's moments, none where a gradient is not finite.
        set_steps_taken(self._optimiser, self._steps)
        self._steps += 1
        self._engine.optimizer.set_lr(rate)
        self._engine.step()
        if self._engine.optimizer.overflow:
            self._parts.forget_gradients()
        return float(self._engine.get_global_grad_norm())

    def settle(self) -> None:
        if self._partitions:
            self._engine.empty_partition_cache()

    def state(self) -> dict[str, Tensor]:
        return dict(self._state)

    def load(self, read: Read, steps: int, saved_by: int) -> None:
        """Any number of processes reads what any other has saved: each takes its part of the whole tensors."""
        read(self.state())
        self._steps = steps
        self.settle()
        self._parts.publish()

    def gathered(self, dtype: torch.dtype) -> dict[str, Tensor]:
        whole: dict[str, Tensor] = {}
        for name, weight in assembled(self._parts.pieces, self._parts.masters):
            if self._world.leads:
                whole[name] = weight.to("cpu", dtype, copy=True)
        return whole

    @property
    def _partitions(self) -> bool:
        """Whether a process keeps only a part of the weights themselves."""
        return self._config.parallel.zero_stage == 3

    def _allocate(self) -> None:
        """Memory for what has none, in the dtype of the computation: masters are DeepSpeed's to make."""
        dtype = torch.bfloat16 if self._config.train.bf16 else torch.float32
        for parameter in self.model.parameters():
            if parameter.is_meta:
                parameter.data = parameter.data.to(dtype)
        if self._partitions:
            self._partition()
        else:
            building.allocate(self.model, self._world.device)

    def _partition(self) -> None:
        """What building.allocate does, for this process's part of each weight: module by module, so that none but
        one module's own weights are ever whole. A weight that two modules share stays one."""
        made: dict[nn.Parameter, nn.Parameter] = {}
        for module in self.model.modules():
            fresh: list[nn.Parameter] = []
            for name, parameter in module.named_parameters(recurse=False):
                if parameter not in made:
                    made[parameter] = self._with_memory(parameter)
                    fresh.append(made[parameter])
                setattr(module, name, made[parameter])
            self._compute_buffers(module)
            zero_engine.partition(self._deepspeed, fresh, self._settings)

    def _with_memory(self, parameter: nn.Parameter) -> nn.Parameter:
        if not parameter.is_meta:
            return parameter
        return nn.Parameter(torch.empty_like(parameter, device=self._world.device), parameter.requires_grad)

    def _compute_buffers(self, module: nn.Module) -> None:
        """While its weights are whole: what computes buffers may touch those too."""
        blank = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        for name in blank:
            module._buffers[name] = torch.empty_like(module.get_buffer(name), device=self._world.device)
        if blank:
            self.model._init_weights(module)

    def _saved(self) -> dict[str, Tensor]:
        masters, state = self._parts.masters, self._optimiser.state
        mesh = self._world.mesh
        if masters[0].device.type != mesh.device_type:  # offloaded
            mesh = init_device_mesh(masters[0].device.type, (self._world.size,))
        moments = {key: [state[master][key] for master in masters] for key in ("exp_avg", "exp_avg_sq")}
        saved: dict[str, Tensor] = {}
        for label, buffers in {"model": masters, **moments}.items():
            saved |= self._parts.saved(label, buffers, mesh)
        return saved

    @torch.no_grad()
    def _copy(self, source: Source, names: list[str]) -> None:
        pieces = {piece.name: piece for piece in self._parts.pieces}
        parameters = dict(self.model.named_parameters())
        for name in names:
            if name in pieces:
                pieces[name].of(self._parts.masters).copy_(pieces[name].cut(source(name)))
            else:
                self._parts.put_frozen(parameters[name], source(name))
        self._parts.publish()


def _set_apart(model: nn.Module) -> None:
    """Make quantised weights plain attributes of their modules: every process keeps them whole, and DeepSpeed
    would broadcast, cast or partition whatever is a parameter."""
    quantised = quantize.whole(model)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter in quantised:
                del module._parameters[name]
                module.__dict__[name] = parameter
