"""A frozen base in 8 or 4 bit: bitsandbytes' layers, filled by transformers' own loader.

Every process keeps the quantised weights whole: their scales are no parameters, and 8-bit weights do not stay
parameters either, so what spreads a model over processes would not see all of them (docs/decisions/010).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

from trainer import attention

# What bitsandbytes says of itself at every import, and of LLM.int8()'s cast at every call of every layer.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)

# bitsandbytes' parameters, by name: importing it starts CUDA, and most runs need none of it.
_QUANTISED = ("Int8Params", "Params4bit")


def load(
    base: Path,
    shape: PreTrainedConfig,
    kind: Literal["lora-8bit", "qlora"],
    dtype: torch.dtype,
    device: torch.device,
) -> PreTrainedModel:
    """The model of a Hugging Face folder on `device`, its linear layers but the head quantised, the rest in `dtype`.

    lora-8bit: LLM.int8() (Dettmers et al. 2022): 8 bit by row, inputs beyond 6.0 in 16 bit; activations in 16 bit.
    qlora: NF4 with double quantisation (Dettmers et al. 2023), 4.127 bit a weight; activations in `dtype`.

    Costs one pass over the folder's safetensors; nothing else is read.
    """
    quantisation = (
        BitsAndBytesConfig(load_in_8bit=True)
        if kind == "lora-8bit"
        else BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        base,
        config=shape,
        dtype=dtype,
        quantization_config=quantisation,
        attn_implementation=attention.register(),
        device_map={"": device},
        use_safetensors=True,
        local_files_only=True,
    )
    for module in model.modules():
        layer: Any = module
        if type(layer).__name__ == "Linear8bitLt":
            layer.register_forward_hook(_forget_input)
        # Set, bitsandbytes rewrites a layer's weights at the first forward pass out of training, with scales rounded to
        # 16 bit, for a faster kernel: on CPUs with AVX512-BF16 the base would change when a held-out loss is measured.
        if type(layer).__name__ == "Linear4bit":
            layer.support_avx512bf16_for_cpu = False
    return model


def _forget_input(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
    """Let go of a layer's input, which bitsandbytes keeps for the gradient of a weight that has none.

    It keeps it where gradient checkpointing does not see it: 1.5 MB a token of LLaMA-7B, all layers together.
    """
    made_by: Any = output.grad_fn
    if hasattr(made_by, "tensors") and not made_by.is_empty:  # MatMul8bitLt
        made_by.tensors = (None, None, None)
    if hasattr(made_by, "A"):  # MatMul8bitFp, on CPUs
        made_by.A = None


def whole(model: nn.Module) -> set[nn.Parameter]:
    """The quantised weights of a model: what no strategy may spread, cast or move."""
    return {parameter for parameter in model.parameters() if type(parameter).__name__ in _QUANTISED}
