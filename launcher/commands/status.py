"""`vlaunch status [RUN]`: where one run is, from the store alone; or one service, from this computer."""

from __future__ import annotations

import click

from launcher import options
from launcher.output import emit


@options.verb(
    "status", examples=("vlaunch status                # the newest run", "vlaunch status tiny-0412 --json")
)
@options.optional_run_argument
@options.store
@click.pass_context
def command(ctx: click.Context, run: str | None, store: str) -> None:
    """Where a run is: state, step, loss, what is durable, attempts, dollars.

    RUN is a name or its unique beginning; without it, the newest run. The name of a service of yours
    shows the service: state, address, workers.
    """
    from datetime import UTC, datetime

    from launcher.report.service import service_text
    from launcher.report.tables import as_dict
    from launcher.report.terminal import status_text
    from launcher.runs.runview import find_run, read_run, view
    from launcher.services import anywhere

    if service := anywhere.find(run):
        shown = anywhere.view(service)
        emit(ctx, shown.as_dict(), lambda: service_text(shown))
        return
    now = datetime.now(UTC)
    record = read_run(store, find_run(store, run))
    seen, bill = view(record, now), record.costs(now)
    emit(ctx, {**seen.as_dict(), "cost": as_dict(bill)}, lambda: status_text(seen, bill, now))
