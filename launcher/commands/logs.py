"""`vlaunch logs RUN`: what the machines of a run printed."""

from __future__ import annotations

import click

from launcher import options


@options.verb("logs", examples=("vlaunch logs tiny-1120-230501", "vlaunch logs tiny-1120-230501 --follow"))
@options.run_argument
@options.store
@options.follow
def command(run: str, store: str, follow: bool) -> None:
    """The output of all attempts, in order; of ended ones also after this machine has forgotten them."""
    from launcher.clouds.local import LocalCloud
    from launcher.render import run_uri
    from launcher.runview import find_run

    for line in LocalCloud().logs(run_uri(store, find_run(store, run)), follow=follow):
        click.echo(line)
