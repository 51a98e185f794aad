"""`vlaunch metrics RUN`: the numbers of every optimiser step, each step once."""

from __future__ import annotations

from shutil import get_terminal_size

import click

from launcher import options
from launcher.output import say, session


@options.verb(
    "metrics",
    examples=(
        "vlaunch metrics tiny-0412                      # the last steps and the curve",
        "vlaunch metrics tiny-0412 --json | jq -c 'del(.attempt)' | diff - other-run.jsonl",
        "vlaunch metrics tiny-0412 --tensorboard runs/ --follow",
    ),
)
@options.run_argument
@options.store
@options.option("--last", type=click.IntRange(min=1), default=10, help="Steps in the table.")
@options.option(
    "--eval", "held_out", is_flag=True, show_default=False, help="Held-out losses instead of steps."
)
@options.option("--png", type=click.Path(dir_okay=False, writable=True), help="Write the loss curve.")
@options.option("--wandb", is_flag=True, show_default=False, help="Send W&B what it does not have yet.")
@options.option(
    "--wandb-offline",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Write what wandb sync sends later.",
)
@options.option(
    "--tensorboard", type=click.Path(file_okay=False), metavar="DIR", help="Write TensorBoard's event files."
)
@options.follow
@click.pass_context
def command(
    ctx: click.Context,
    run: str,
    store: str,
    last: int,
    held_out: bool,
    png: str | None,
    wandb: bool,
    wandb_offline: str | None,
    tensorboard: str | None,
    follow: bool,
) -> None:
    """Loss, gradient norm and learning rate of every optimiser step, in order, each step once.

    --json prints one JSON object per step, with the floats as decimals and, bit for bit, in hex. W&B and TensorBoard
    get the steps that are durable; --follow keeps them up to date until the run ends.
    """
    from launcher.report import tables, terminal
    from launcher.runs.runview import find_run, read_run

    name = find_run(store, run)
    if wandb or wandb_offline or tensorboard:
        from launcher.tracking.showing import show

        show(
            ctx,
            store,
            name,
            wandb=wandb,
            wandb_offline=wandb_offline,
            tensorboard=tensorboard,
            keep_on=follow,
        )
        return
    if follow:
        from launcher.errors import UsageError

        raise UsageError("--follow needs something to follow with", hint="--wandb or --tensorboard DIR")
    record = read_run(store, name)
    if png:
        from pathlib import Path

        from launcher.report.png import write_png

        write_png(record, Path(png))
        say(f"wrote {png}")
    if session().json:
        # One object per line and no version in it, so that two runs can be held against each other with diff.
        for line in tables.eval_lines(record.evals) if held_out else tables.step_lines(record.steps):
            click.echo(line)
    elif held_out:
        click.echo(terminal.eval_text(record.evals), nl=False)
    else:
        click.echo(terminal.metrics_text(record, last, get_terminal_size().columns), nl=False)
