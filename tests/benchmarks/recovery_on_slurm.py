"""Seconds from a lost machine to the next new step on real SkyPilot, and where it goes, by recovery strategy.

    python tests/benchmarks/recovery_on_slurm.py

Brings up the rig of tests/e2e (root, Debian); elsewhere says what is missing. The same task three times, with the
strategy changed: vlaunch's, and SkyPilot's two. Each machine is cancelled after its first durable checkpoint.
Waiting times depend on the polls of the rig (5 s; SkyPilot's own are 15 s) and on the load of the machine.
"""

from __future__ import annotations

import sys
from datetime import datetime
from functools import partial
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from launcher.render import job_name, run_uri  # noqa: E402
from tests.e2e.slurm.rig import Rig, rig_up, until, why_not  # noqa: E402
from tests.e2e.test_recovery import BOTH, run_options  # noqa: E402

LOSSES = 2


def main() -> None:
    if reason := why_not():
        print(f"skipped: {reason}")
        return
    print("strategy            loss  from        to          seconds  found  machine  set-up  start")
    with rig_up(Path("/tmp/vlaunch-rig")) as rig:
        for strategy in ("VLAUNCH", "EAGER_NEXT_REGION", "FAILOVER"):
            measure(rig, strategy)


def measure(rig: Rig, strategy: str) -> None:
    name = strategy.lower().replace("_", "-")
    launch(rig, name, strategy)
    for loss in range(1, LOSSES + 1):
        until(partial(durable, rig, name, loss), f"attempt {loss} of {name} is durable")
        left = rig.take(name)
        lost = datetime.now().astimezone()
        until(partial(trained_since, rig, name, lost), f"{name} trains again", 600)
        (machine,) = rig.machines(name)
        started, trained = times(rig, name, "started")[-1], times(rig, name, "training")[-1]
        asked = next((at for at in times(rig, name, "requested") if at > lost), None)
        running = next((at for at in times(rig, name, "running") if at > lost), None)
        parts = [
            seconds(lost, asked),
            seconds(asked, running),
            seconds(running, started),
            seconds(started, trained),
        ]
        print(
            f"{strategy:18}  {loss:4}  {left:10}  {machine[0]:10}  {seconds(lost, trained):>7}  "
            + "  ".join(f"{part:>6}" for part in parts),
            flush=True,
        )
    rig.sky("jobs", "cancel", "-y", "-n", job_name(run_uri(rig.store, name)))


def launch(rig: Rig, name: str, strategy: str) -> None:
    """The run's own task with another strategy, by SkyPilot's command line."""
    asked = ["train", *run_options(rig, name, 100_000), *BOTH]
    rig.vlaunch(*asked, "--create-only")
    task = yaml.safe_load(rig.vlaunch(*asked, "--dry-run").stdout)
    task["resources"]["job_recovery"]["strategy"] = strategy
    path = rig.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(task))
    secrets = [word for key in task["secrets"] for word in ("--secret", key)]
    rig.sky("jobs", "launch", "-y", "-d", *secrets, path)


def durable(rig: Rig, name: str, attempts: int) -> bool:
    """Whether so many attempts have trained, and the last one has something durable."""
    training, saved = times(rig, name, "training"), times(rig, name, "checkpoint")
    return len(training) >= attempts and bool(saved) and saved[-1] > training[-1]


def trained_since(rig: Rig, name: str, moment: datetime) -> bool:
    return any(at > moment for at in times(rig, name, "training"))


def times(rig: Rig, name: str, kind: str) -> list[datetime]:
    return [event.time for event in rig.journal(name) if event.kind == kind]


def seconds(since: datetime | None, until_: datetime | None) -> str:
    return "-" if since is None or until_ is None else f"{(until_ - since).total_seconds():.0f}"


if __name__ == "__main__":
    main()
