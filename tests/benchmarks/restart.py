"""From the start of the box program to the first resumed step, part by part: ours, and the same through torchrun.

    python tests/benchmarks/restart.py [--processes 1 2] [--kinds full lora lora-8bit qlora] [--repeat 3] [--json FILE]

The run is the `tiny` recipe's network on a small corpus, prepared and with a checkpoint in its store; each restart
has an empty disk, resumes from that checkpoint and is killed as soon as its first step is in the journal.

    forked    ours: one import of torch, then a fork per process
    torchrun  the same supervisor and the same trainer.rank, but torchrun starts an interpreter per process.
              Its workers start as early as they can: they import while the supervisor fetches.

Wall seconds are from the start of the program to the event, CPU seconds those of the whole tree of processes at
that moment; of each the least of the repeats, since a loaded machine only adds. The parts are the program's own
(event `training`); of torchrun, `import` is everything until its workers are ready.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

if TYPE_CHECKING:
    from trainer.artifacts.journal import RunEvent

WAYS = ("forked", "torchrun")
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"train__method": "lora"},
    "lora-8bit": {"train__method": "lora", "lora__load_8bit": True},
    "qlora": {"train__method": "qlora"},
}
LONGEST_START_S = 300.0


@dataclass(frozen=True)
class Restart:
    """Seconds until the first resumed step."""

    wall_s: float
    cpu_s: float
    parts: dict[str, float]


# --- the other way: trainer.rank under torchrun -----------------------------------------------


def supervise(uri: str, workdir: Path) -> None:
    """What `python -m trainer` does, with torchrun in the place of the fork."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from trainer.artifacts.store import open_store
    from trainer.endings import Report
    from trainer.supervisor import Attempt

    class ThroughTorchrun(Attempt):
        def _import(self, config: Any) -> None:
            size = json.loads(self.store.get("config.json"))["parallel"]["processes"]
            self._torchrun = subprocess.Popen(
                [
                    *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                    *("--nproc-per-node", str(size), __file__, "--rank-of", str(workdir)),
                ]
            )

        def _run_ranks(self, config: Any, lease: Any, inputs: Any, resumed: Any, size: int) -> Report:
            brief = {
                "uri": self.store.uri,
                "epoch": lease.epoch,
                "attempt": self.attempt,
                "inputs": [str(inputs.tokeniser), str(inputs.train), inputs.report],
                "resumed": resumed.key,
                "size": size,
                "clock": self.clock,
                "told": self._began,
                "workdir": str(self._workdir),
            }
            part = workdir / "brief.part"
            part.write_text(json.dumps(brief))
            part.rename(workdir / "brief.json")
            self._torchrun.wait()
            return Report("finished")

    logging.basicConfig(level=logging.INFO)
    ThroughTorchrun(open_store(uri), workdir).run()


def be_rank(workdir: Path) -> None:
    """A worker of torchrun: imports, waits for the brief, lives."""
    import transformers.models.llama.modeling_llama  # noqa: F401

    from trainer.artifacts.fencing import Lease
    from trainer.artifacts.journal import Journal
    from trainer.artifacts.manifest import Manifest
    from trainer.artifacts.sources import Sources
    from trainer.artifacts.store import open_store
    from trainer.config import decode_config
    from trainer.preemption import Notice
    from trainer.prepare import Inputs
    from trainer.rank import Brief, run_rank

    parent = os.getppid()
    while not (workdir / "brief.json").exists():
        if os.getppid() != parent:  # torchrun is gone
            return
        time.sleep(0.01)
    told = json.loads((workdir / "brief.json").read_text())
    store = open_store(told["uri"])
    config = decode_config(store.get("config.json"), "config.json")
    tokeniser, train, report = told["inputs"]
    told["clock"]["import"] = round(time.monotonic() - told["told"], 3)
    brief = Brief(
        config=config,
        store=store,
        sources=Sources(store, config.store, ""),
        lease=Lease(store, told["epoch"]),
        journal=Journal(store, told["attempt"], "box", quiet=True),
        attempt=told["attempt"],
        inputs=Inputs(Path(tokeniser), Path(train), None, None, report),
        checkpoint=Path(told["workdir"]) / "checkpoint",
        resumed=Manifest.decode(store.get(told["resumed"])),
        workdir=Path(told["workdir"]),
        world_size=told["size"],
        threads=config.parallel.threads or 1,
        rendezvous="env://",
        clock=told["clock"],
    )
    run_rank(brief, int(os.environ["RANK"]), Notice())


# --- the measurement --------------------------------------------------------------------------


def create(folder: Path, processes: int, kind: str) -> str:
    """A run with a checkpoint and prepared inputs."""
    from tests.trainer.runs import create_run, write_corpus
    from trainer.recipes import get_recipe

    uri = str(folder / f"runs/restart-{processes}-{kind}")
    tiny = get_recipe("tiny").config
    corpus = write_corpus(folder / "train.jsonl")
    model: dict[str, Any] = {"model__shape": tiny.model.shape, "model__vocab_size": 512}
    if kind != "full":
        base = folder / "base"
        write_base(base, corpus, dict(tiny.model.shape or {}), tiny.data.max_length)
        model = {"model__shape": None, "model__vocab_size": None, "model__base": str(base)}
    create_run(
        uri, corpus, **model, **KINDS[kind], data__max_length=tiny.data.max_length, train__global_batch_size=8,
        train__max_steps=100_000, train__per_device_train_batch_size=4, checkpoint__save_steps=4,
        parallel__processes=processes,
    )  # fmt: skip
    start(uri, "forked", folder / f"box-{processes}-{kind}", until="checkpoint")
    return uri


def write_base(folder: Path, corpus: Path, shape: dict[str, Any], longest: int) -> None:
    """The same network as a folder of Hugging Face's, for adapters to stand on."""
    if folder.exists():
        return
    from transformers import AutoConfig, AutoModelForCausalLM

    from trainer.conversation import get_template
    from trainer.data.read import read_corpus
    from trainer.tokenize import train_tokeniser

    texts = (turn.text for each in read_corpus([corpus]) for turn in each.turns)
    tokeniser = train_tokeniser(texts, 512, get_template("vicuna_v1.1"))
    tokeniser.save_pretrained(folder)
    kind = shape.pop("model_type")
    config = AutoConfig.for_model(kind, **shape, vocab_size=len(tokeniser), max_position_embeddings=longest)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def start(uri: str, way: str, workdir: Path, until: str) -> Restart:
    """One life of the box program, killed when the event is there."""
    import psutil

    from trainer.artifacts.store import open_store

    store = open_store(uri)
    known = {event.key for event in events(store, until)}
    options = ["--run", uri, "--workdir", str(workdir)]
    program = ["-m", "trainer"] if way == "forked" else [__file__]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    output = workdir.with_suffix(".log")
    with output.open("w") as log:
        began = time.time()
        process = subprocess.Popen(
            [sys.executable, *program, *options],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        while time.time() < began + LONGEST_START_S and process.poll() is None:
            fresh = [event for event in events(store, until) if event.key not in known]
            if fresh:
                cpu_s = cpu_of_tree(psutil.Process(process.pid))
                return Restart(fresh[0].time.timestamp() - began, cpu_s, fresh[0].data.get("seconds", {}))
            time.sleep(0.01)
        raise SystemExit(f"no {until} from {way}:\n{output.read_text()[-2000:]}")
    finally:
        with suppress(psutil.NoSuchProcess):
            kill_tree(psutil.Process(process.pid))
        process.wait()


def events(store: Any, kind: str) -> list[RunEvent]:
    from trainer.artifacts.journal import RunEvent

    return [
        RunEvent.decode(store.get(entry.key))
        for entry in store.list("journal/")
        if entry.key.endswith(f"-{kind}.json")
    ]


def kill_tree(process: Any) -> None:
    """By descent, not by group: torchrun's workers lead groups of their own and would train on for ever."""
    import psutil

    process.suspend()  # so that no child is born meanwhile
    for one in [*process.children(recursive=True), process]:
        with suppress(psutil.NoSuchProcess):
            one.kill()


def cpu_of_tree(process: Any) -> float:
    """User and system seconds of a process and its descendants, those that have ended included."""
    import psutil

    total = 0.0
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def report(processes: int, kind: str, found: dict[str, list[Restart]]) -> dict[str, Any]:
    print(f"\n{processes} process(es), {kind}")
    print(f"{'':<10} {'wall s':>7} {'CPU s':>7}   parts of the quickest, seconds")
    figures: dict[str, Any] = {}
    for way, restarts in found.items():
        best = min(restarts, key=lambda restart: restart.wall_s)
        cpu_s = min(restart.cpu_s for restart in restarts)
        figures[way] = {"wall_s": best.wall_s, "cpu_s": cpu_s, "parts": best.parts}
        parts = "  ".join(f"{name} {seconds:.2f}" for name, seconds in best.parts.items())
        print(f"{way:<10} {best.wall_s:>7.2f} {cpu_s:>7.2f}   {parts}")
    if ours := figures.get("forked"):
        for theirs in (figures[way] for way in found if way != "forked"):
            print(
                f"torchrun takes {theirs['wall_s'] / ours['wall_s']:.2f} times the wall seconds "
                f"and {theirs['cpu_s'] / ours['cpu_s']:.2f} times the CPU seconds of forking"
            )
    return figures


def compare(scratch: Path, processes: int, kind: str, repeat: int) -> dict[str, Any]:
    uri = create(scratch, processes, kind)
    # The other way is there to judge ours by; once is enough for that.
    ways = WAYS if kind == "full" else WAYS[:1]
    found: dict[str, list[Restart]] = {way: [] for way in ways}
    for turn in range(repeat):
        for way in ways:  # in turns, so that a disturbance meets both
            box = scratch / f"box-{processes}-{kind}-{way}-{turn}"
            found[way].append(start(uri, way, box, until="training"))
    return report(processes, kind, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--workdir", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.rank_of:
        return be_rank(wanted.rank_of)
    if wanted.run:
        return supervise(wanted.run, wanted.workdir)
    figures = {}
    with tempfile.TemporaryDirectory() as scratch:
        for processes in wanted.processes:
            for kind in wanted.kinds:
                figures[f"{processes} {kind}"] = compare(Path(scratch), processes, kind, wanted.repeat)
    if wanted.json:
        wanted.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
