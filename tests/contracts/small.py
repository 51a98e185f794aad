"""A small vlaunch of its own, built from the real classes: verbs that show, wait and fail.

`python -m tests.contracts.small ARGS` runs it as a program.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

import click

from launcher import errors, options
from launcher.cli import main
from launcher.command import Context, Group
from launcher.output import emit, say

small = Group("vlaunch", examples=("vlaunch show", "vlaunch part inner"), no_args_is_help=True)

FAILURES: dict[str, BaseException] = {
    "usage": errors.UsageError("no such thing", hint="try another"),
    "not-ready": errors.MissingExtra("data", needed_for="reading Parquet", missing=["pyarrow"]),
    "remote": errors.RemoteJobFailed("the job failed"),
    "limit": errors.LimitReached("the budget of $3 is used up"),
    "preempted": errors.Preempted("resume me"),
    "interrupted": errors.Interrupted("stopped by Ctrl-C"),
    "store": errors.StoreError("the store is read-only"),
    "control-c": KeyboardInterrupt(),
    "bug": KeyError("somewhere"),
    "file": FileNotFoundError(2, "No such file or directory", "/nowhere/x.json"),
    "pipe": BrokenPipeError(32, "Broken pipe"),
}


def report(ctx: click.Context, values: dict[str, Any]) -> None:
    """The values of a verb's options and where they came from."""
    assert isinstance(ctx, Context)
    sources = {
        param.setting: param.source(ctx, ctx.get_parameter_source(str(param.name)))
        for param in ctx.command.params
        if isinstance(param, options.Option)
    }
    shown = {name: list(map(str, v)) if isinstance(v, tuple) else v for name, v in values.items()}
    emit(ctx, {"values": shown, "sources": sources}, "shown")


@small.command("show", examples=("vlaunch show", "vlaunch show --deadline 1h"))
@options.store
@options.infra
@options.set_fields
@options.deadline
@options.spot
@options.option("--data", multiple=True)
@click.pass_context
def show(ctx: click.Context, **values: Any) -> None:
    """Shows its options."""
    say("showing")
    report(ctx, values)


@small.command("other", examples=("vlaunch other", "vlaunch other --only-here 1"))
@options.option("--only-here", type=int)
@click.pass_context
def other(ctx: click.Context, **values: Any) -> None:
    """Has an option of its own."""
    report(ctx, values)


@small.group("data", examples=("vlaunch data stats", "vlaunch data stats --top 3"))
def data() -> None:
    """A verb with parts, named as an option of another verb."""


@data.command("stats", examples=("vlaunch data stats", "vlaunch data stats --top 3"))
@options.option("--top", type=int, default=10)
@click.pass_context
def stats(ctx: click.Context, **values: Any) -> None:
    """A part."""
    report(ctx, values)


@small.command("fail", examples=("vlaunch fail bug", "vlaunch fail usage"))
@click.argument("how", type=click.Choice(list(FAILURES)))
def fail(how: str) -> None:
    """Fails."""
    raise FAILURES[how]


@small.command("wait", examples=("vlaunch wait", "vlaunch wait --json"))
def wait() -> None:
    """Says that it waits, then waits for a signal."""
    click.echo("waiting")
    signal.pause()


@small.command("flood", examples=("vlaunch flood | head -1", "vlaunch flood"))
def flood() -> None:
    """Prints more than a pipe holds."""
    for _ in range(1000):
        click.echo("x" * 1000)


if __name__ == "__main__":
    sys.exit(main(verbs=small))
