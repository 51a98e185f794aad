"""`vlaunch resume RUN`: go on with a run whose keeper, terminal or laptop is gone."""

from __future__ import annotations

import click

from launcher import options


@options.verb(
    "resume", examples=("vlaunch resume tiny-1120-230501", "vlaunch resume tiny-1120-230501 --detach")
)
@options.run_argument
@options.store
@options.detach
@click.pass_context
def command(ctx: click.Context, run: str, store: str, detach: bool) -> None:
    """Start a run's next attempt from its newest durable checkpoint, with the settings it was created with.

    Refused while the run is looked after; nothing to do where it is finished.
    """
    from launcher.follow import start_and_follow
    from launcher.runview import find_run

    start_and_follow(ctx, store, find_run(store, run), detach=detach)
