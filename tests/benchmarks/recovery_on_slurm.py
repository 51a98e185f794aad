"""Seconds from a lost machine to the next new step on real SkyPilot, by part, and where it goes, by recovery strategy.

    python tests/benchmarks/recovery_on_slurm.py [--losses 2]

Brings up the rig of tests/e2e (root, Debian); elsewhere says what is missing. The same task three times, with the
strategy changed: vlaunch's, and SkyPilot's two. Each machine is cancelled after its first durable checkpoint.
Waiting times depend on the polls of the rig (5 s; SkyPilot's own are 15 s) and on the load of the machine.

The parts are measured in the same way for all three:

    machine   from the cancel to the next allocation, as Slurm shows it: the loss is seen, a place is chosen
    set-up    to the start of our program there: SkyPilot's runtime, files, `setup`
    import    Python, torch, transformers
    restore   the claim, the corpus and the checkpoint from the store, ranks, the first new step
"""

from __future__ import annotations

import argparse
import os
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from launcher.render import job_name, run_uri  # noqa: E402
from tests.e2e.slurm.rig import Rig, rig_up, until, why_not  # noqa: E402
from tests.e2e.test_recovery import BOTH, run_options  # noqa: E402
from trainer.artifacts.journal import RunEvent  # noqa: E402

PARTS = ("machine", "set-up", "import", "restore")
# Of a box's own account of its start, in its `training` event: before it does anything of its own.
IMPORT = ("start", "import")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--losses", type=int, default=2, help="machines taken away, for each strategy")
    losses = parser.parse_args().losses
    if reason := why_not():
        print(f"skipped: {reason}")
        return
    print(f"{'strategy':18}  loss  {'from':8}  {'to':8}  {'all':>6}  " + "  ".join(f"{p:>7}" for p in PARTS))
    with rig_up(Path("/tmp/vlaunch-rig")) as rig:
        for strategy in ("VLAUNCH", "EAGER_NEXT_REGION", "FAILOVER"):
            measure(rig, strategy, losses)
    print(f"load of the last five minutes: {os.getloadavg()[1]:.1f}")


def measure(rig: Rig, strategy: str, losses: int) -> None:
    name = strategy.lower().replace("_", "-")
    launch(rig, name, strategy)
    for loss in range(1, losses + 1):
        until(partial(durable, rig, name, loss), f"attempt {loss} of {name} is durable", 600)
        known = {number for _, _, number in rig.machines(name)}
        left, lost = rig.take(name), datetime.now(UTC)
        region = until(partial(new_machine, rig, name, left, known), f"{name} has a machine again", 600)
        found = datetime.now(UTC)
        trained = until(partial(trained_since, rig, name, lost), f"{name} trains again", 600)
        box = trained.data["seconds"]
        began = trained.time - timedelta(seconds=sum(box.values()))
        imported = sum(box[part] for part in IMPORT)
        parts = [
            (found - lost).total_seconds(),
            (began - found).total_seconds(),
            imported,
            sum(box.values()) - imported,
        ]
        told = "  ".join(f"{part:7.1f}" for part in parts)
        everything = (trained.time - lost).total_seconds()
        print(f"{strategy:18}  {loss:4}  {left:8}  {region:8}  {everything:6.1f}  {told}", flush=True)
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


def new_machine(rig: Rig, name: str, left: str, known: set[str]) -> str | None:
    """The region of an allocation that was not there before; numbers of two clusters may be the same."""
    there = [region for region, _, number in rig.machines(name) if region != left or number not in known]
    return there[0] if there else None


def trained_since(rig: Rig, name: str, moment: datetime) -> RunEvent | None:
    return next((e for e in rig.journal(name) if e.kind == "training" and e.time > moment), None)


def times(rig: Rig, name: str, kind: str) -> list[datetime]:
    return [event.time for event in rig.journal(name) if event.kind == kind]


if __name__ == "__main__":
    main()
