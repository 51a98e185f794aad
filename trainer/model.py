"""The network: its shape without memory, then its weights from whichever source this attempt has.

Order of a start: `build` makes the modules on the meta device (no memory, milliseconds even for 13B),
parallel.spread spreads them, then `weights` or a checkpoint fills them. Only a base in 8 or 4 bit is there whole
from the beginning: quantize.py says why.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from trainer import adapters, attention, methods, quantize
from trainer.adapters import is_adapter, original_name
from trainer.config import TrainConfig
from trainer.errors import ConfigError
from trainer.parallel import Source


def build(
    config: TrainConfig, tokeniser: PreTrainedTokenizerFast, base: Path | None, device: torch.device
) -> PreTrainedModel:
    """The network as the config's method trains it, before it is spread. What needs weights is on the meta device.

    full: everything, float32. lora: the frozen base in the dtype of the computation, and adapters in float32.
    lora-8bit and qlora: the adapters alone; the frozen base is on `device` already, which costs each process its
    whole size there and one pass over its files. Exactly what is trained requires a gradient.

    Raises:
        ConfigError: tokeniser, rows or adapters do not fit the base.
        NotReady: a package that the method needs is not installed.
    """
    methods.require_packages(config)
    shape = model_config(config, tokeniser, base)
    kind = methods.kind(config)
    if kind == "full":
        return skeleton(shape)
    if base is None:
        raise ValueError("adapters need a base in a folder; prepare.py makes one where there is none")
    frozen = torch.bfloat16 if config.train.bf16 else torch.float32
    if kind == "lora":
        model = skeleton(shape, frozen)
    else:
        base_weights(base, skeleton(shape))  # refuses what does not fit
        model = quantize.load(base, shape, kind, frozen, device)
    adapters.adapt(model, config.lora)
    return model


def model_config(
    config: TrainConfig, tokeniser: PreTrainedTokenizerFast, base: Path | None
) -> PreTrainedConfig:
    """The Hugging Face config of the network to train."""
    try:
        if base is not None:
            shape = AutoConfig.from_pretrained(base)
        else:
            fields = dict(config.model.shape or {})
            shape = AutoConfig.for_model(
                fields.pop("model_type", "llama"),
                **fields,
                vocab_size=len(tokeniser),
                max_position_embeddings=config.data.max_length,
            )
    except (ValueError, TypeError, OSError, StrictDataclassError) as error:
        raise ConfigError(f"model: {' '.join(str(error).split())}") from None
    if getattr(shape, "quantization_config", None):
        raise ConfigError("the base model is quantised already", hint="give the one that it was made from")
    if len(tokeniser) > shape.vocab_size:
        raise ConfigError(
            f"the tokeniser has {len(tokeniser)} tokens, the base model only {shape.vocab_size}"
        )
    positions = getattr(shape, "max_position_embeddings", None)
    if positions is not None and config.data.max_length > positions:
        raise ConfigError(
            f"max_length {config.data.max_length} exceeds the {positions} positions of the base model",
            hint=f"--max-length {positions}",
        )
    shape.update(
        {
            "bos_token_id": tokeniser.bos_token_id,
            "eos_token_id": tokeniser.eos_token_id,
            "pad_token_id": tokeniser.pad_token_id,
            "attention_dropout": config.model.dropout,
            "use_cache": False,
        }
    )
    return shape


def skeleton(shape: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The modules on the meta device, with attention that keeps packed conversations apart."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(shape, dtype=dtype, attn_implementation=attention.register())


def unfilled(model: nn.Module) -> list[str]:
    """Names of the parameters that have no memory yet."""
    return [name for name, parameter in model.named_parameters() if parameter.is_meta]


def allocate(model: PreTrainedModel, device: torch.device) -> None:
    """Give memory to what has none. Weights are uninitialised; buffers, which no checkpoint holds, are computed
    anew."""
    blank = [m for m in model.modules() if any(buffer.is_meta for buffer in m.buffers(recurse=False))]

    def memory(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device=device) if tensor.is_meta else tensor

    model._apply(memory)
    model.tie_weights()
    for module in blank:
        model._init_weights(module)  # the only entry point to the rotary frequencies of every family


def weights(config: TrainConfig, base: Path | None, model: PreTrainedModel) -> Source:
    """What `model`, as `build` made it, begins with, for every name of `unfilled`; to be asked for before it has
    memory. The same for every number of processes."""
    if methods.kind(config) == "full":
        return base_weights(base, model) if base else random_weights(model.config, config.train.seed)
    if base is None or all(map(is_adapter, unfilled(model))):
        return adapters.beginning(model, None, config.train.seed)
    return adapters.beginning(model, base_weights(base, model), config.train.seed)


def random_weights(shape: PreTrainedConfig, seed: int) -> Source:
    """The initialisation of the family, the same for every number of processes.

    Costs one full copy of the model in each process's host memory for as long as the source lives.
    """
    return dict(_random_model(shape, seed).named_parameters()).__getitem__


def write_random(shape: PreTrainedConfig, seed: int, directory: Path) -> None:
    """A Hugging Face folder with the weights that `random_weights` gives: config.json and model.safetensors.

    Not by save_pretrained, which imports deepspeed where it is installed.
    """
    model = _random_model(shape, seed)
    shape = copy.deepcopy(model.config)
    shape.architectures = [type(model).__name__]
    shape.use_cache = True
    directory.mkdir(parents=True, exist_ok=True)
    shape.save_pretrained(directory)
    tensors = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def _random_model(shape: PreTrainedConfig, seed: int) -> PreTrainedModel:
    before = torch.get_rng_state()
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
    torch.set_rng_state(before)
    return model


def base_weights(directory: Path, model: PreTrainedModel) -> Source:
    """Weights of a Hugging Face folder, one tensor in memory at a time. Safetensors only: a pickle from
    the network is never opened. Adapters, which no folder has, are passed over.

    Raises:
        ConfigError: the folder lacks a weight of `model`, or has one of another shape.
    """
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise ConfigError(
            f"{directory} holds no .safetensors file", hint="convert pickled .bin weights first"
        )
    where: dict[str, Any] = {}
    for path in files:
        handle = safe_open(path, framework="pt")
        where |= dict.fromkeys(handle.keys(), handle)
    _refuse_unlike(where, ((original_name(n), p) for n, p in model.named_parameters() if not is_adapter(n)))
    return lambda name: where[original_name(name)].get_tensor(original_name(name))


def _refuse_unlike(where: dict[str, Any], wanted: Iterable[tuple[str, nn.Parameter]]) -> None:
    shapes = {name: list(parameter.shape) for name, parameter in wanted}
    missing = [name for name in shapes if name not in where]
    if missing:
        raise ConfigError(
            f"the base model lacks {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
        )
    for name, shape in shapes.items():
        if (there := where[name].get_slice(name).get_shape()) != shape:
            raise ConfigError(f"the base model's {name} has shape {there}, its config.json means {shape}")


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
