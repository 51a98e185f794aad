"""What saving costs a run: one that saves every 20 seconds to an S3 server, against one that never saves.

    python tests/benchmarks/overhead.py [--steps 160] [--every 20] [--repeat 2] [--hidden 384] [--json FILE]

A LLaMA of 15 million weights (186 MB of state) trains on the real box program, one process with one thread; the other
core is left to the upload and to the server (moto, started here). The two ways take turns. Both save their last step,
as every run does: only what lies between the first step and the last one is compared. CPU seconds are those of the
box, without the server; they hold also where other programs share the machine, wall time does not.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from tests.artifacts import servers  # noqa: E402
from tests.trainer.on_servers import Server  # noqa: E402
from tests.trainer.runs import create_run, write_corpus  # noqa: E402
from trainer.artifacts.journal import read_journal  # noqa: E402
from trainer.artifacts.metrics import read_metrics  # noqa: E402
from trainer.artifacts.store import open_store  # noqa: E402

NEVER_S = 1e9


@dataclass
class Outcome:
    """One run. Wall seconds count from the end of its first step to the end of its last one."""

    way: str
    wall_s: float
    cpu_s: float
    stall_s: float
    saves: int
    bytes: int
    save_s: float
    loss: str


def run(
    way: str, every_s: float, corpus: Path, folder: Path, server: Server, wanted: argparse.Namespace
) -> Outcome:
    uri = server.new_run()
    shape = {
        "model_type": "llama", "hidden_size": wanted.hidden, "intermediate_size": wanted.hidden * 8 // 3,
        "num_hidden_layers": 7, "num_attention_heads": 6, "num_key_value_heads": 6, "tie_word_embeddings": True,
    }  # fmt: skip
    create_run(
        uri, corpus, model__shape=shape, model__dropout=0.0, train__max_steps=wanted.steps, data__max_length=256,
        train__logging_seconds=15.0, checkpoint__save_strategy="auto", checkpoint__mtbf_s=NEVER_S,
        checkpoint__max_interval_s=every_s,
    )  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "trainer", "--run", uri, "--workdir", str(folder / "work")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"VLAUNCH_CLOUD": "none"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    store = open_store(uri)
    steps = read_metrics(store)[0]
    saves = [event.data for event in read_journal(store) if event.kind == "checkpoint"]
    between = [save for save in saves if save["step"] < wanted.steps]
    return Outcome(
        way=way,
        wall_s=steps[-1].time - steps[0].time,
        cpu_s=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        stall_s=sum(save["stall_s"] for save in between),
        saves=len(between),
        bytes=sum(save["sent_bytes"] for save in between),
        save_s=max((save["save_s"] for save in between), default=0.0),
        loss=steps[-1].loss.hex(),
    )


def report(outcomes: list[Outcome]) -> None:
    print(
        f"{'':<6} {'saves':>5} {'MB':>7} {'longest s':>9} {'stall s':>8} {'stall':>7} {'wall s':>8} {'CPU s':>7}"
    )
    for one in outcomes:
        share = one.stall_s / one.wall_s
        print(
            f"{one.way:<6} {one.saves:>5} {one.bytes / 1e6:>7.0f} {one.save_s:>9.1f} {one.stall_s:>8.3f} "
            f"{share:>7.2%} {one.wall_s:>8.1f} {one.cpu_s:>7.1f}"
        )
    # The quietest turn of each: what disturbs a run on a shared machine only makes it longer.
    least = {way: [one for one in outcomes if one.way == way] for way in ("saves", "never")}
    wall = {way: min(one.wall_s for one in turns) for way, turns in least.items()}
    cpu = {way: min(one.cpu_s for one in turns) for way, turns in least.items()}
    print(
        f"the whole run: {wall['saves'] / wall['never'] - 1:+.1%} wall, {cpu['saves'] / cpu['never'] - 1:+.1%} CPU"
    )
    print(f"the same last loss, bit for bit: {len({one.loss for one in outcomes}) == 1}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--every", type=float, default=20.0, help="seconds from one save to the next")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=384, help="width of the network")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    wanted = parser.parse_args()
    outcomes = []
    with servers.moto() as url, tempfile.TemporaryDirectory() as scratch:
        server = Server.s3(url)
        os.environ |= server.environment
        corpus = write_corpus(Path(scratch) / "train.jsonl", 3000)
        for turn in range(wanted.repeat):
            order = [("never", NEVER_S), ("saves", wanted.every)]
            for way, every_s in order if turn % 2 == 0 else reversed(order):
                outcomes.append(run(way, every_s, corpus, Path(scratch), server, wanted))
    report(outcomes)
    if wanted.json:
        wanted.json.write_text(json.dumps([asdict(one) for one in outcomes], indent=2) + "\n")


if __name__ == "__main__":
    main()
