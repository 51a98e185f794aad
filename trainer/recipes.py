"""Named starting points: functions that return a config, each number with its source.

`tiny` comes first because it runs anywhere. 7 and 13 are Vicuna's: the table of hyperparameters in the
ChatServer and FastChat documents (global batch 128, rate 2e-5, 3 epochs, 2048 tokens, no decay) and their
torchrun lines (warm-up 0.03, cosine, gradient checkpointing, bf16). LoRA numbers are those of the
single-16-GB-card document (r 8, alpha 16, dropout 0.05, base in 8 bit, 512 tokens).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainer.config import (
    CheckpointSection,
    DataSection,
    ExportSection,
    LoraSection,
    Method,
    ModelSection,
    TrainConfig,
    TrainSection,
)
from trainer.errors import ConfigError, nearest


@dataclass(frozen=True, slots=True)
class Recipe:
    """A config and the machine that its sources trained it on."""

    config: TrainConfig
    accelerator: str | None
    """SkyPilot name and count, e.g. "A100-80GB:8"; None runs on CPUs."""
    source: str
    """Where machine and numbers come from, for people."""


def tiny(method: Method = "full") -> Recipe:
    """A LLaMA of 2 million weights from scratch, for one laptop: the whole system in three minutes.

    Shape, rate and steps are ours, tuned on two CPU cores so that the held-out loss of the example corpus
    falls by well over a third; rates of this size are usual for models this small.
    """
    config = TrainConfig(
        recipe="tiny" if method == "full" else f"tiny-{method}",
        model=ModelSection(
            shape={
                "model_type": "llama",
                "hidden_size": 192,
                "intermediate_size": 512,
                "num_hidden_layers": 4,
                "num_attention_heads": 6,
                "num_key_value_heads": 6,
                "tie_word_embeddings": True,
            },
            vocab_size=2048,
        ),
        data=DataSection(max_length=512),
        train=TrainSection(
            method=method,
            max_steps=480,
            global_batch_size=4,
            per_device_train_batch_size=4,
            learning_rate=1.5e-3,
            warmup_ratio=0.05,
            adam_beta2=0.98,
            weight_decay=0.01,
            gradient_checkpointing=False,
            bf16=False,
            eval_steps=120,
            logging_seconds=1.0,
        ),
        checkpoint=CheckpointSection(mtbf_s=40.0),
        export=ExportSection(),
    )
    return Recipe(config, None, "ours: the smallest model whose reply reads like its corpus")


def vicuna_7b(method: Method = "full") -> Recipe:
    """LLaMA-7B as Vicuna trained it."""
    return _vicuna("7", "yahma/llama-7b-hf", method)


def vicuna_13b(method: Method = "full") -> Recipe:
    """LLaMA-13B as Vicuna trained it: the $300 run."""
    return _vicuna("13", "yahma/llama-13b-hf", method)


# full: FastChat's recommendation (13B 8 x A100-80GB, 7B 4 x A100-80GB).
# lora: the 16 GB card of the single-GPU document; qlora 7B: one A10 24 GB, the Antrea document.
# 13B adapters: the smallest card whose memory holds the base (8 bit 13 GB, 4 bit 7 GB) with room to train.
_MACHINES: dict[tuple[str, Method], str] = {
    ("7", "full"): "A100-80GB:4",
    ("13", "full"): "A100-80GB:8",
    ("7", "lora"): "T4:1",
    ("13", "lora"): "A10G:1",
    ("7", "qlora"): "A10G:1",
    ("13", "qlora"): "A10G:1",
}


def _vicuna(size: str, base: str, method: Method) -> Recipe:
    # The 16 GB document trains 512 tokens at batch 14, half precision, on a base in 8 bit.
    on_16gb = method == "lora" and size == "7"
    config = TrainConfig(
        recipe=f"{size}-{method}",
        model=ModelSection(base=base),
        data=DataSection(max_length=512 if on_16gb else 2048),
        train=TrainSection(
            method=method,
            # Adapters: the batch of 14 rows of the 16 GB document, kept on one card in steps of 2.
            global_batch_size=128 if method == "full" else 14,
            per_device_train_batch_size=4 if method == "full" else 2,
            num_train_epochs=3.0 if method == "full" else 1.0,
        ),
        # 13B in 16 bit does not fit the A10G either: 30 GiB by memory.py, 17.6 GiB in 8 bit.
        lora=LoraSection(load_8bit=method == "lora"),
    )
    return Recipe(config, _MACHINES[size, method], "Vicuna's hyperparameters, from the FastChat documents")


RECIPES: dict[str, Callable[[Method], Recipe]] = {"tiny": tiny, "7": vicuna_7b, "13": vicuna_13b}


def get_recipe(size: str, method: Method = "full") -> Recipe:
    """The recipe of that name; "7b" and "7B" mean 7.

    Raises:
        ConfigError: no such size, with the nearest one.
    """
    name = size.lower().removesuffix("b") if size.lower() != "tiny" else "tiny"
    if name not in RECIPES:
        # A number close to another number is another model, not a slip of the hand.
        close = None if size[:1].isdigit() else nearest(size, RECIPES)
        hint = (
            f"did you mean {close}?" if close else f"sizes are {', '.join(RECIPES)}; --model takes any other"
        )
        raise ConfigError(f"no recipe of size {size!r}", hint=hint)
    return RECIPES[name](method)
