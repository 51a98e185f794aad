"""Networks small enough for a test, whose attention is so strong that any leak between conversations shows."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from trainer import attention

# Every test process shares two cores with others.
torch.set_num_threads(1)


def llama(**changes: Any) -> LlamaConfig:
    fields: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 256,
    }
    return LlamaConfig(**fields | changes)


def sharp(config: LlamaConfig, implementation: str = attention.NAME) -> PreTrainedModel:
    """With attention weights enlarged until each token looks at few others: who is looked at then matters."""
    attention.register()
    torch.manual_seed(0)
    # A copy: models made of one config share it, and with it the implementation that was asked for last.
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        copy.deepcopy(config), attn_implementation=implementation
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "_proj" in name and "self_attn" in name:
                weight.mul_(20.0)
    return model.eval()
