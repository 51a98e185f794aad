"""The other sides of tests/benchmarks/training.py, each a process of its own; run by that script alone.

    python tests/benchmarks/training_rivals.py trainer|recipe|fastchat PLAN.json

trainer   transformers' Trainer as one would use it today: a batch is padded to its longest conversation
recipe    the same Trainer fed as FastChat feeds it: the whole corpus in memory, each row padded to max_length
fastchat  FastChat's own train.py, unchanged, in its own environment; only the order of its samples is given

Every side sees the batches of the plan in the plan's order, so their losses can be compared. What is written, to
the plan's `steps`: one JSON line per step with its end, its loss and its gradient norm.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

IGNORED = -100


class InOrder:
    """A sampler: every sample of the plan's batches, in its order."""

    def __init__(self, order: list[int]) -> None:
        self._order = order

    def __iter__(self) -> Iterator[int]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)


def conversations(folder: Path) -> list[tuple[Any, Any]]:
    """Ids and flags of every conversation, as the trainer's own corpus holds them."""
    ends = np.fromfile(folder / "ends.bin", dtype=np.int64)[::2]
    size = (folder / "tokens.bin").stat().st_size // int(ends[-1])
    tokens = np.fromfile(folder / "tokens.bin", dtype=f"u{size}").astype(np.int64)
    trained = np.fromfile(folder / "trained.bin", dtype=np.uint8).astype(bool)
    return list(zip(np.split(tokens, ends[:-1]), np.split(trained, ends[:-1]), strict=True))


def padded(pieces: list[tuple[Any, Any]], width: int) -> dict[str, Any]:
    """input_ids, labels and attention_mask (n, width), as FastChat's preprocess makes them."""
    import torch

    shape = (len(pieces), width)
    ids, labels = torch.zeros(shape, dtype=torch.int64), torch.full(shape, IGNORED)
    mask = torch.zeros(shape, dtype=torch.bool)
    for row, (tokens, trained) in enumerate(pieces):
        ids[row, : len(tokens)] = torch.from_numpy(tokens)
        labels[row, : len(tokens)] = torch.from_numpy(np.where(trained, tokens, IGNORED))
        mask[row, : len(tokens)] = True
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def observed(trainer_class: Any, plan: dict[str, Any]) -> Any:
    """That Trainer with the plan's order, telling the end and the numbers of every step."""
    from transformers import TrainerCallback

    out = open(plan["steps"], "w")
    order = [number for step in plan["batches"] for number in step]

    class Told(TrainerCallback):
        ended = 0.0

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ended = time.time()

        def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, float], **_: Any) -> None:
            if "loss" in logs:
                line = {"step": state.global_step, "time": self.ended, **logs}
                print(json.dumps(line), file=out, flush=True)

    class Ordered(trainer_class):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.add_callback(Told())

        def _get_train_sampler(self, *_: Any) -> InOrder:
            return InOrder(order)

    return Ordered


def settings(plan: dict[str, Any]) -> dict[str, Any]:
    """TrainingArguments that both versions of transformers know."""
    return {
        "output_dir": plan["scratch"],
        "per_device_train_batch_size": plan["per_device"],
        "gradient_accumulation_steps": plan["accumulation"],
        "max_steps": len(plan["batches"]),
        "learning_rate": plan["learning_rate"],
        "lr_scheduler_type": "cosine",
        "warmup_steps": plan["warmup_steps"],
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 42,
    }


def today(plan: dict[str, Any], whole_rows: bool) -> None:
    import torch
    from torch.utils.data import Dataset
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    torch.set_num_threads(plan["threads"])
    pieces = conversations(Path(plan["corpus"]))

    class Rows(Dataset[Any]):
        def __init__(self) -> None:
            self.everything = padded(pieces, plan["max_length"]) if whole_rows else {}

        def __len__(self) -> int:
            return len(pieces)

        def __getitem__(self, number: int) -> Any:
            if whole_rows:
                return {name: tensor[number] for name, tensor in self.everything.items()}
            return pieces[number]

    def longest(batch: list[tuple[Any, Any]]) -> dict[str, Any]:
        return padded(batch, max(len(tokens) for tokens, _ in batch))

    model = AutoModelForCausalLM.from_pretrained(plan["base"], dtype=torch.float32)
    model.config.use_cache = False
    trainer = observed(Trainer, plan)(
        model=model,
        args=TrainingArguments(**settings(plan), remove_unused_columns=False),
        train_dataset=Rows(),
        **({} if whole_rows else {"data_collator": longest}),
    )
    trainer.train()


def fastchat(plan: dict[str, Any]) -> None:
    """FastChat's environment has no torch; ours is put behind its own packages."""
    sys.path.append(plan["site_packages"])
    import fastchat.train.train as theirs
    import torch

    torch.set_num_threads(plan["threads"])
    theirs.Trainer = observed(theirs.Trainer, plan)
    theirs.trainer_save_model_safe = lambda trainer: None  # what it saves is not compared
    words = {
        **settings(plan),
        "model_name_or_path": plan["base"],
        "data_path": plan["data"],
        "model_max_length": plan["max_length"],
    }
    sys.argv = ["train.py", *(f"--{name}={value}" for name, value in words.items())]
    theirs.train()


def main() -> None:
    side, path = sys.argv[1:]
    plan = json.loads(Path(path).read_text())
    if side == "fastchat":
        fastchat(plan)
    else:
        today(plan, whole_rows=side == "recipe")


if __name__ == "__main__":
    main()
