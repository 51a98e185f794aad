"""What this machine and its environment are, and the choices of choices.py put into effect on it.

Heavy, and in the order of a start: `let_segments_grow` before CUDA is started, `detect` and `installed`, `prepare`
before the model is there, `equip` on the model before it is spread over processes.
"""

from __future__ import annotations

import inspect
import logging
import os
import resource
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from trainer.attention import Hidden, register
from trainer.choices import ALLOCATOR, Choices, Installed
from trainer.config import TrainConfig
from trainer.fsdp import decoder_layers
from trainer.hardware import Hardware, card_named

log = logging.getLogger("trainer")

_ALLOCATOR_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
_CGROUP = Path("/sys/fs/cgroup")


def let_segments_grow() -> None:
    """Tell torch's allocator for GPUs so; it asks once, when CUDA starts in this process. What the user has set
    stays."""
    if torch.cuda.device_count() and not any(name in os.environ for name in _ALLOCATOR_SETTINGS):
        os.environ["PYTORCH_ALLOC_CONF"] = ALLOCATOR


def detect(processes: int) -> Hardware:
    """The processors that this machine's `processes` train on. Starts CUDA where there is a card: not before a fork."""
    if not torch.cuda.is_available():
        return Hardware("CPU", "cpu", processes, resident_bytes() + free_host_bytes() // processes)
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    capability = (properties.major, properties.minor)
    known = card_named(properties.name, properties.total_memory)
    return Hardware(
        known.name if known else properties.name,
        "cuda",
        processes,
        properties.total_memory,
        capability,
        known.bf16_tflops if known else None,
        known.float32_tflops if known else None,
        known.bandwidth_gb_s if known else None,
    )


def installed() -> Installed:
    """What there is to choose from. Imports none of it but torch's own packed attention."""
    return Installed(
        torch=torch.__version__,
        architectures=tuple(torch.cuda.get_arch_list()),
        varlen=_has_varlen(),
        triton=find_spec("triton") is not None,
        liger=find_spec("liger_kernel") is not None,
        bitsandbytes=find_spec("bitsandbytes") is not None,
    )


def prepare(choices: Choices) -> None:
    """What holds for the whole process."""
    if choices.tf32:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True


def as_chosen(config: TrainConfig, choices: Choices) -> TrainConfig:
    """The config with the number format that this card has: what model, strategy and export go by."""
    train = config.train.model_copy(update={"bf16": choices.bf16})
    return config.model_copy(update={"train": train})


def equip(model: PreTrainedModel, choices: Choices, backend: str = "inductor") -> None:
    """Attention and fused kernels into the model, and its layers compiled at their first call; on the meta device, in
    place, before it is spread over processes.

    Compiled for rows of any length from the start: a first row taken for the only length would make the kernels of a
    resumed run depend on where it resumes, and under checkpointing the recomputation may meet the other version.
    """
    name = register(choices.attention, compiled=choices.compile)
    if name != model.config._attn_implementation:
        model.set_attn_implementation(name)
    if choices.liger:
        apply = import_module("liger_kernel.transformers")._apply_liger_kernel_to_instance
        # The loss is our own: logits of trained positions alone. Liger's would compute those of all.
        apply(model=model, cross_entropy=False, fused_linear_cross_entropy=False)
    if choices.compile:
        model.register_forward_pre_hook(_hide_boundaries, with_kwargs=True)
        for layer in decoder_layers(model):
            layer.compile(backend=backend, dynamic=True)


def _hide_boundaries(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    ends = kwargs.get("boundaries")
    return args, kwargs | {"boundaries": Hidden(ends)} if ends else kwargs


def tell(hardware: Hardware, choices: Choices) -> None:
    """One line for each choice, with its reason. On a CPU nothing was chosen."""
    if hardware.kind == "cpu":
        return
    log.info("training on %d x %s", hardware.count, hardware.name)
    for name, reason in choices.reasons.items():
        log.info("%s: %s", name.replace("_", " "), reason)


def resident_bytes() -> int:
    """What this process takes of the host's memory now; 0 off Linux."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def free_host_bytes() -> int:
    """What programs on this machine may still take: of the host, the container and this process's own limits."""
    return max(0, min([_of_the_host(), *_of_the_container(), *_of_the_process()]))


def _of_the_host() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _of_the_container() -> list[int]:
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return []
    return [] if limit == "max" else [int(limit) - int(used)]


def _of_the_process() -> list[int]:
    left = []
    for kind, field in ((resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5)):
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text().split()[field])
            left.append(limit - pages * os.sysconf("SC_PAGE_SIZE"))
    return left


def _has_varlen() -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return "window_size" in inspect.signature(varlen_attn).parameters
