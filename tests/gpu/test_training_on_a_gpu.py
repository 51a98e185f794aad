"""What only a GPU can show. Not part of the default run: `python -m pytest tests/gpu -s` where one is at hand.

Prints one JSON line for each measurement: tokens/s, model FLOPs utilisation, peak memory against the estimate, what
the driver takes besides, the stall of a save. docs/benchmarks.md says which card they were taken on.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.boxes import run_box
from tests.trainer.live_memory import llama_config
from tests.trainer.runs import create_run, write_corpus
from trainer.artifacts.journal import read_journal
from trainer.artifacts.store import open_store
from trainer.attention import conversation_attention, packed_attention
from trainer.batching import Fullest, Peak, rehearse, settle_rows
from trainer.choices import Choices, choose
from trainer.config import TrainConfig, override
from trainer.fitting import Case
from trainer.fsdp import FullyShardedModel
from trainer.hardware import Hardware
from trainer.kernels import detect, equip, installed, let_segments_grow, prepare
from trainer.loop import summed_loss
from trainer.memory import Load, estimate
from trainer.model import skeleton
from trainer.packing import one_per_row
from trainer.parallel import joined
from trainer.shape import LLAMA_7B, Shape
from trainer.shortage import in_trials

pytestmark = pytest.mark.skipif(not torch.cuda.device_count(), reason="no GPU")

LENGTH = 2048
WARM, TIMED = 2, 5
BESIDE = ("CUDA context", "communication", "fragmentation")


def say(what: str, **figures: Any) -> None:
    print("\n" + json.dumps({"what": what, **figures}))


def on_the_card() -> tuple[Hardware, Choices]:
    """In a process that is thrown away: CUDA started here could not be used in the processes forked later."""

    def look(_: int) -> tuple[Hardware, Choices]:
        hardware = detect(1)
        return hardware, choose(hardware, TrainConfig(), installed())

    return in_trials(look, 1)[0]


def largest(hardware: Hardware, choices: Choices) -> Shape:
    """LLaMA-7B with as many of its layers as this card trains whole, one row at a time."""
    config = TrainConfig()
    for layers in range(LLAMA_7B.layers, 0, -1):
        shape = replace(LLAMA_7B, layers=layers)
        load = Load.of(config, choices, shape, 1, tokens=LENGTH, trained=LENGTH)
        if estimate(shape, load).bytes < 0.95 * hardware.memory_bytes:
            return shape
    raise AssertionError("not one layer fits")


def flops_per_token(shape: Shape) -> float:
    """Forward and backward, recomputation not counted: Chowdhery et al. 2022, appendix B."""
    weights = shape.parameters - shape.embedding
    return 6 * weights + 12 * shape.layers * shape.heads * shape.head_dim * LENGTH


def fullest(rows: int) -> Fullest:
    lengths = torch.full((rows,), LENGTH).numpy()
    return Fullest.of(lengths, lengths - 1, one_per_row(rows))


def build(shape: Shape, config: TrainConfig, choices: Choices, world: Any) -> FullyShardedModel:
    model = skeleton(llama_config(shape, config))
    if config.train.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    equip(model, choices)
    sharded = FullyShardedModel(model, config, world)
    sharded.fill(None)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02)
    return sharded


def total_in_use() -> int:
    """Of the card, by whomever."""
    free, total = torch.cuda.mem_get_info()
    return total - free


def trained(shape: Shape, rows: int, settings: dict[str, str], rendezvous: Path) -> dict[str, float]:
    """Some steps of one pass each, in this process. Seconds of a step, bytes."""
    let_segments_grow()
    config, _ = override(TrainConfig(), settings.items())
    hardware = detect(1)
    choices = choose(hardware, config, installed())
    prepare(choices)
    load = Load.of(config, choices, shape, 1, tokens=rows * LENGTH, trained=rows * LENGTH)
    expected = estimate(shape, load)
    with joined(0, 1, f"file://{rendezvous}", 4) as world:
        sharded = build(shape, config, choices, world)
        sharded.model.train()
        batch = fullest(rows).batch(rows).to(world.device)
        for step in range(WARM + TIMED):
            if step == WARM:
                torch.cuda.synchronize()
                began = time.monotonic()
            sharded.backward(summed_loss(sharded.model, batch) / LENGTH, last=True)
            sharded.step(1e-5)
        torch.cuda.synchronize()
        seconds = (time.monotonic() - began) / TIMED
        return {
            "step_s": seconds,
            "allocated": torch.cuda.max_memory_allocated(),
            "reserved": torch.cuda.max_memory_reserved(),
            "beside_tensors": total_in_use()
            - torch.cuda.memory_reserved(),  # of a card with no other program
            "estimated": expected.bytes,
            "estimated_tensors": sum(term.bytes for term in expected.terms if term.name not in BESIDE),
        }


def test_the_card_is_known_and_what_is_chosen_for_it_runs() -> None:
    hardware, choices = on_the_card()
    say("card", name=hardware.name, memory=hardware.memory_bytes, reasons=choices.reasons)
    assert hardware.kind == "cuda" and hardware.compute_capability


def test_packed_attention_computes_what_separate_calls_compute() -> None:
    def compare(_: int) -> list[float]:
        torch.manual_seed(0)
        bounds = (0, 700, 701, 1500, 2048)
        shapes = ((1, 32, 2048, 128), (1, 8, 2048, 128), (1, 8, 2048, 128))
        inputs = [
            torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for shape in shapes
        ]
        module = torch.nn.Module()
        one = packed_attention(module, *inputs, None, boundaries=bounds)[0]
        other = conversation_attention(module, *inputs, None, boundaries=bounds)[0]
        weights = torch.randn_like(one)
        pairs = [(one, other)]
        pairs += zip(
            torch.autograd.grad(one, inputs, weights),
            torch.autograd.grad(other, inputs, weights),
            strict=True,
        )
        return [float((a - b).abs().max() / b.abs().max()) for a, b in pairs]

    hardware, choices = on_the_card()
    if choices.attention != "varlen":
        pytest.skip(choices.reasons["attention"])
    differences = in_trials(compare, 1)[0]
    say("packed attention against separate calls", card=hardware.name, differences=differences)
    assert max(differences) < 0.02  # bfloat16 keeps 8 bits


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"train.attn_implementation": "sdpa"},
        {"train.torch_compile": "true"},
        {"train.gradient_checkpointing": "false"},
    ],
    ids=str,
)
def test_speed_and_memory_of_the_largest_llama_that_fits(settings: dict[str, str], tmp_path: Path) -> None:
    hardware, choices = on_the_card()
    shape = largest(hardware, choices)
    if "train.gradient_checkpointing" in settings:
        shape = replace(shape, layers=shape.layers // 2)
    found = in_trials(lambda _: trained(shape, 1, settings, tmp_path / "rendezvous"), 1)[0]
    tokens_s = LENGTH / found["step_s"]
    peak = (hardware.bf16_tflops or math.nan) * 1e12
    say(
        "training",
        card=hardware.name,
        settings=settings,
        weights=shape.parameters,
        tokens_per_s=round(tokens_s),
        mfu=round(tokens_s * flops_per_token(shape) / peak, 3),
        **{name: round(value, 4) for name, value in found.items()},
    )
    assert found["estimated_tensors"] == pytest.approx(found["allocated"], rel=0.1)
    assert found["allocated"] < found["estimated"]


def test_the_rows_of_a_forward_pass_are_found_without_running_out(tmp_path: Path) -> None:
    hardware, choices = on_the_card()
    shape = replace(LLAMA_7B, layers=8)
    config, _ = override(TrainConfig(), [("train.auto_batch", "true"), ("train.global_batch_size", "64")])

    def trial(wanted: TrainConfig, rank: int, number: int) -> Peak:
        let_segments_grow()
        prepare(choices)
        with joined(0, 1, f"file://{tmp_path}/rendezvous-{number}", 4) as world:
            sharded = build(shape, wanted, choices, world)
            rows = wanted.train.per_device_train_batch_size
            return rehearse(sharded, summed_loss, fullest(64).batch(rows).to(world.device), 1)

    began = time.monotonic()
    store = open_store(f"file://{tmp_path}/runs/one")
    settled = settle_rows(config, store, 1, 64, trial, lambda made, seen: Case(made, seen, shape, 1))
    rows = settled.train.per_device_train_batch_size
    say("auto_batch", card=hardware.name, rows=rows, seconds=round(time.monotonic() - began, 1))
    found = in_trials(lambda _: trained(shape, rows, {}, tmp_path / "again"), 1)[0]
    assert found["allocated"] < hardware.memory_bytes


def test_a_save_stalls_training_for_one_copy_to_the_host(tmp_path: Path) -> None:
    """A whole run of a billion weights, through the box program, with saves on the way."""
    shape = {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    }  # TinyLlama's
    run = f"file://{tmp_path}/runs/stall"
    create_run(
        run,
        write_corpus(tmp_path / "corpus.jsonl", count=400),
        model__shape=shape,
        model__vocab_size=2048,
        model__dropout=0.0,
        train__bf16=True,
        train__max_steps=12,
        checkpoint__save_steps=4,
    )
    done = run_box(run, tmp_path / "box")
    assert done.returncode == 0, done.stderr
    saves = [event.data for event in read_journal(open_store(run)) if event.kind == "checkpoint"]
    say("save", stalls_s=[save["stall_s"] for save in saves], bytes=saves[0]["bytes"], cpus=os.cpu_count())
    assert len(saves) >= 2
