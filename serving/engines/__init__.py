"""Engines by name. Light: an engine's libraries are imported when it is opened."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module

from serving.engine import Engine
from trainer.errors import UsageError

KINDS = {"hf": "serving.engines.hf:open_hf", "vllm": "serving.engines.vllm:open_vllm"}


@dataclass(frozen=True)
class EngineOptions:
    """What an operator says of an engine.

    Attributes:
        model: a folder in Hugging Face layout, a folder of adapters, or a Hugging Face id.
        name: what clients call it.
        adapters: folders of LoRA adapters by the names that clients use.
        max_running: requests at a time; None: as the engine decides.
    """

    model: str
    name: str
    adapters: Mapping[str, str] = field(default_factory=dict)
    device: str = "auto"
    dtype: str = "auto"
    load_8bit: bool = False
    load_4bit: bool = False
    num_gpus: int = 1
    max_running: int | None = None
    seed: int | None = None


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
