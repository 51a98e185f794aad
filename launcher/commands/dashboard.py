"""`vlaunch dashboard`: every run of a store on a page of this computer; with --wandb, the workspace at W&B."""

from __future__ import annotations

import click

from launcher import options
from launcher.output import emit, say


@options.verb(
    "dashboard",
    examples=("vlaunch dashboard", "vlaunch dashboard --port 8765", "vlaunch dashboard --wandb"),
)
@options.store
@options.option(
    "--port", type=click.IntRange(0, 65535), default=0, show_default="a free one", help="Port to listen on."
)
@options.option(
    "--wandb", is_flag=True, show_default=False, help="Make the project's workspace at W&B instead."
)
@click.pass_context
def command(ctx: click.Context, store: str, port: int, wandb: bool) -> None:
    """Loss, throughput, attempts and dollars of every run, on a page that only this computer sees.

    It reads the store when somebody looks, and ends with Ctrl-C. With --wandb nothing is served: the workspace of the
    project is made at W&B, or where there is no key, printed as JSON.
    """
    if wandb:
        _workspace(ctx)
        return
    from launcher.dashboard.server import Dashboard
    from launcher.dashboard.shelf import Shelf

    shelf = Shelf(store)
    shelf.look()
    with Dashboard(shelf, port) as server:
        emit(ctx, {"url": server.url, "store": store}, f"{server.url}\n")
        say("Ctrl-C ends it")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("stopped")


def _workspace(ctx: click.Context) -> None:
    import os

    from launcher.errors import NotReady
    from launcher.tracking import workspace
    from launcher.tracking.wandb_run import refuse_without_key

    try:
        refuse_without_key()
    except NotReady as error:
        say(f"{error.message}: this is the workspace that would be made")
        made = workspace.spec(os.environ.get("WANDB_ENTITY", "you"))
        emit(ctx, {"url": None, "workspace": made}, lambda: _indented(made))
        return
    say("asking W&B; where it does not answer, Ctrl-C ends this")
    url = workspace.create()
    emit(ctx, {"url": url}, f"{url}\n")


def _indented(made: object) -> str:
    import json

    return json.dumps(made, indent=1) + "\n"
