"""The commands marked <!-- run --> in the pages, carried out in order as a reader would type them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.docs import pages
from tests.trainer.runs import write_corpus

CLI = pages.DOCS / "cli.md"
# Every option is a variable as well: what keeps the run short is not in the pages.
SHORT = {
    "VLAUNCH_MAX_STEPS": "4",
    "VLAUNCH_SET": "export.max_new_tokens=4 train.max_eval_samples=8",
    "VLAUNCH_DATA": "chats.jsonl",
    "VLAUNCH_EVAL_DATA": "held-out.jsonl",
}


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a reader with an empty home, a small corpus and `vlaunch` on the path."""
    home = tmp_path_factory.mktemp("reader")
    write_corpus(home / "chats.jsonl", 200)
    write_corpus(home / "held-out.jsonl", 20, seed=1)
    program = home / "bin" / "vlaunch"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m launcher "$@"\n')
    program.chmod(0o755)
    path = os.pathsep.join([str(program.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    folders = {f"XDG_{what}_HOME": str(home / what.lower()) for what in ("CONFIG", "STATE", "CACHE", "DATA")}
    kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "PYTHONPATH") if name in os.environ}
    pythonpath = {"PYTHONPATH": str(pages.REPOSITORY)}
    return {**kept, **pythonpath, **folders, **SHORT, "HOME": str(home), "PATH": path, "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def typed(terminal: dict[str, str]) -> list[tuple[str, int, str]]:
    """(command, exit code, output) of every marked command."""
    commands = [command for block in pages.blocks() if block.run for command in block.commands]
    return [(command, *_run(terminal, command)) for command in commands]


def _run(terminal: dict[str, str], command: str) -> tuple[int, str]:
    done = subprocess.run(
        ["bash", "-c", command],
        env=terminal,
        cwd=terminal["HOME"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


def answer(terminal: dict[str, str], command: str) -> Any:
    code, out = _run(terminal, f"{command} --json 2> /dev/null")
    assert code == 0, out
    return json.loads(out.splitlines()[0])


def test_the_marked_commands_succeed(typed: list[tuple[str, int, str]]) -> None:
    assert typed
    assert [(command, out) for command, code, out in typed if code != 0] == []


def test_they_leave_a_finished_run_and_the_files_that_they_name(
    terminal: dict[str, str], typed: list[tuple[str, int, str]]
) -> None:
    runs = answer(terminal, "vlaunch runs")["runs"]
    assert [run["state"] for run in runs] == ["finished"]
    home = Path(terminal["HOME"])
    assert (home / "bill.html").stat().st_size and (home / "loss.png").stat().st_size
    assert len((home / "tiny-1.jsonl").read_text().splitlines()) == int(SHORT["VLAUNCH_MAX_STEPS"])


@pytest.mark.parametrize(
    ("heading", "command", "keys"),
    [
        ("Fields of a run", "vlaunch runs", ("runs", 0)),
        ("Fields of a bill", "vlaunch cost-report tiny-1", ("runs", 0)),
        ("Fields of an attempt", "vlaunch cost-report tiny-1", ("runs", 0, "attempts", 0)),
        ("Fields of a step", "vlaunch metrics tiny-1", ()),
        ("Fields of a held-out loss", "vlaunch metrics tiny-1 --eval", ()),
        ("Fields of a corpus file", "vlaunch data stats chats.jsonl", ("files", 0)),
    ],
)
def test_the_fields_of_the_page_are_those_of_the_answer(
    terminal: dict[str, str],
    typed: list[tuple[str, int, str]],
    heading: str,
    command: str,
    keys: tuple[str | int, ...],
) -> None:
    found = answer(terminal, command)
    for key in keys:
        found = found[key]
    assert set(pages.section(CLI, heading).first_cells()) == set(found) - {"version"}
