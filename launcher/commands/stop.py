"""`vlaunch stop RUN`: end a run with its work saved, or a service with its answers given."""

from __future__ import annotations

import click

from launcher import options
from launcher.output import emit


@options.verb("stop", examples=("vlaunch stop tiny-1120-230501", "vlaunch stop tiny-1120-230501 --json"))
@options.run_argument
@options.store
@click.pass_context
def command(ctx: click.Context, run: str, store: str) -> None:
    """Ask a run to save and end; returns when its machine is gone. `vlaunch resume` goes on later.

    RUN may also be a service of this computer: it finishes the answers that it has begun, and ends.
    """
    from datetime import UTC, datetime

    from launcher import services
    from launcher.follow import wait_until_left
    from launcher.launch import cloud_of_run
    from launcher.render import run_uri
    from launcher.runview import find_run, read_run, view

    if service := services.find(run):
        was_running = services.stop(service)
        shown = services.view(service)
        emit(ctx, {**shown.as_dict(), "was_running": was_running}, f"{service} is {shown.state}")
        return
    name = find_run(store, run)
    cloud = cloud_of_run(store, name)
    asked = cloud.stop(run_uri(store, name))
    if asked:
        wait_until_left(cloud, run_uri(store, name))
    seen = view(read_run(store, name), datetime.now(UTC))
    durable = f"durable at step {seen.durable_step}" if seen.durable_step else "nothing durable yet"
    text = f"{name} is {seen.state.value}, {durable}"
    if not asked:
        text = f"{name} is {seen.state.value}; nothing on this computer looks after it"
    emit(ctx, {**seen.as_dict(), "was_running": asked}, text)
