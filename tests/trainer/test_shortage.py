"""Memory that really runs out, in processes that really have little of it."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainer.errors import ConfigError, NotReady, VlaunchError
from trainer.fitting import Case
from trainer.hardware import GIB, Hardware
from trainer.recipes import get_recipe
from trainer.shape import Shape
from trainer.shortage import RanOut, in_trials, is_out_of_memory, told_if_memory_runs_out

torch.set_num_threads(1)  # processes are forked from this one
ROOM = 256 << 20
SMALL = Shape(64, 128, 2, 4, 4, 16, 256)


def with_little_memory() -> None:
    """Of this process, from here on: what it has, and a little more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def too_much(number: int) -> int:
    with_little_memory()
    return int(torch.ones(4 * ROOM, dtype=torch.uint8)[-1])


def test_results_come_back_in_order() -> None:
    assert in_trials(lambda number: number * 10, 3) == [0, 10, 20]


def test_a_trial_whose_memory_runs_out_says_so() -> None:
    with pytest.raises(RanOut):
        in_trials(too_much, 1)


def test_a_trial_that_the_kernel_kills_has_run_out_of_memory() -> None:
    with pytest.raises(RanOut):
        in_trials(lambda _: os.kill(os.getpid(), signal.SIGKILL), 1)


def test_one_trial_that_runs_out_ends_the_others_at_once(tmp_path: Path) -> None:
    """As in a collective: the others would wait for it for ever."""

    def work(number: int) -> int:
        if number == 0:
            return too_much(0)
        (tmp_path / str(number)).write_text(str(os.getpid()))
        signal.pause()
        return 0

    with pytest.raises(RanOut):
        in_trials(work, 3)
    for path in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)


def test_an_error_of_a_trial_is_raised_with_its_words() -> None:
    def wrong(_: int) -> int:
        raise ConfigError("the seat is taken", hint="stand")

    with pytest.raises(VlaunchError, match="the seat is taken") as raised:
        in_trials(wrong, 2)
    assert (raised.value.hint, raised.value.exit_code) == ("stand", 2)


def test_a_fault_of_a_trial_brings_its_traceback() -> None:
    with pytest.raises(VlaunchError, match="ZeroDivisionError"):
        in_trials(lambda number: 1 // number, 1)


_RUNS_OUT = """
import sys
import torch
from tests.trainer.test_shortage import case, with_little_memory
from trainer.errors import VlaunchError
from trainer.shortage import told_if_memory_runs_out

with_little_memory()
try:
    with told_if_memory_runs_out(case, torch.device("cpu"), "in the first step"):
        kept = [torch.ones(100 << 20, dtype=torch.uint8) for _ in range(10)]
except VlaunchError as error:
    print(error.message)
    print(error.hint)
    sys.exit(error.exit_code)
"""


def case() -> Case:
    config = get_recipe("tiny").config
    return Case(config, Hardware("CPU", "cpu", 1, GIB), SMALL, 1)


def test_a_process_that_runs_out_of_memory_tells_it_once_and_without_a_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _RUNS_OUT],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 3, done.stderr
    first = done.stdout.splitlines()[0]
    assert first.startswith("out of memory in the first step: ") and "100 MiB more were asked for" in first
    assert "the estimate was" in done.stdout and "logits: " in done.stdout
    assert "Traceback" not in done.stderr


def test_other_errors_pass_untouched() -> None:
    with pytest.raises(RuntimeError, match="^shapes$"):
        with told_if_memory_runs_out(case, torch.device("cpu"), "now"):
            raise RuntimeError("shapes")


def test_a_gpu_out_of_memory_is_recognised_and_its_words_are_kept() -> None:
    """What torch 2.13 says, shortened in the middle."""
    text = "CUDA out of memory. Tried to allocate 606.00 MiB. GPU 0 has a total capacity of 79.25 GiB"
    error = torch.OutOfMemoryError(text)
    assert is_out_of_memory(error)
    with pytest.raises(NotReady, match="when 606.00 MiB more were asked for"):
        with told_if_memory_runs_out(case, torch.device("cpu"), "now"):
            raise error
