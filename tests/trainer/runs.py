"""Small real runs for tests: a corpus of a few hundred short conversations and a LLaMA of some thousand weights."""

from __future__ import annotations

import json
import random
from pathlib import Path

from trainer.artifacts.layout import CONFIG
from trainer.artifacts.manifest import put_blob
from trainer.artifacts.store import open_store
from trainer.config import StoredFile, TrainConfig, override, parse_config

_SHAPE = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
_WORDS = (
    "the a model learns from every token that it sees and then it writes another one of them again".split()
)


def write_corpus(path: Path, count: int = 300, seed: int = 0) -> Path:
    """ShareGPT JSONL of `count` conversations of one to three rounds."""
    chance = random.Random(seed)

    def words(low: int, high: int) -> str:
        return " ".join(chance.choice(_WORDS) for _ in range(chance.randint(low, high)))

    lines = []
    for number in range(count):
        turns = []
        for _ in range(chance.randint(1, 3)):
            turns += [{"from": "human", "value": words(2, 8)}, {"from": "gpt", "value": words(3, 30)}]
        lines.append(json.dumps({"id": f"c{number}", "conversations": turns}))
    path.write_text("\n".join(lines) + "\n")
    return path


def create_run(run: str, corpus: Path, held_out: Path | None = None, **settings: object) -> TrainConfig:
    """Write the config of a run: save every second step, dropout on, no reply at the end."""
    store = open_store(run)

    def stored(path: Path) -> StoredFile:
        entry = put_blob(store, path)
        return StoredFile(name=entry.name, blob=entry.blob, size=entry.size)

    tree = {
        "model": {"shape": _SHAPE, "vocab_size": 384, "dropout": 0.1},
        "data": {
            "train": [stored(corpus).model_dump()],
            "eval": [stored(held_out).model_dump()] if held_out else [],
            "max_length": 96,
        },
        "train": {
            "max_steps": 60,
            "global_batch_size": 4,
            "per_device_train_batch_size": 1,
            "learning_rate": 3e-3,
            "bf16": False,
            "gradient_checkpointing": False,
            "eval_steps": 25,
            "logging_seconds": 0.05,
            "max_eval_samples": 8,
        },
        "checkpoint": {"save_strategy": "steps", "save_steps": 2},
        "parallel": {"processes": 1, "threads": 1},
        "export": {"max_new_tokens": 0},
    }
    given = [(key.replace("__", "."), json.dumps(value)) for key, value in settings.items()]
    config, _ = override(parse_config(tree), given)
    store.put_new(CONFIG, config.encode())
    return config
