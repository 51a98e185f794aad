"""`vlaunch runs`: every run of a store, from the store alone; and what of them may go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from launcher import options
from launcher.errors import UsageError
from launcher.output import confirm, emit, say
from launcher.values import Duration

if TYPE_CHECKING:
    from launcher.runs.prune import Pruning, Target


@options.verb_group(
    "runs",
    examples=(
        "vlaunch runs",
        "vlaunch runs --json | jq '.runs[] | {run, state, usd}'",
        "vlaunch runs prune --dry-run     # what of their checkpoints is of no more use",
    ),
    invoke_without_command=True,
)
@options.store
@click.pass_context
def command(ctx: click.Context, store: str) -> None:
    """Every run in the store: state, step, attempts, dollars; the newest last."""
    if ctx.invoked_subcommand is not None:
        if ctx.get_parameter_source("store") is ParameterSource.COMMANDLINE:
            raise UsageError(f"--store belongs behind {ctx.invoked_subcommand}")
        return
    from datetime import UTC, datetime

    from launcher.errors import CorruptObject
    from launcher.report.terminal import runs_text
    from launcher.runs.runview import read_run, run_ids, view

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


@options.verb(
    "prune",
    examples=(
        "vlaunch runs prune --dry-run                 # what would go, of every run that is over",
        "vlaunch runs prune tiny-0412 --keep-last 0   # a finished run needs no checkpoint any more",
    ),
)
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@options.option(
    "--keep-last", type=click.IntRange(min=0), show_default="as the run is configured",
    help="Newest checkpoints to keep; 0 keeps none of a finished run.",
)  # fmt: skip
@options.option(
    "--keep-every", type=click.IntRange(min=0), show_default="as the run is configured",
    help="Keep also those whose step is a multiple; 0 keeps none.",
)  # fmt: skip
@options.option(
    "--grace", type=options.DURATION, default="1h",
    help="Corpus files that nothing names, and unfinished uploads, stay for so long.",
)  # fmt: skip
@options.dry_run
@options.yes
@options.store
@click.pass_context
def prune(
    ctx: click.Context,
    runs: tuple[str, ...],
    keep_last: int | None,
    keep_every: int | None,
    grace: Duration,
    dry_run: bool,
    yes: bool,
    store: str,
) -> None:
    """Delete old checkpoints and files that nothing names, of some runs or of all that are not running.

    Says what would go and asks. Models, metrics, journals and logs stay. A run that is alive is refused.
    """
    from launcher.report.terminal import prune_text

    targets, skipped = _targets(store, runs, keep_last, keep_every, grace)
    found = [target.survey() for target in targets]
    files, size = sum(each.files for each in found), sum(each.bytes for each in found)
    if files and not dry_run:
        say(prune_text(found))
        confirm(f"Delete {files:,} files with {size / 1e6:,.1f} MB?", yes=yes)
    if not dry_run:
        found = [target.prune() for target in targets]
    emit(
        ctx, _answer(store, found, skipped, pruned=not dry_run), lambda: prune_text(found, pruned=not dry_run)
    )


def _targets(
    store: str, runs: tuple[str, ...], keep_last: int | None, keep_every: int | None, grace_s: float
) -> tuple[list[Target], list[dict[str, str]]]:
    """The runs that may be pruned, and those that may not. One that is named and may not is an error."""
    from launcher.errors import VlaunchError
    from launcher.runs.prune import target
    from launcher.runs.runview import find_run, run_ids

    targets, skipped = [], []
    for name in [find_run(store, run) for run in runs] or run_ids(store):
        try:
            targets.append(target(store, name, keep_last, keep_every, grace_s))
        except VlaunchError as error:
            if runs:
                raise
            skipped.append({"run": name, "problem": error.message})
            say(f"{name} is left alone: {error.message}")
    return targets, skipped


def _answer(
    store: str, found: list[Pruning], skipped: list[dict[str, str]], *, pruned: bool
) -> dict[str, object]:
    rows = [
        {
            "run": each.run_id,
            "kept": list(each.kept_steps),
            "deleted": list(each.steps),
            "files": each.files,
            "bytes": each.bytes,
            "unfinished": each.traces if pruned else None,
        }
        for each in found
    ]
    total = {"files": sum(each.files for each in found), "bytes": sum(each.bytes for each in found)}
    return {"store": store, "pruned": pruned, "runs": rows, "skipped": skipped, **total}


command.add_command(prune)
