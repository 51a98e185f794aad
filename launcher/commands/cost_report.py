"""`vlaunch cost-report [RUN...]`: what runs cost, from their journals."""

from __future__ import annotations

import click

from launcher import options
from launcher.output import emit, say, write_whole


@options.verb(
    "cost-report",
    examples=(
        "vlaunch cost-report                      # every run in the store",
        "vlaunch cost-report tiny-0412 --html bill.html",
    ),
)
@click.argument("runs", metavar="[RUN...]", nargs=-1)
@options.store
@options.output_html
@options.option("--csv", type=click.Path(dir_okay=False, writable=True), help="Write one line per attempt.")
@click.pass_context
def command(ctx: click.Context, runs: tuple[str, ...], store: str, html: str | None, csv: str | None) -> None:
    """What runs cost: useful, restart, lost and idle dollars, and what on-demand would have cost.

    Without RUN: every run in the store, one row each.
    """
    from datetime import UTC, datetime
    from pathlib import Path

    from launcher.report import html as html_report
    from launcher.report import tables, terminal
    from launcher.runs.costs import combine
    from launcher.runs.runview import find_run, read_run, run_ids

    names = list(dict.fromkeys(find_run(store, run) for run in runs)) or run_ids(store) or [find_run(store)]
    now = datetime.now(UTC)
    records = [read_run(store, name) for name in names]
    reports = [record.costs(now) for record in records]
    if html:
        write_whole(Path(html), html_report.page(records, now).encode())
        say(f"wrote {html}")
    if csv:
        write_whole(Path(csv), tables.as_csv(reports).encode())
        say(f"wrote {csv}")
    total = reports[0] if len(reports) == 1 else combine(reports, "all runs")
    text = terminal.overview_text if not runs and len(reports) > 1 else terminal.cost_text
    data = {"runs": [tables.as_dict(report) for report in reports], "total": tables.total(total)}
    emit(ctx, data, lambda: text(reports))
