"""Models that are made on the fly: small, random, and the same each time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from serving.engine import Engine, Sampling
from serving.engines.hf import HfEngine
from serving.engines.loading import ModelOptions
from serving.engines.scheduler import Limits
from trainer.conversation import get_template
from trainer.tokenize import carry_template, train_tokeniser

# Every test process shares two cores with others.
torch.set_num_threads(1)

T = TypeVar("T")
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
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


def continued(model: Any, prompt: list[int], count: int, **options: Any) -> list[int]:
    """What transformers' generate makes, greedily, with its end token if it came to one."""
    ids = torch.tensor([prompt])
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, **options
    )
    made: list[int] = out[0, len(prompt) :].tolist()
    return made


def write_adapter(folder: Path, base: Path, *, seed: int, rank: int = 4, targets: Sequence[str] = ()) -> Path:
    """A LoRA of random weights, strong enough to change what is written, as PEFT writes it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    wrapped = get_peft_model(
        LlamaForCausalLM.from_pretrained(base),
        LoraConfig(
            task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules=list(targets or LAYERS)
        ),
    )
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if ".lora_B." in name:
                weight.normal_(0.0, 0.3)
    wrapped.save_pretrained(folder)
    return folder


def prompts(count: int, vocabulary: int, longest: int = 120) -> list[list[int]]:
    """Random ones of mixed length: from one token on, half of them short."""
    draw = random.Random(0)
    lengths = [draw.randint(1, longest if number % 2 else 12) for number in range(count)]
    return [[draw.randrange(3, vocabulary) for _ in range(length)] for length in lengths]


@dataclass
class Made:
    """What an engine made of one request."""

    text: str = ""
    tokens: int = 0
    said: list[bytes] = field(default_factory=list)
    finish: str | None = None
    cached: int = 0
    deltas: int = 0


async def collect(engine: Engine, prompt: list[int], sampling: Sampling, adapter: str | None = None) -> Made:
    made = Made()
    async for delta in engine.generate(prompt, sampling, adapter=adapter):
        made.text += delta.text
        made.tokens += delta.tokens
        made.said += [logprob.token_bytes for logprob in delta.logprobs]
        made.cached += delta.cached_tokens
        made.deltas += 1
        made.finish = delta.finish
    return made


def with_engine(
    folder: Path, work: Callable[[HfEngine], Awaitable[T]], limits: Limits | None = None, **options: Any
) -> T:
    """What `work` returns, done with an engine on that model in a loop of its own."""

    async def run() -> T:
        engine = await HfEngine.open(
            ModelOptions(str(folder), threads=1, **options),
            name="tiny",
            limits=limits or Limits(kv_tokens=16384),
        )
        try:
            return await work(engine)
        finally:
            await engine.close()

    return asyncio.run(run())
