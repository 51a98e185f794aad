"""`vlaunch logs RUN`: what the machines of a run printed, or the processes of a service."""

from __future__ import annotations

import click

from launcher import options


@options.verb("logs", examples=("vlaunch logs tiny-1120-230501", "vlaunch logs tiny-1120-230501 --follow"))
@options.run_argument
@options.store
@options.follow
def command(run: str, store: str, follow: bool) -> None:
    """The output of all attempts, in order; of ended ones also after this machine has forgotten them.

    RUN may also be a service of this computer.
    """
    from launcher import services
    from launcher.launch import cloud_of_run
    from launcher.render import run_uri
    from launcher.runview import find_run

    if service := services.find(run):
        lines = services.logs(service, follow=follow)
    else:
        name = find_run(store, run)
        lines = cloud_of_run(store, name).logs(run_uri(store, name), follow=follow)
    for line in lines:
        click.echo(line)
