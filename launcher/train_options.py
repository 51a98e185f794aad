"""The options of `train` and `plan`, and the request they make: one request, so the two cannot disagree.

Imported for --help, so nothing of weight here: launcher/request.py makes the request from what was asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from launcher import options
from launcher.values import Duration, Gpus, Infra, KeyValue, PreemptEvery

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    options.option("--size", help="Recipe: tiny, 7 or 13.  [default: tiny]"),
    options.option("--model", help="Base model instead of a recipe's: a folder or a Hugging Face id."),
    options.option(
        "--method", type=click.Choice(["full", "lora", "qlora"]), default="full", help="What is trained."
    ),
    options.option("--load-8bit", is_flag=True, show_default=False, help="Keep the frozen base of lora in 8 bit."),
    options.option("--max-length", type=click.IntRange(min=16), help="Tokens of one training row."),
    options.option(
        "--strategy",
        type=click.Choice(["fsdp", "deepspeed"]),
        help="How the model is sharded.  [default: fsdp, or deepspeed with --deepspeed]",
    ),
    options.option(
        "--deepspeed", type=click.Path(), metavar="FILE", help="A DeepSpeed JSON configuration, as FastChat has it."
    ),
    options.option(
        "--auto-batch", is_flag=True, show_default=False, help="Find the most rows that a card takes at once."
    ),
    options.option(
        "--data", type=click.Path(), multiple=True, help="Corpus files; repeatable.  [default for tiny: an example]"
    ),
    options.option("--eval-data", type=click.Path(), multiple=True, help="Held-out files; repeatable."),
    options.spot,
    options.infra,
    options.gpus,
    options.num_nodes,
    options.store,
    options.name,
    options.option("--max-steps", type=click.IntRange(min=1), help="Optimiser steps, instead of epochs."),
    options.option("--epochs", type=click.FloatRange(min=0, min_open=True), help="Passes over the corpus."),
    options.deadline,
    options.max_cost,
    options.catalog,
    options.set_fields,
    options.option(
        "--preempt-every", type=options.PREEMPT_EVERY, help="Local market: take each machine after this: 40s,5s."
    ),
    options.option(
        "--spot-trace", type=click.Path(), multiple=True, help="Local market: replay a recorded zone; repeatable."
    ),
    options.option(
        "--time-scale", type=click.FloatRange(min=0, min_open=True), default=60.0, help="Trace seconds per second."
    ),
    options.option(
        "--notice", type=options.DURATION, default=lambda: Duration(5.0), show_default="5s",
        help="Local market: warning before a machine goes; 0 for none.",
    ),
    click.argument("line", nargs=-1, type=click.UNPROCESSED, metavar="[-- TORCHRUN OR DEEPSPEED LINE]"),
)  # fmt: skip


def train_options(function: F) -> F:
    """Decorates a verb with all options of a training request."""
    for decorate in reversed(_OPTIONS):
        function = decorate(function)
    return function


@dataclass(frozen=True)
class Asked:
    """The parsed command line of `train` or `plan`; fields are the options' names."""

    size: str | None
    model: str | None
    method: str
    load_8bit: bool
    max_length: int | None
    strategy: str | None
    deepspeed: str | None
    auto_batch: bool
    data: tuple[str, ...]
    eval_data: tuple[str, ...]
    spot: bool
    infra: tuple[Infra, ...]
    gpus: Gpus | None
    num_nodes: int
    store: str
    name: str | None
    max_steps: int | None
    epochs: float | None
    deadline: Duration | None
    max_cost: float | None
    catalog: str | None
    set_fields: tuple[KeyValue, ...]
    preempt_every: PreemptEvery | None
    spot_trace: tuple[str, ...]
    time_scale: float
    notice: Duration
    line: tuple[str, ...] = ()
    """The words after `--`: another program's line, which launcher/foreign/takeover.py takes over."""
