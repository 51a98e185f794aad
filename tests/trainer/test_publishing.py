"""W&B beside a real run: five attempts are one curve, and nothing that W&B does is felt by training."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.conftest import Ran
from tests.launcher.tracking.offline_files import read_offline
from tests.launcher.tracking.wandb_server import KEY, Curve, WandbServer
from tests.trainer.killing import LONGEST_LIFE_S, begin_box
from tests.trainer.runs import create_run, write_corpus
from trainer.artifacts.journal import read_journal
from trainer.artifacts.layout import JOURNAL, parse_journal_key
from trainer.artifacts.metrics import read_metrics
from trainer.artifacts.store import open_store

pytest.importorskip("wandb", reason="the extra [wandb] is not installed")

STEPS = 300


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer().served() as serving:
        yield serving


@pytest.fixture
def run(tmp_path: Path) -> str:
    uri = str(tmp_path / "store/runs/five")
    corpus = write_corpus(tmp_path / "train.jsonl", 60), write_corpus(tmp_path / "held-out.jsonl", 8, seed=1)
    create_run(
        uri, *corpus, train__max_steps=STEPS, train__num_train_epochs=1000.0, train__eval_steps=50,
        train__logging_seconds=0.2, checkpoint__save_steps=20,
    )  # fmt: skip
    return uri


def take_away(machine: BaseProcess) -> None:
    """SIGKILL to everything on it."""
    assert machine.pid is not None
    os.killpg(machine.pid, signal.SIGKILL)
    machine.join(LONGEST_LIFE_S)


def processes_of(machine: BaseProcess) -> dict[int, bytes]:
    """Command lines of what runs on a machine, wandb's own process included: it is in a group of its own."""
    lines, parents = {}, {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit():
                lines[int(entry.name)] = (entry / "cmdline").read_bytes()
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
    here = {machine.pid}
    while found := {pid for pid, parent in parents.items() if parent in here} - here:
        here |= found
    return {pid: lines[pid] for pid in here if pid in lines}


def signal_training(machine: BaseProcess, number: signal.Signals) -> None:
    """Everything on a machine but what follows the run for W&B: so a test can wait for W&B while no step is made."""
    for pid, line in processes_of(machine).items():
        if b"launcher.tracking.beside" not in line and b"wandb-core" not in line:
            os.kill(pid, number)


@contextmanager
def standing_still(run: str, machine: BaseProcess, attempt: int, server: WandbServer) -> Iterator[None]:
    """After the first checkpoint of an attempt, and until W&B has got further by it."""
    got = server.count()
    wait_for_journal(run, "checkpoint", attempt)
    signal_training(machine, signal.SIGSTOP)
    server.wait_for_more(got)
    yield
    signal_training(machine, signal.SIGCONT)


def wait_for_journal(run: str, kind: str, attempt: int) -> None:
    """Until an attempt has said this."""
    store, deadline = open_store(run), time.monotonic() + LONGEST_LIFE_S
    while not any(
        (key := parse_journal_key(entry.key)) and key.attempt == attempt and key.kind == kind
        for entry in store.list(JOURNAL)
    ):
        assert time.monotonic() < deadline, f"attempt {attempt} never said {kind}"
        time.sleep(0.01)


def curve_of(server: WandbServer) -> Curve:
    (curve,) = server.curves.values()
    return curve


def test_five_attempts_are_one_curve_at_wandb_and_in_its_files(
    run: str, tmp_path: Path, server: WandbServer, vlaunch_process: Callable[..., Ran]
) -> None:
    """Four machines are taken without notice, each when W&B has got further by it: real attempts, for one curve."""
    environment = {**server.environment, "HF_TOKEN": "hf_never_to_be_seen"}
    for attempt in range(1, 6):
        machine = begin_box(run, tmp_path / f"work-{attempt}", environment)
        with standing_still(run, machine, attempt, server):
            if attempt < 5:
                take_away(machine)
    machine.join(LONGEST_LIFE_S)
    assert machine.exitcode == 0

    curve, (steps, held_out) = curve_of(server), read_metrics(open_store(run))
    assert curve.received == curve.steps == list(range(STEPS + 1))
    assert {row["_step"]: row["train/loss"] for row in curve.history[1:]} == {s.step: s.loss for s in steps}
    assert [row["_step"] for row in curve.history if "eval/loss" in row] == [
        record.step for record in held_out
    ]
    resumed = [row for row in curve.history if "event" in row]
    assert [row["run/attempt"] for row in resumed] == [2, 3, 4, 5] and curve.names == {"five"}
    assert [f"goes on from step {row['_step'] - 1}" in row["event"] for row in resumed] == [True] * 4
    assert curve.exit_codes == [0] and curve.begun >= 5
    urls = {event.data["url"] for event in read_journal(open_store(run)) if event.kind == "tracked"}
    assert len(urls) == 1

    line = ("metrics", "five", "--store", tmp_path / "store", "--wandb-offline", tmp_path / "files")
    assert vlaunch_process(*line).code == 0
    offline = read_offline(tmp_path / "files")
    assert [row["_step"] for row in offline.history] == curve.steps and {offline.run_id} == set(server.curves)
    assert [row["_step"] for row in offline.history if "event" in row] == [row["_step"] for row in resumed]

    kept = server.everything + b"".join(
        path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".safetensors"
    )
    assert KEY.encode() not in kept and b"hf_never_to_be_seen" not in kept


def test_a_killed_process_of_wandb_costs_neither_a_step_nor_a_point(
    run: str, tmp_path: Path, server: WandbServer
) -> None:
    machine = begin_box(run, tmp_path / "work", server.environment)
    with standing_still(run, machine, 1, server):
        (core,) = [pid for pid, line in processes_of(machine).items() if b"wandb-core" in line]
        os.kill(core, signal.SIGKILL)
    machine.join(LONGEST_LIFE_S)
    assert machine.exitcode == 0
    curve = curve_of(server)
    assert curve.received == curve.steps == list(range(STEPS + 1)) and curve.begun == 2


def test_a_server_that_never_answers_is_not_felt(run: str, tmp_path: Path, server: WandbServer) -> None:
    """The run is finished while the process beside it still waits for its first answer."""
    server.silent.set()
    machine = begin_box(run, tmp_path / "work", server.environment)
    try:
        wait_for_journal(run, "finished", 1)
    finally:
        take_away(machine)
    assert server.everything and not server.curves
    assert [step.step for step in read_metrics(open_store(run))[0]] == list(range(1, STEPS + 1))
