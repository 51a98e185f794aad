"""What a notice is worth: seconds from the cloud's word to a durable step, and steps lost with and without it.

    python tests/benchmarks/notices.py [--repeat 5] [--save-every 20] [--seed 0] [--json FILE]

A LLaMA of 15 million weights (186 MB of state) trains on the real box program, one process with one thread, and saves
every --save-every seconds into a folder. At a random moment of its life the machine is announced to go by the fake
metadata service of one cloud (tests/trainer/metadata_servers.py), which is asked as often as that cloud recommends;
or it is killed without a word. The next attempt goes on where the last one left its work.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from tests.trainer.metadata_servers import (  # noqa: E402
    AwsService,
    AzureService,
    GcpService,
    MetadataService,
)
from tests.trainer.runs import create_run, write_corpus  # noqa: E402
from trainer.artifacts.journal import RunEvent, read_journal  # noqa: E402
from trainer.artifacts.metrics import read_metrics  # noqa: E402
from trainer.artifacts.store import open_store  # noqa: E402

# What each cloud gives; and without a word.
WAYS: dict[str, tuple[type[MetadataService] | None, float]] = {
    "aws": (AwsService, 120.0),
    "gcp": (GcpService, 30.0),
    "azure": (AzureService, 30.0),
    "no notice": (None, 0.0),
}
SHAPE = {
    "model_type": "llama",
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 7,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "tie_word_embeddings": True,
}
PREEMPTED = 75
PATIENCE_S = 300.0


@dataclass
class Ending:
    """How one machine ended. Seconds count from the moment at which the service knew of it."""

    seen_s: float
    durable_s: float
    gone_s: float
    steps: int
    lost_steps: int
    lost_s: float
    """What those steps took."""


class Machine:
    """One attempt as a process group of its own."""

    def __init__(self, run: Path, folder: Path, ordinal: int, service: MetadataService | None) -> None:
        self.store = open_store(str(run))
        self._known = {event.key for event in read_journal(self.store)}
        self._log = folder / f"attempt-{ordinal}.log"
        environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | {
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
            "VLAUNCH_CLOUD": type(service).__name__.removesuffix("Service").lower() if service else "none",
        }
        if service is not None:
            environment["VLAUNCH_METADATA_URL"] = service.url
        with self._log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "trainer", "--run", str(run), "--workdir", str(folder / "work")],
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def events(self, kind: str) -> list[RunEvent]:
        return [e for e in read_journal(self.store) if e.kind == kind and e.key not in self._known]

    def wait_for_first_step(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not self.events("training"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(self._log.read_text())
            time.sleep(0.05)

    def told(self, service: MetadataService, notice_s: float) -> Ending:
        began = time.time()
        service.interrupt(notice_s)
        code = self.process.wait(PATIENCE_S)
        gone = time.time()
        if code != PREEMPTED:
            raise SystemExit(self._log.read_text())
        (notice,), (left,) = self.events("notice"), self.events("preempted")
        saved = self.events("checkpoint")
        durable = saved[-1].data["durable_at"] if saved else began
        return Ending(
            notice.time.timestamp() - began,
            durable - began,
            gone - began,
            left.data["step"],
            left.data["lost_steps"],
            self._took(left.data["lost_steps"]),
        )

    def killed(self) -> Ending:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        done = max(map(int, re.findall(r"step (\d+)/", self._log.read_text())), default=0)
        events = read_journal(self.store)
        durable = max((event.data["step"] for event in events if event.kind == "checkpoint"), default=0)
        lost = max(0, done - durable)
        return Ending(0.0, 0.0, 0.0, done, lost, self._took(lost))

    def _took(self, steps: int) -> float:
        return steps * statistics.median(step.step_s for step in read_metrics(self.store)[0])


def measure(
    way: str, folder: Path, corpus: Path, repeat: int, every_s: float, chance: random.Random
) -> list[Ending]:
    kind, notice_s = WAYS[way]
    run = folder / "runs" / way.replace(" ", "-")
    create_run(
        str(run),
        corpus,
        model__shape=SHAPE,
        model__vocab_size=8192,
        model__dropout=0.0,
        train__max_steps=1_000_000,
        train__eval_strategy="no",
        checkpoint__save_strategy="auto",
        checkpoint__max_interval_s=every_s,
        checkpoint__mtbf_s=1e6,
    )
    endings = []
    for ordinal in range(repeat):
        service: AbstractContextManager[MetadataService | None] = kind() if kind else nullcontext()
        with service as announced:
            machine = Machine(run, folder, ordinal, announced)
            try:
                machine.wait_for_first_step()
                # Any moment between two saves is as likely as another; the first save of a life comes first.
                time.sleep(every_s + chance.uniform(2.0, every_s))
                endings.append(machine.told(announced, notice_s) if announced else machine.killed())
            finally:
                if machine.process.poll() is None:
                    os.killpg(machine.process.pid, signal.SIGKILL)
        print(f"  {way}: {asdict(endings[-1])}", file=sys.stderr)
    return endings


def report(found: dict[str, list[Ending]]) -> None:
    print(
        f"{'':<10} {'machines':>8} {'seen s':>14} {'durable s':>14} {'exit s':>14} {'steps lost':>12} {'seconds':>14}"
    )
    for way, endings in found.items():
        cells = []
        for name in ("seen_s", "durable_s", "gone_s"):
            values = sorted(getattr(ending, name) for ending in endings)
            cells.append(f"{statistics.median(values):.2f} ({values[-1]:.2f})" if WAYS[way][0] else "-")
        lost = sorted(ending.lost_steps for ending in endings)
        took = sorted(ending.lost_s for ending in endings)
        print(
            f"{way:<10} {len(endings):>8} {cells[0]:>14} {cells[1]:>14} {cells[2]:>14} "
            f"{f'{statistics.median(lost):g} ({lost[-1]})':>12} {f'{statistics.median(took):.1f} ({took[-1]:.1f})':>14}"
        )
    print("median (most) of all machines; seconds from the moment at which the metadata service knew")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeat", type=int, default=2, help="machines of each cloud")
    parser.add_argument("--save-every", type=float, default=10.0, help="seconds between two saves")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="vlaunch-notices-") as place:
        folder = Path(place)
        corpus = write_corpus(folder / "train.jsonl", 2000)
        found = {
            way: measure(way, folder, corpus, options.repeat, options.save_every, chance) for way in WAYS
        }
    report(found)
    if options.json:
        told = {way: [asdict(ending) for ending in endings] for way, endings in found.items()}
        options.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
