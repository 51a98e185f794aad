"""Low-rank adapters (LoRA): on a model, at their beginning, and as PEFT's own files.

PEFT puts its layers into the model in place. No wrapper stands around the model, so the loop, FSDP and the
checkpoints see the transformers model they always see, with some more weights (docs/decisions/010).
"""

from __future__ import annotations

import copy
import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from trainer.config import LoraSection
from trainer.errors import ConfigError, nearest
from trainer.parallel import Source

# PEFT's own names: of the only adapter, of a layer inside an adapted one, and of a model inside a PeftModel.
_ONLY, _INNER, _WRAPPED = ".default.", ".base_layer.", "base_model.model."


def is_adapter(name: str) -> bool:
    """Whether the parameter of that name belongs to an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def original_name(name: str) -> str:
    """The name that a frozen parameter had before adapters were put on, and has in the base's files."""
    return name.replace(_INNER, ".")


def adapt(model: PreTrainedModel, lora: LoraSection) -> None:
    """Freeze the model and put adapters on its layers, in place: float32, on the meta device.

    Raises:
        ConfigError: a target is no linear layer of the model, with the names that it has.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_targets(model, lora.target_modules),
    )
    inject_adapter_in_model(config, model, low_cpu_mem_usage=True)
    for module in model.modules():
        if isinstance(module, LoraLayer):  # PEFT gives adapters the dtype of their layer
            module.lora_A.float()
            module.lora_B.float()


def beginning(model: nn.Module, frozen: Source | None, seed: int) -> Source:
    """What an adapted model begins with: adapters that change nothing, and the frozen weights of `frozen`.

    A is uniform in +-1/sqrt(inputs) (kaiming_uniform with a=sqrt(5), as PEFT has it), B is zero. Each A is drawn
    from (seed, name): the same in any order and for every number of processes.
    """
    shapes = {name: parameter.shape for name, parameter in model.named_parameters() if is_adapter(name)}

    def source(name: str) -> Tensor:
        if name not in shapes:
            if frozen is None:
                raise KeyError(name)
            return frozen(name)
        if ".lora_B." in name:
            return torch.zeros(shapes[name])
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator()
        generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)  # torch takes 63 bits
        return nn.init.kaiming_uniform_(torch.empty(shapes[name]), a=math.sqrt(5), generator=generator)

    return source


def save(
    model: PreTrainedModel, trained: dict[str, Tensor], directory: Path, base: str, revision: str | None
) -> None:
    """Write adapter_model.safetensors and adapter_config.json: what PeftModel.from_pretrained(base, directory) loads.

    Args:
        trained: every adapter weight, whole, by its name in `model`.
        base: what adapter_config.json calls the base: a Hugging Face id or a folder.
        revision: its commit, for a Hugging Face id.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config: Any = copy.copy(model.peft_config["default"])
    config.base_model_name_or_path, config.revision = base, revision
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules)  # a set, whose order is another in each process
    config.save_pretrained(str(directory))
    tensors = {f"{_WRAPPED}{name.replace(_ONLY, '.')}": weight for name, weight in trained.items()}
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})


def _targets(model: PreTrainedModel, wanted: tuple[str, ...] | str) -> list[str]:
    """Names by which PEFT finds the layers: each adapts every layer whose name ends with it."""
    head = model.get_output_embeddings()
    layers = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head
    ]
    kinds = sorted({name.rpartition(".")[2] for name in layers})
    if wanted == "all-linear":
        return kinds
    for target in wanted:
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            close = nearest(target, kinds)
            raise ConfigError(
                f"lora.target_modules: the blocks of the base model have no linear layer {target!r}",
                hint=(f"did you mean {close}? " if close else "") + f"they have {', '.join(kinds)}",
            )
    return sorted(set(wanted))
