"""How long training stands still for a checkpoint, and what saving costs a whole run.

    python tests/benchmarks/checkpoint.py [--processes 1] [--steps 40] [--every 12] [--repeat 2] [--store DIR]
                                          [--json FILE]

A LLaMA of 15 million weights (186 MB of state: weights and both moments, float32) takes real steps, one thread per
process, and is saved by the real Checkpointer into a real store on disk. Three ways in turn:

    none    no saves
    async   ours: the training thread copies the state and goes on; a thread writes, hashes, sends and commits
    sync    the same save, and training waits until it is durable

Standing still is wall time of the training thread, since what it waits for is a disk; the first save of a run also
allocates the buffers for the copy and is shown apart. The rest is wall and CPU seconds of all processes for the
whole run, the last save included. The more cores are free beside training, the less the async run costs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, PreTrainedModel

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))  # a script finds what follows only now: hence E402

from trainer.artifacts.fencing import Lease, claim  # noqa: E402
from trainer.artifacts.journal import Journal  # noqa: E402
from trainer.artifacts.sources import Sources  # noqa: E402
from trainer.artifacts.store import open_store  # noqa: E402
from trainer.cadence import Cadence  # noqa: E402
from trainer.checkpoint import Checkpointer  # noqa: E402
from trainer.config import CheckpointSection, TrainConfig  # noqa: E402
from trainer.fsdp import FullyShardedModel  # noqa: E402
from trainer.model import parameter_count, random_weights, skeleton  # noqa: E402
from trainer.parallel import World, joined  # noqa: E402
from trainer.replication import Replication  # noqa: E402
from trainer.sampler import Position  # noqa: E402

TOKENS_PER_STEP = 512
CONFIG = TrainConfig.model_validate({"train": {"bf16": False}})
SHAPE = LlamaConfig(
    vocab_size=8192, hidden_size=384, intermediate_size=1024, num_hidden_layers=7, num_attention_heads=6,
    num_key_value_heads=6, max_position_embeddings=TOKENS_PER_STEP, tie_word_embeddings=True,
)  # fmt: skip


WAYS = ("none", "async", "sync")


@dataclass(frozen=True)
class Wanted:
    """What the command line asked for."""

    processes: int
    steps: int
    every: int
    repeat: int


@dataclass
class Outcome:
    """One run of one way, as the first process saw it; CPU seconds are of all processes."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    stalls_s: list[float] = field(default_factory=list)
    bytes: int = 0


class Trainee:
    """A model that takes steps."""

    def __init__(self, world: World) -> None:
        self.model: PreTrainedModel = skeleton(SHAPE)
        self.sharded = FullyShardedModel(self.model, CONFIG, world)
        self.sharded.fill(random_weights(SHAPE, seed=0))
        self._tokens = torch.randint(0, SHAPE.vocab_size, (1, TOKENS_PER_STEP))

    def step(self) -> None:
        loss = self.model(input_ids=self._tokens, labels=self._tokens, use_cache=False).loss
        self.sharded.backward(loss, last=True)
        self.sharded.step(CONFIG.train.learning_rate)


def new_saver(world: World, lease: Lease, folder: Path) -> Checkpointer:
    settings = CheckpointSection(save_strategy="steps", save_steps=1, save_total_limit=1)
    journal = Journal(lease.store, 1, "box", quiet=True)
    cadence = Cadence(settings, shares_cores=True, mtbf_s=settings.mtbf_s)
    config = TrainConfig()
    replication = Replication(world, Sources(lease.store, config.store, ""), config, journal)
    return Checkpointer(
        world, lease, journal, replication, cadence, None, folder / "stage", None, lambda: None
    )


def run(way: str, world: World, trainee: Trainee, lease: Lease, folder: Path, wanted: Wanted) -> Outcome:
    outcome = Outcome()
    saver = new_saver(world, lease, folder)
    world.agree(0.0)  # all begin together
    began, cpu = time.monotonic(), time.process_time()
    for step in range(1, wanted.steps + 1):
        trainee.step()
        (busy,) = world.agree(float(saver.busy))
        if way == "none" or step % wanted.every or busy:
            continue
        stopped = time.monotonic()
        saver.save(step, Position(step, step), trainee.sharded)
        if way == "sync":
            saver.wait()
        outcome.stalls_s.append(time.monotonic() - stopped)
        outcome.bytes = sum(map(_bytes, trainee.sharded.state().values()))
    saver.close()
    world.agree(0.0)
    outcome.wall_s = time.monotonic() - began
    (outcome.cpu_s,) = world.agree(time.process_time() - cpu)
    return outcome


def _bytes(tensor: torch.Tensor) -> int:
    mine = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return mine.numel() * mine.element_size()


def take_turns(rank: int, folder: Path, leases: dict[tuple[int, str], Lease], wanted: Wanted) -> None:
    """One process: every way in turn; the first writes the outcomes."""
    found: dict[str, list[Outcome]] = {way: [] for way in WAYS}
    with joined(rank, wanted.processes, f"file://{folder}/rendezvous", threads=1) as world:
        trainee = Trainee(world)
        trainee.step()  # FSDP and the allocator set themselves up
        for (turn, way), lease in leases.items():
            scratch = folder / f"{way}-{turn}"
            found[way].append(run(way, world, trainee, lease, scratch, wanted))
            world.agree(0.0)
            if world.leads:
                shutil.rmtree(scratch, ignore_errors=True)
        if world.leads:
            told = {way: [asdict(outcome) for outcome in outcomes] for way, outcomes in found.items()}
            weights = parameter_count(trainee.model)
            (folder / "outcome.json").write_text(json.dumps({"weights": weights, "ways": told}))


def measure(wanted: Wanted, folder: Path) -> dict[str, Any]:
    """The processes are forked after the imports, as the supervisor forks them."""
    leases = {}
    for turn, way in itertools.product(range(wanted.repeat), WAYS):
        leases[turn, way] = claim(open_store(str(folder / f"{way}-{turn}/runs/one")))
        leases[turn, way].start(0, None)
    children = []
    for rank in range(wanted.processes):
        if child := os.fork():
            children.append(child)
            continue
        try:
            take_turns(rank, folder, leases, wanted)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        raise SystemExit(f"processes ended with {codes}")
    told: dict[str, Any] = json.loads((folder / "outcome.json").read_text())
    return told


def report(told: dict[str, Any], wanted: Wanted) -> None:
    ways = {way: [Outcome(**outcome) for outcome in told["ways"][way]] for way in WAYS}
    # The quietest turn of each: what disturbs a run on a shared machine only makes it longer.
    wall = {way: min(outcome.wall_s for outcome in outcomes) for way, outcomes in ways.items()}
    cpu = {way: min(outcome.cpu_s for outcome in outcomes) for way, outcomes in ways.items()}
    size = ways["async"][0].bytes / 1e6
    print(
        f"{told['weights'] / 1e6:.1f} million weights, {wanted.processes} process(es) with {size:.0f} MB each"
    )
    print(
        f"{'':<6} {'saves':>5} {'first s':>8} {'stall s':>8} {'most s':>7} {'wall s':>7} {'above':>7} {'CPU s':>7}"
    )
    stall = {}
    for way, outcomes in ways.items():
        first = [outcome.stalls_s[0] for outcome in outcomes if outcome.stalls_s]
        later = [second for outcome in outcomes for second in outcome.stalls_s[1:]]
        stall[way] = statistics.median(later or [0.0])
        print(
            f"{way:<6} {len(outcomes[0].stalls_s):>5} {min(first, default=0):>8.3f} {stall[way]:>8.3f} "
            f"{max(later, default=0):>7.3f} {wall[way]:>7.2f} {wall[way] / wall['none'] - 1:>+7.1%} {cpu[way]:>7.2f}"
        )
    print(f"standing still per save: sync is {stall['sync'] / max(stall['async'], 1e-9):.1f} times async")
    for way in ("async", "sync"):
        saves = len(ways[way][0].stalls_s)
        print(
            f"{way}: the whole run costs {(wall[way] - wall['none']) / saves:+.2f} s and "
            f"{(cpu[way] - cpu['none']) / saves:+.2f} CPU s per save"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=12, help="steps between saves")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument(
        "--store", type=Path, help="folder in which stores are made: on a disk, not in memory"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    wanted = Wanted(options.processes, options.steps, options.every, options.repeat)
    with tempfile.TemporaryDirectory(dir=options.store) as scratch:
        told = measure(wanted, Path(scratch))
    report(told, wanted)
    if options.json:
        options.json.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
