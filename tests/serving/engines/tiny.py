"""Models that are made on the fly: small, random, and the same each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trainer.conversation import get_template
from trainer.tokenize import carry_template, train_tokeniser

# Every test process shares two cores with others.
torch.set_num_threads(1)

TEXTS = [
    "The quick brown fox jumps over the lazy dog. ",
    "Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich. ",
]


def write_llama(folder: Path, **changes: Any) -> Path:
    """A LLaMA with a tokeniser and Vicuna's template; its logits are far apart, as those of trained models are."""
    template = get_template("vicuna_v1.1")
    tokeniser = train_tokeniser(TEXTS * 4, 400, template)
    carry_template(tokeniser, template, 512)
    fields: dict[str, Any] = {
        "vocab_size": len(tokeniser),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "bos_token_id": tokeniser.bos_token_id,
        "eos_token_id": tokeniser.eos_token_id,
        "pad_token_id": tokeniser.pad_token_id,
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**fields | changes))
    model.save_pretrained(folder)
    tokeniser.save_pretrained(folder)
    return folder


def load_reference(folder: Path) -> tuple[Any, PreTrainedTokenizerFast]:
    """The same as transformers loads it."""
    tokeniser = PreTrainedTokenizerFast.from_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder).eval(), tokeniser


def continued(model: Any, prompt: list[int], count: int) -> list[int]:
    """What transformers' generate makes, greedily, with its end token if it came to one."""
    out = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False)
    made: list[int] = out[0, len(prompt) :].tolist()
    return made
