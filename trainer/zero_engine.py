"""DeepSpeed as it is used here: its engine alone, on our process group, with nothing built and nothing printed.

DeepSpeed compiles C++ where it is used for the first time. A build that is killed leaves a lock on which every
later start waits for ever, so none is ever begun: see `start`.
"""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from trainer.config import Offload, TrainConfig
from trainer.errors import NotReady
from trainer.zero_config import fill_auto

_OFFLOADED: dict[Offload, tuple[str, ...]] = {
    "none": (),
    "optimizer": ("offload_optimizer",),
    "all": ("offload_optimizer", "offload_param"),
}


def load() -> Any:
    """The deepspeed package. 0.8 s of imports and no thread, no GPU: it may be imported before a fork.

    Raises:
        NotReady: it is not installed.
    """
    if not torch.cuda.device_count():  # counted without starting CUDA
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it warns that it found no GPU
    try:
        import deepspeed
        import deepspeed.runtime.zero.muon.muon_optimizer  # the first step imports it
    except ModuleNotFoundError as error:
        raise NotReady(
            f"--strategy deepspeed needs {error.name}, not installed here",
            hint="pip install 'vlaunch[train,deepspeed]'",
        ) from None
    # Its logger writes to stdout by a handler of its own: warnings go to our log, the rest nowhere.
    logger = logging.getLogger("DeepSpeed")
    logger.handlers.clear()
    logger.setLevel(logging.WARNING)
    logger.propagate = True
    # It calls collectives by names that torch 2.13 calls deprecated, at every step.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    return deepspeed


def start(device: torch.device) -> Any:
    """The deepspeed package, ready to use the process group that parallel.joined has made.

    On CPUs DeepSpeed would build a library for sums through shared memory, which its inference alone calls. It asks
    this table first whether that can be built. None of its own operations is: optimisers are PyTorch's.
    """
    deepspeed = load()
    deepspeed.ops.__compatible_ops__ = {}
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))  # it takes no device by another way
    os.environ.setdefault("LOCAL_SIZE", str(dist.get_world_size()))  # else `numactl` is run for each sum
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return deepspeed


def settings(config: TrainConfig, hidden_size: int, device: torch.device) -> dict[str, Any]:
    """What the user's file says, block by block under what the run itself decides.

    Gradients are averaged and accumulated in float32, as FSDP does it here. Accumulation is driven by
    `Sharded.backward(last=...)`, so DeepSpeed is told of one backward pass a step.
    """
    parallel = config.parallel
    zero: dict[str, Any] = {
        "stage": parallel.zero_stage,
        # The one moves weights about with the number of processes, the other puts padding between them: no layout
        # for checkpoints that every number of processes reads.
        "round_robin_gradients": False,
        "parameter_alignment": False,
    }
    defaults: dict[str, Any] = {}
    for block in _OFFLOADED[parallel.offload]:
        zero[block] = {"device": "cpu"}
        defaults[block] = {"pin_memory": device.type == "cuda"}
    ours = {
        "train_micro_batch_size_per_gpu": config.train.per_device_train_batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.train.max_grad_norm,
        "bf16": {"enabled": config.train.bf16},
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": zero,
        # PyTorch's fused AdamW, on CPUs too, instead of DeepSpeedCPUAdam, which is built on first use.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31 - 1,
    }
    theirs = fill_auto(parallel.deepspeed, hidden_size)
    return _merged(_merged({"zero_optimization": defaults}, theirs), ours)


def engine(
    deepspeed: Any, model: nn.Module, optimiser: torch.optim.Optimizer, settings: dict[str, Any]
) -> Any:
    """DeepSpeed's engine around `model`, whose calls go through it from here on.

    The engine must see a forward pass begin to do its part in the backward pass. The rest of the trainer calls the
    model that it knows, so its class learns the way, as FSDP2 does it.
    """
    built = deepspeed.initialize(model=model, optimizer=optimiser, config=settings)[0]
    kind: type[nn.Module] = type(model)
    within = False

    def call(self: nn.Module, *inputs: Any, **named: Any) -> Any:
        nonlocal within
        if within:  # the engine calls the model in turn
            return kind.__call__(self, *inputs, **named)
        within = True
        try:
            return built(*inputs, **named)
        finally:
            within = False

    model.__class__ = type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
    return built


def partition(deepspeed: Any, parameters: list[nn.Parameter], settings: dict[str, Any]) -> None:
    """Stage 3: this process keeps its part of each alone. A collective."""
    if parameters:
        deepspeed.zero.Init(module=nn.ParameterList(parameters), config_dict_or_path=settings)


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged
