"""`vlaunch resume RUN`: go on with a run whose keeper, terminal or laptop is gone."""

from __future__ import annotations

import click

from launcher import options
from launcher.output import emit, say


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
    from launcher import submit
    from launcher.follow import conclude, follow
    from launcher.render import run_uri
    from launcher.runview import State, find_run, read_run, state_of

    name = find_run(store, run)
    if state_of(read_run(store, name).events) is State.FINISHED:
        say(f"{name} is finished already")
        conclude(ctx, store, name)
        return
    uri = run_uri(store, name)
    submit.start(uri)
    if detach:
        emit(ctx, {"run": name, "uri": uri}, f"vlaunch logs -f {name} follows it")
        return
    follow(store, name)
    conclude(ctx, store, name)
