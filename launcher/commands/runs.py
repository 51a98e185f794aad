"""`vlaunch runs`: every run of a store, from the store alone."""

from __future__ import annotations

import click

from launcher import options
from launcher.output import emit, say


@options.verb("runs", examples=("vlaunch runs", "vlaunch runs --json | jq '.runs[] | {run, state, usd}'"))
@options.store
@click.pass_context
def command(ctx: click.Context, store: str) -> None:
    """Every run in the store: state, step, attempts, dollars; the newest last."""
    from datetime import UTC, datetime

    from launcher.errors import CorruptObject
    from launcher.report.terminal import runs_text
    from launcher.runview import read_run, run_ids, view

    now = datetime.now(UTC)
    views, unreadable = [], []
    for run_id in run_ids(store):
        try:
            views.append(view(read_run(store, run_id), now))
        except CorruptObject as error:  # one damaged run must not hide the others
            unreadable.append({"run": run_id, "problem": error.message})
            say(f"{run_id} cannot be read: {error.message}")
    views.sort(key=lambda seen: (seen.created or now, seen.run_id))
    data = {"store": store, "runs": [seen.as_dict() for seen in views], "unreadable": unreadable}
    emit(ctx, data, lambda: runs_text(views, now) if views else f"no run in {store}\n")
