"""CPU that `vlaunch --help`, every `VERB --help`, a plan and a dry run cost above `python -c pass`.

    python tests/benchmarks/startup.py [--repeat 15] [--json FILE]

CPU seconds of the child (user + system, from wait4), the least of several runs: a loaded machine adds only
noise upwards. The project's limit is 40 ms above `python -c pass` for `vlaunch --help`, and 400 ms for a dry run.
VLAUNCH_CATALOG=FOLDER plans with the prices of that folder.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))
LIMIT_MS = 40.0


def cpu_ms(command: list[str], repeat: int) -> float:
    """The least CPU of `repeat` runs, in milliseconds."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    spent = []
    for _ in range(repeat):
        actions = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
        child = os.posix_spawn(command[0], command, environment, file_actions=actions)
        _, status, usage = os.wait4(child, 0)
        if status:
            raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
        spent.append((usage.ru_utime + usage.ru_stime) * 1000)
    return min(spent)


def present_verbs() -> list[str]:
    """The verbs whose module is in this checkout."""
    from importlib.util import find_spec

    from launcher.cli import VERBS

    return [name for name, (module, _) in VERBS.items() if find_spec(module)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    wanted = parser.parse_args()
    python = sys.executable
    base = cpu_ms([python, "-c", "pass"], wanted.repeat)
    rows = {"import click": cpu_ms([python, "-c", "import click"], wanted.repeat)}
    for words in ([], *([verb] for verb in present_verbs())):
        rows[" ".join(["vlaunch", *words, "--help"])] = cpu_ms(
            [python, "-m", "launcher", *words, "--help"], wanted.repeat
        )
    clouds = ["--size", "13", "--spot", "--infra", "aws", "--infra", "gcp"]
    for words in (["plan"], ["train", "--dry-run"]):
        line = [python, "-m", "launcher", *words, *clouds]
        rows[f"vlaunch {' '.join(words)} (13B)"] = cpu_ms(line, wanted.repeat)
    print(f"{'':<28} {'CPU ms':>8} {'above':>8} {'ratio':>7}")
    print(f"{'python -c pass':<28} {base:>8.1f} {0.0:>8.1f} {1.0:>7.2f}")
    for name, spent in rows.items():
        print(f"{name:<28} {spent:>8.1f} {spent - base:>8.1f} {spent / base:>7.2f}")
    above = rows["vlaunch --help"] - base
    print(f"vlaunch --help: {above:.1f} ms above python -c pass (limit {LIMIT_MS:.0f} ms)")
    if wanted.json:
        figures = {"base_ms": base, "limit_ms": LIMIT_MS, "cpu_ms": rows}
        figures["ratio"] = {name: spent / base for name, spent in rows.items()}
        wanted.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
