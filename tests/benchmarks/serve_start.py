"""From `vlaunch serve RUN --infra local` to a model that answers, and to the first token, by part.

    python tests/benchmarks/serve_start.py [--repeat 5] [--json FILE]

The model is that of `vlaunch train --size tiny`, after a few steps: quickstart's, but for what it has learnt. Wall
seconds are the median; CPU seconds are of all processes of the service when it is ready, and of the command. The
worker's parts are measured in a process of its own that does what a worker does, one step after another.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
PARTS = """
import sys, time
began = time.perf_counter(), time.process_time()
def mark(part):
    print(part, time.perf_counter() - began[0], time.process_time() - began[1])
import serving.worker
mark("worker's own imports")
import torch
mark("import torch")
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
import serving.engines.hf
mark("import transformers, engine")
from serving.engines.loading import ModelOptions, load
from serving.engines.scheduler import Limits
loaded = load(ModelOptions(sys.argv[1]))
mark("load the weights")
serving.engines.hf.HfEngine(loaded, ModelOptions(sys.argv[1]), "tiny", Limits())
mark("prove it")
"""


def vlaunch(*words: object) -> str:
    command = [sys.executable, "-m", "launcher", *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def cpu_s(pid: int) -> float:
    """Of a process and of those it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def children_cpu_s() -> float:
    times = os.times()
    return times.children_user + times.children_system


def start(run: str, state: Path) -> dict[str, float]:
    """One service, from the command to its first token, and its end."""
    before, began = children_cpu_s(), time.perf_counter()
    answer = json.loads(vlaunch("serve", run, "--name", "start", "--detach", "--json", "--port", 0,
                                "--controller-port", 0))  # fmt: skip
    ready = time.perf_counter() - began
    home = state / "vlaunch/services/start"
    found = {"command, CPU": children_cpu_s() - before, "ready": ready}
    pids = json.loads((home / "state.json").read_text())
    found["supervisor, CPU"] = cpu_s(pids["pid"])
    found |= {f"{part}, CPU": cpu_s(pid) for part, pid in pids["processes"].items()}
    asked = time.perf_counter()
    first = json.loads(vlaunch("message", "What does os.path.join do?", "--max-tokens", 4, "--json"))
    found["first token after that"] = first["first_token_s"]
    found["vlaunch message, whole"] = time.perf_counter() - asked
    found["command to first token"] = ready + first["first_token_s"]
    vlaunch("stop", answer["name"])
    return found


def parts(uri: str) -> list[tuple[str, float, float]]:
    """(part, wall seconds, CPU seconds), each of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PARTS, uri], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    found, wall, cpu = [], 0.0, 0.0
    for line in done:
        part, wall_now, cpu_now = line.rsplit(" ", 2)
        found.append((part, float(wall_now) - wall, float(cpu_now) - cpu))
        wall, cpu = float(wall_now), float(cpu_now)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        homes = {
            f"XDG_{what}_HOME": f"{folder}/{what.lower()}" for what in ("STATE", "DATA", "CACHE", "CONFIG")
        }
        os.environ.update(homes, PYTHONPATH=str(REPOSITORY), HF_HUB_OFFLINE="1")
        vlaunch(
            "train",
            "--size",
            "tiny",
            "--max-steps",
            8,
            "--name",
            "small",
            "--yes",
            "--set",
            "max_new_tokens=0",
        )
        start("small", Path(homes["XDG_STATE_HOME"]))  # files into memory
        times = [start("small", Path(homes["XDG_STATE_HOME"])) for _ in range(wanted.repeat)]
        uri = json.loads(vlaunch("status", "small", "--json"))["uri"]
        rows = [parts(uri) for _ in range(wanted.repeat)]
    middle = {part: statistics.median(one[part] for one in times) for part in times[0]}
    print(f"{'':<32} {'seconds':>8}   median of {wanted.repeat}")
    for part, value in middle.items():
        print(f"{part:<32} {value:>8.2f}")
    print(f"\n{'a worker, step by step':<32} {'wall s':>8} {'CPU s':>8}   least of {wanted.repeat}")
    least: dict[str, Any] = {}
    for number, (part, _, _) in enumerate(rows[0]):
        least[part] = {
            "wall_s": min(row[number][1] for row in rows),
            "cpu_s": min(row[number][2] for row in rows),
        }
        print(f"{part:<32} {least[part]['wall_s']:>8.2f} {least[part]['cpu_s']:>8.2f}")
    if wanted.json:
        wanted.json.write_text(json.dumps({"service": middle, "worker": least}, indent=2) + "\n")


if __name__ == "__main__":
    main()
