"""The network: its shape without memory, then its weights from whichever source this attempt has.

Order of a start: `skeleton` builds the modules on the meta device (no memory, milliseconds even for 13B),
parallel.spread shards them, then exactly one of `random_weights`, `base_weights` or a checkpoint fills them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from trainer import attention
from trainer.config import TrainConfig
from trainer.errors import ConfigError
from trainer.parallel import Source


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


def skeleton(shape: PreTrainedConfig) -> PreTrainedModel:
    """The modules on the meta device, float32, with attention that keeps packed conversations apart."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            shape, dtype=torch.float32, attn_implementation=attention.register()
        )


def allocate(model: PreTrainedModel, device: torch.device) -> None:
    """Give a (sharded) skeleton memory. Weights are uninitialised; buffers, which no checkpoint holds, are
    computed anew."""
    model.to_empty(device=device)
    model.tie_weights()
    for module in model.modules():
        if any(True for _ in module.buffers(recurse=False)):
            model._init_weights(module)  # the only entry point to the rotary frequencies of every family


def random_weights(shape: PreTrainedConfig, seed: int) -> Source:
    """The initialisation of the family, the same for every number of processes.

    Costs one full copy of the model in each process's host memory for as long as the source lives.
    """
    before = torch.get_rng_state()
    torch.manual_seed(seed)
    full = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
    torch.set_rng_state(before)
    return dict(full.named_parameters()).__getitem__


def base_weights(directory: Path, model: PreTrainedModel) -> Source:
    """Weights of a Hugging Face folder, one tensor in memory at a time. Safetensors only: a pickle from
    the network is never opened.

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
    missing = [name for name, _ in model.named_parameters() if name not in where]
    if missing:
        raise ConfigError(
            f"the base model lacks {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
        )
    for name, parameter in model.named_parameters():
        if (there := where[name].get_slice(name).get_shape()) != list(parameter.shape):
            raise ConfigError(
                f"the base model's {name} has shape {there}, its config.json means {list(parameter.shape)}"
            )
    return lambda name: where[name].get_tensor(name)


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
