"""The options of `serve`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from launcher import options
from launcher.options import option

F = TypeVar("F", bound=Callable[..., Any])

_ALL = (
    option("--name", "-n", help="Name of the service.  [default: made from the model's]"),
    option("--model-name", help="What clients call the model.  [default: the run, the folder or the id]"),
    options.infra,
    options.spot,
    options.gpus,
    options.catalog,
    option("--workers", type=click.IntRange(min=1, max=64), default=1, help="Model servers, each with the model."),
    option("--engine", default="hf", help="hf, vllm, or MODULE:FUNCTION."),
    option("--adapter", multiple=True, metavar="NAME=PATH", help="LoRA adapters, chosen by model name; repeatable."),
    option("--load-8bit", is_flag=True, help="The weights in 8 bit."),
    option("--load-4bit", is_flag=True, help="The weights in 4 bit."),
    option("--num-gpus", type=click.IntRange(min=1), default=1, help="GPUs of one worker."),
    option("--device", type=click.Choice(("auto", "cpu", "cuda")), default="auto", help="What it computes on."),
    option("--dtype", type=click.Choice(("auto", "bf16", "fp16", "fp32")), default="auto", help="What it computes in."),
    option("--template", help="Chat template.  [default: the one that the model was trained with]"),
    option("--max-running", type=click.IntRange(min=1), help="Requests at a time.  [default: the engine decides]"),
    option("--host", default="127.0.0.1", help="Address to listen on; any but loopback gets a key."),
    option("--port", type=click.IntRange(0, 65535), help="Of page and API.  [default: 8000, or a free one]"),
    option("--controller-port", type=click.IntRange(0, 65535), help="[default: 21001, or a free one]"),
    option("--controller-ip", metavar="IP[:PORT]", help="Start workers only, for the service there."),
    option("--secret-file", type=click.Path(dir_okay=False), help="The secret of that service."),
    option("--api-key-file", type=click.Path(dir_okay=False), help="Keys, one per line, with scopes."),
    option("--allow-origin", multiple=True, metavar="ORIGIN", help="Pages that may call the API; repeatable."),
    option("--policy", type=click.Choice(("shortest-queue", "lottery")), default="shortest-queue", help="Whose turn."),
)  # fmt: skip


def serve_options(function: F) -> F:
    for decorate in reversed(_ALL):
        function = decorate(function)
    return function
