"""A corpus from which even a small model learns within seconds what comes next, and the model that learnt it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.trainer.boxes import run_box
from tests.trainer.killing import Death, live
from tests.trainer.runs import create_run
from trainer.artifacts.manifest import fetch_verified
from trainer.artifacts.store import open_store
from trainer.artifacts.validity import valid_manifests
from trainer.checkpoint import restore
from trainer.config import TrainConfig
from trainer.fsdp import FullyShardedModel
from trainer.model import build, weights
from trainer.parallel import World
from trainer.prepare import fetch_all

STEPS = 80
NUMBERS = "one two three four five six seven eight nine ten".split()
PROMPTS = ("Count from three.", "Count from nine.", "What does </s> do?")


@dataclass(frozen=True)
class Finished:
    """A run of a few steps, enough for replies of more than one word."""

    config: TrainConfig
    run: Path
    box: Path
    said: str
    """What its last machine has printed."""

    @property
    def export(self) -> Path:
        return self.run / "export"

    @property
    def inputs(self) -> Path:
        """What the newest attempt has prepared."""
        return max(self.box.glob("*-e*")) / "inputs"


def write_counting(path: Path, *, down: bool = False) -> Path:
    numbers = NUMBERS[::-1] if down else NUMBERS
    samples = []
    for first in range(10):
        counted = " ".join((numbers * 3)[first : first + 12])
        samples.append({"instruction": f"Count from {numbers[first]}.", "output": counted})
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples * 5))
    return path


def finish(
    folder: Path,
    *,
    down: bool = False,
    by_program: bool = False,
    killed: tuple[Death, ...] = (),
    **settings: object,
) -> Finished:
    """A run that has counted up or down, after machines that ended as `killed` says."""
    corpus = write_counting(folder / "train.jsonl", down=down)
    run = folder / "runs/short"
    chosen = {
        "train__max_steps": STEPS,
        "train__learning_rate": 1e-2,
        "checkpoint__save_steps": 1000,
        "export__max_new_tokens": 5 if by_program else 0,
    }
    config = create_run(str(run), corpus, corpus, **(chosen | settings))
    for number, death in enumerate(killed):
        assert live(str(run), folder / f"box-{number}", death)
    if by_program:
        done = run_box(run, folder / "box")
        assert done.returncode == 0, done.stderr
        return Finished(config, run, folder / "box", done.stdout + done.stderr)
    assert not live(str(run), folder / "box", Death("never"))
    return Finished(config, run, folder / "box", (folder / "box.log").read_text())


def trained_model(done: Finished, world: World, folder: Path, base: Path | None = None) -> PreTrainedModel:
    """The trainer's own model, from the last checkpoint."""
    store = open_store(str(done.run))
    manifest = valid_manifests(store)[0]
    assert manifest.step == done.config.train.max_steps
    fetch_all(partial(fetch_verified, store), list(manifest.files), folder)
    tokens = PreTrainedTokenizerFast.from_pretrained(done.inputs / "tokeniser")
    model = build(done.config, tokens, base, world.device)
    sharded = FullyShardedModel(model, done.config, world)
    sharded.fill(weights(done.config, base, model) if base else None)
    restore(folder, manifest, sharded, world, seed=0)
    return model.eval()


def whole(model: nn.Module) -> dict[str, Tensor]:
    """Every weight by its name."""
    return {
        name: parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        for name, parameter in model.named_parameters()
    }


@torch.no_grad()
def greedy(model: nn.Module, tokens: list[int], count: int, end: int) -> list[int]:
    """The next tokens, each the likeliest, by the trainer's forward pass."""
    written: list[int] = []
    while len(written) < count and end not in written:
        row = torch.tensor([[*tokens, *written]])
        logits = model(input_ids=row, position_ids=torch.arange(row.shape[1])[None], use_cache=False).logits
        written.append(int(logits[0, -1].argmax()))
    return written
