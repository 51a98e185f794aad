"""Several LoRA adapters on one model, each for its own rows of a step.

PEFT reads the files and puts its layers into the model; here each layer applies every adapter to the rows of the
requests that chose it. The formula is PEFT's own. (PEFT's mixed batches want one request for each row of a batch; a
step has many sequences in one row.)
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from trainer.errors import ConfigError

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class Adapters:
    """The adapters of a model, by the names they are asked for. Without any, nothing is imported or changed."""

    def __init__(self, model: PreTrainedModel, folders: Mapping[str, Path]) -> None:
        """Raises ConfigError for a folder that is no LoRA adapter of this model, or of a kind not supported."""
        self._inner = {name: f"adapter{number}" for number, name in enumerate(folders)}
        self._rows: list[tuple[str, int, int]] = []
        if not folders:
            return
        wrapped: Any = None
        for name, folder in folders.items():
            _check(name, folder)
            try:
                wrapped = _added(model, wrapped, self._inner[name], folder)
            except (OSError, ValueError, RuntimeError, KeyError) as error:
                raise ConfigError(f"adapter {name}: {' '.join(str(error).split())[:300]}") from None
        self._route(model)

    def __contains__(self, name: str) -> bool:
        return name in self._inner

    def rows(self, chosen: Sequence[tuple[str | None, int]]) -> None:
        """What the next step's row consists of, in order: adapter (None for the bare model) and tokens."""
        self._rows = []
        at = 0
        for name, count in chosen:
            if name is not None:
                inner = self._inner[name]
                if self._rows and self._rows[-1][0] == inner and self._rows[-1][2] == at:
                    self._rows[-1] = (inner, self._rows[-1][1], at + count)
                else:
                    self._rows.append((inner, at, at + count))
            at += count

    def _route(self, model: PreTrainedModel) -> None:
        from peft.tuners.lora import LoraLayer

        head = model.get_output_embeddings()
        for module in model.modules():
            if not isinstance(module, LoraLayer):
                continue
            layer: Any = module
            if layer.lora_variant or len(layer.lora_embedding_A) or head is layer:
                raise ConfigError(
                    "an adapter changes embeddings or the output layer, or is a DoRA: served are plain LoRA adapters",
                    hint="merge it into its base with vlaunch weights merge-adapter, and serve that",
                )
            layer.forward = functools.partial(self._forward, layer)

    def _forward(self, layer: Any, x: Tensor) -> Tensor:
        result: Tensor = layer.base_layer(x)
        for inner, first, last in self._rows:
            if inner not in layer.lora_A:
                continue
            down, up = layer.lora_A[inner], layer.lora_B[inner]
            part = x[:, first:last].to(down.weight.dtype)
            changed = result[:, first:last] + up(down(part)) * layer.scaling[inner]
            result[:, first:last] = changed.to(result.dtype)
        return result


def _check(name: str, folder: Path) -> None:
    try:
        config = json.loads((folder / _CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"adapter {name}: {folder} has no readable {_CONFIG}: {error}",
            hint="give a folder as PEFT or a LoRA run writes it",
        ) from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ConfigError(f"adapter {name}: {folder} is no LoRA adapter")
    if config.get("modules_to_save"):
        raise ConfigError(
            f"adapter {name} replaces whole layers ({', '.join(config['modules_to_save'])}), which cannot be shared",
            hint="merge it into its base with vlaunch weights merge-adapter, and serve that",
        )
    if not (folder / _WEIGHTS).is_file():
        raise ConfigError(
            f"adapter {name}: {folder} has no {_WEIGHTS}",
            hint="pickled weights (adapter_model.bin) are not loaded: they may run any code",
        )


def _added(model: PreTrainedModel, wrapped: Any, inner: str, folder: Path) -> Any:
    from peft import PeftModel

    if wrapped is None:
        return PeftModel.from_pretrained(model, folder, adapter_name=inner, use_safetensors=True)
    wrapped.load_adapter(folder, adapter_name=inner, use_safetensors=True)
    return wrapped
