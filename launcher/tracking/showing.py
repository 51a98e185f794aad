"""What `vlaunch metrics RUN` does with --wandb, --wandb-offline and --tensorboard: make views, fill and close them."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import click

from launcher.errors import UsageError
from launcher.output import emit, say
from launcher.render import run_uri
from launcher.tracking.following import Followed, View, bring_up_to_date, curve_id, follow


def show(
    ctx: click.Context,
    store: str,
    name: str,
    *,
    wandb: bool,
    wandb_offline: str | None,
    tensorboard: str | None,
    keep_on: bool,
) -> None:
    """Prints where each view is and the last step that it has."""
    if wandb and wandb_offline:
        raise UsageError(
            "--wandb and --wandb-offline exclude each other", hint="give --wandb where there is a key"
        )
    run = Followed(run_uri(store, name))
    run.look()
    views: dict[str, tuple[str, View]] = {}
    if wandb:
        views |= _at_wandb(run)
    if wandb_offline:
        views["wandb_offline"] = _in_wandb_files(run, Path(wandb_offline))
    if tensorboard:
        views["tensorboard"] = _in_event_files(run, Path(tensorboard))
    for where, _ in views.values():
        say(f"writing to {where}")
    opened = [view for _, view in views.values()]
    if keep_on:
        follow(opened, run, _pause)
    else:
        bring_up_to_date(opened, run)
    for view in opened:
        view.close(run.over)
    answer: dict[str, Any] = {
        key: {"where": where, "newest": view.newest} for key, (where, view) in views.items()
    }
    emit(ctx, {"run": name, **answer}, "".join(_line(where, view) for where, view in views.values()))


def _at_wandb(run: Followed) -> dict[str, tuple[str, View]]:
    """Nothing where the run's own machine does it: two writers would both send what is missing."""
    from launcher.tracking.wandb_run import WandbRun

    newest = max((event.attempt for event in run.record.events), default=0)
    kept = [e for e in run.record.events if e.kind == "tracked" and e.attempt == newest]
    if kept and not run.over:
        say(f"attempt {newest} keeps it up to date itself: {kept[-1].data['url']}")
        return {}
    view = WandbRun(run.record)
    return {"wandb": (view.url, view)}


def _in_wandb_files(run: Followed, folder: Path) -> tuple[str, View]:
    """The whole curve anew: a folder cannot say what a server has, and the server takes the same again as the same."""
    from launcher.tracking.wandb_run import WandbRun

    pattern = f"offline-run-*-{curve_id(run.run_id, run.record.events)}"
    for old in (folder / "wandb").glob(pattern):
        shutil.rmtree(old)
    view = WandbRun(run.record, offline=folder)
    return str(folder / "wandb"), view


def _in_event_files(run: Followed, folder: Path) -> tuple[str, View]:
    from launcher.tracking.tensorboard_files import EventFiles

    view = EventFiles(run.record, folder)
    return str(view.folder), view


def _line(where: str, view: View) -> str:
    if view.newest < 0:
        return f"{where} has no step yet: none is durable\n"
    return f"{where} has every step up to {view.newest}\n"


def _pause(seconds: float) -> bool:
    time.sleep(seconds)
    return False
