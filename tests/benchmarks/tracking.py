"""What a curve at W&B costs in CPU: sent from the store by `vlaunch metrics --wandb`, or by wandb in the loop.

    .venv/bin/python tests/benchmarks/tracking.py

Both send the same numbers to the same server of our own, in processes of their own. CPU seconds of Python and of
wandb's own process, median of three, for a short run and a long one: the difference is what steps cost.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(REPOSITORY))

SHORT, LONG, REPEATS = 20, 5020, 3

# As a training loop does it: the same numbers, nothing switched off that is on by default but the console.
IN_THE_LOOP = """
import sys, wandb
run = wandb.init(project="p", id=sys.argv[2], settings=wandb.Settings(console="off", silent=True))
for step in range(1, int(sys.argv[1]) + 1):
    run.log({"train/loss": 1.0 / step, "train/grad_norm": 1.0, "train/learning_rate": 1e-3, "train/tokens": 10 * step,
             "train/samples": step, "speed/step_s": 0.5, "speed/tokens_per_s": 20.0, "run/attempt": 1,
             "run/preemptions": 0, "run/dollars": 0.0, "run/machine_hours": 0.0}, step=step)
run.finish()
"""


def write_run(uri: str, steps: int) -> None:
    from tests.launcher.tracking.test_following import Training
    from trainer.artifacts.store import open_store

    training = Training(open_store(uri))
    for _ in range(steps - 1):
        training.train()
        if training.step % 500 == 0:
            training.save()
    training.finish()


def cpu_s(command: list[str], environment: dict[str, str], folder: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=environment, cwd=folder, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    from tests.launcher.tracking.wandb_server import WandbServer

    spent: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, WandbServer().served() as server:
        for steps in (SHORT, LONG):
            for number in range(REPEATS):
                name = f"run-{steps}-{number}"
                write_run(f"{folder}/store/runs/{name}", steps)
                environment = {**os.environ, **server.environment, "PYTHONPATH": str(REPOSITORY)}
                ours = [
                    sys.executable,
                    "-m",
                    "launcher",
                    "metrics",
                    name,
                    "--store",
                    f"{folder}/store",
                    "--wandb",
                ]
                theirs = [sys.executable, "-c", IN_THE_LOOP, str(steps), f"loop-{name}"]
                for what, command in (("from the store", ours), ("in the loop", theirs)):
                    spent.setdefault((what, steps), []).append(cpu_s(command, environment, folder))
    for what in ("from the store", "in the loop"):
        short, long = (statistics.median(spent[what, steps]) for steps in (SHORT, LONG))
        per_thousand = (long - short) / (LONG - SHORT) * 1000
        print(f"{what:<15} {short:.2f} CPU-s to start and end, {per_thousand:.2f} CPU-s per 1,000 steps")


if __name__ == "__main__":
    main()
