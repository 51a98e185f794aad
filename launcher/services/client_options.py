"""The options of `chat` and `message`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from launcher.options import option

F = TypeVar("F", bound=Callable[..., Any])

_ALL = (
    option("--url", help="Of any API in OpenAI's shape.  [default: the newest service here, or port 8000]"),
    option("--model", help="Model or adapter.  [default: the first one there]"),
    option("--api-key-file", type=click.Path(dir_okay=False), help="The key; else VLAUNCH_API_KEY."),
    option("--system", default="", show_default=False, help="Instruction before the conversation."),
    option("--max-tokens", type=click.IntRange(min=1), help="Most tokens of an answer."),
    option("--temperature", type=click.FloatRange(0, 2), help="0 is greedy."),
    option("--timeout", type=click.FloatRange(min=0.1), default=120.0, help="Most seconds of silence."),
)  # fmt: skip


def client_options(function: F) -> F:
    for decorate in reversed(_ALL):
        function = decorate(function)
    return function
