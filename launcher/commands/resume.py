"""`vlaunch resume RUN`: go on with a run whose keeper, terminal or laptop is gone."""

from __future__ import annotations

import click

from launcher import options
from launcher.values import Duration


@options.verb(
    "resume", examples=("vlaunch resume tiny-1120-230501", "vlaunch resume tiny-1120-230501 --max-cost 400")
)
@options.run_argument
@options.store
@options.deadline
@options.max_cost
@options.detach
@click.pass_context
def command(
    ctx: click.Context,
    run: str,
    store: str,
    deadline: Duration | None,
    max_cost: float | None,
    detach: bool,
) -> None:
    """Start a run's next attempt from its newest durable checkpoint, with the settings it was created with.

    Refused while the run is looked after; nothing to do where it is finished.
    """
    from launcher.render import run_uri
    from launcher.runs.follow import refuse_if_live, start_and_follow
    from launcher.runs.runview import find_run
    from launcher.submit import change_limits
    from trainer.artifacts.store import open_store

    name = find_run(store, run)
    refuse_if_live(store, name)
    change_limits(open_store(run_uri(store, name)), max_cost, deadline)
    start_and_follow(ctx, store, name, detach=detach)
