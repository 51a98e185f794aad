"""Engines by name. Light: an engine's libraries are imported when it is opened."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from serving.engine import Engine
from trainer.errors import UsageError

if TYPE_CHECKING:
    from serving.engines.loading import ModelOptions

Device = Literal["cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

KINDS = {"hf": "serving.engines:open_hf", "vllm": "serving.engines:open_vllm"}
_DTYPES: dict[str, Dtype] = {"auto": "auto", "bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True)
class EngineOptions:
    """What an operator says of an engine.

    Attributes:
        model: a run's URI, a folder in Hugging Face layout, a folder of adapters, or a Hugging Face id.
        name: what clients call it.
        adapters: folders of LoRA adapters by the names that clients use.
        max_running: requests at a time; None: as the engine decides.
        template: name of a chat template; None: the one that lies with the model, which it was trained with.
    """

    model: str
    name: str
    adapters: Mapping[str, str] = field(default_factory=dict)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: str = "auto"
    load_8bit: bool = False
    load_4bit: bool = False
    num_gpus: int = 1
    max_running: int | None = None
    template: str | None = None


async def open_engine(kind: str, options: EngineOptions) -> Engine:
    """An engine with its model loaded. `kind`: hf, vllm, or MODULE:FUNCTION for one of your own.

    Raises:
        UsageError: there is no such engine. NotReady, UsageError: what the engine says of the model.
    """
    path = KINDS.get(kind, kind)
    module, _, function = path.partition(":")
    try:
        open_it: Callable[[EngineOptions], Awaitable[Engine]] = getattr(import_module(module), function)
    except (ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name not in (module, module.partition(".")[0]):
            raise
        raise UsageError(
            f"there is no engine {kind!r}", hint=f"one of {', '.join(KINDS)}, or MODULE:FUNCTION"
        ) from None
    return await open_it(options)


async def open_hf(options: EngineOptions) -> Engine:
    """The engine on transformers. Raises ConfigError, NotReady, CorruptObject."""
    import torch

    from serving.engines.hf import HfEngine
    from serving.engines.scheduler import Limits

    device: Device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.device != "auto":
        device = options.device
    limits = None if options.max_running is None else Limits(running=options.max_running)
    return await HfEngine.open(_model(options, device), name=options.name, limits=limits)


async def open_vllm(options: EngineOptions) -> Engine:
    """The engine on vLLM, which chooses its own device. Raises ConfigError, NotReady, CorruptObject."""
    from serving.engines.vllm import VllmEngine

    most = {} if options.max_running is None else {"most": options.max_running}
    return await VllmEngine.open(_model(options, "cuda"), name=options.name, **most)


def _model(options: EngineOptions, device: Device) -> ModelOptions:
    from serving.engines.loading import ModelOptions

    if options.load_8bit and options.load_4bit:
        raise UsageError("--load-8bit and --load-4bit exclude each other")
    return ModelOptions(
        model=options.model,
        device=device,
        dtype=_DTYPES[options.dtype],
        load_in="8bit" if options.load_8bit else "4bit" if options.load_4bit else None,
        num_gpus=options.num_gpus,
        template=options.template,
        adapters={name: Path(folder) for name, folder in options.adapters.items()},
    )
