"""Two machines of two processes are one attempt: it computes what one machine of four does, and ends as one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.trainer.nodes import Machine, start, until
from tests.trainer.runs import create_run, write_corpus
from trainer.artifacts.journal import RunEvent, read_journal
from trainer.artifacts.layout import JOURNAL, parse_journal_key
from trainer.artifacts.metrics import read_metrics
from trainer.artifacts.store import open_store
from trainer.artifacts.validity import valid_manifests

STEPS = 60


def numbers(run: Path) -> list[tuple[int, str, str, str]]:
    """What must be the same, bit for bit, wherever it was computed."""
    steps = read_metrics(open_store(str(run)))[0]
    return [(step.step, step.loss.hex(), step.grad_norm.hex(), step.batch) for step in steps]


def journal(run: Path, *kinds: str, attempt: int = 0) -> list[RunEvent]:
    events = read_journal(open_store(str(run)))
    return [event for event in events if event.kind in kinds and attempt in (0, event.attempt)]


def durable(run: Path, attempt: int) -> bool:
    """Whether this attempt has made a checkpoint; from the names of the events alone, as that is quick."""
    keys = [parse_journal_key(entry.key) for entry in open_store(str(run)).list(JOURNAL)]
    return any(key and (key.attempt, key.kind) == (attempt, "checkpoint") for key in keys)


def ends(machines: list[Machine]) -> list[int]:
    return [machine.end() for machine in machines]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "train.jsonl", 100)


@pytest.fixture(scope="module")
def on_one_machine(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> list[tuple[int, str, str, str]]:
    """The numbers of four processes on one machine, undisturbed."""
    folder = tmp_path_factory.mktemp("one")
    create_run(str(folder / "runs/one"), corpus, parallel__processes=4, train__max_steps=STEPS)
    machine = Machine(folder / "runs/one", folder / "work", {})
    assert machine.end() == 0, machine.output
    return numbers(folder / "runs/one")


@pytest.fixture
def run(tmp_path: Path, corpus: Path) -> Path:
    create_run(str(tmp_path / "runs/two"), corpus, parallel__processes=2, train__max_steps=STEPS)
    return tmp_path / "runs/two"


def test_two_machines_compute_what_one_with_as_many_processes_does(
    run: Path, tmp_path: Path, on_one_machine: list[tuple[int, str, str, str]]
) -> None:
    machines = start(run, tmp_path / "work")

    assert ends(machines) == [0, 0], machines[0].output
    assert numbers(run) == on_one_machine
    assert [event.data["world_size"] for event in journal(run, "started")] == [4]
    assert len(journal(run, "finished")) == 1


def test_an_attempt_ends_on_all_machines_however_one_of_them_ends_and_the_next_goes_on_bit_for_bit(
    run: Path, tmp_path: Path, on_one_machine: list[tuple[int, str, str, str]]
) -> None:
    """One after the other, so that one run stands for all: each end comes after a step of its attempt is durable.

    Slow: nine seconds of it are the silence after which a stopped machine counts as gone.
    """

    def attempt(number: int, end: Callable[[list[Machine]], None]) -> list[Machine]:
        machines = start(run, tmp_path / f"work-{number}")
        until(lambda: durable(run, number), machines)
        end(machines)
        return machines

    machines = attempt(1, lambda machines: machines[1].kill_a_rank())
    assert ends(machines) == [1, 1]
    (failed,) = journal(run, "failed")
    assert failed.data["error"] == "node 1 (127.0.0.2): rank 3 died (SIGKILL)"

    machines = attempt(2, lambda machines: machines[1].signal(signal.SIGKILL))
    assert ends(machines) == [75, -signal.SIGKILL], machines[0].output
    assert "node 1 (127.0.0.2) is gone" in machines[0].output

    machines = attempt(3, lambda machines: machines[0].signal(signal.SIGKILL))
    assert ends(machines) == [-signal.SIGKILL, 75], machines[1].output

    machines = attempt(4, lambda machines: machines[1].notify())
    assert ends(machines) == [75, 75]
    (preempted,) = journal(run, "preempted", attempt=4)
    assert preempted.data["step"] == preempted.data["durable_step"]

    machines = attempt(5, lambda machines: machines[1].signal(signal.SIGSTOP))
    assert machines[0].end() == 75
    assert "node 1 (127.0.0.2) is gone: not a word for 10 s" in machines[0].output
    machines[1].signal(signal.SIGCONT)
    assert machines[1].end() == 75, "who wakes up later than all others finds the attempt over"

    newest = valid_manifests(open_store(str(run)))[0].files[0]
    (run / newest.key).write_bytes(bytes(newest.size))
    assert ends(start(run, tmp_path / "work-6")) == [0, 0]
    assert len(journal(run, "fallback")) == 1, "both machines went on from the checkpoint before"
    assert numbers(run) == on_one_machine
    assert len(journal(run, "failed")) == 1, "a machine that is taken is no failure"


def test_a_machine_that_cannot_prepare_ends_the_others_with_its_words(run: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work/node-1").write_text("a file where its work folder should be")
    machines = start(run, tmp_path / "work")

    assert ends(machines) == [1, 1]
    assert [event.data["error"][:42] for event in journal(run, "failed")] == [
        "node 1 (127.0.0.2): NotADirectoryError: [E"
    ]
    assert not journal(run, "started")


def test_what_the_head_cannot_use_ends_the_others_too(run: Path, tmp_path: Path) -> None:
    shutil.rmtree(run / "blob")  # the corpus
    machines = start(run, tmp_path / "work")

    assert ends(machines) == [1, 1]
    assert len(journal(run, "failed")) == 1
    assert "Error: node 0 (127.0.0.1): " in machines[1].output


def test_a_machine_that_does_not_appear_is_named(run: Path, tmp_path: Path) -> None:
    addresses = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
    machines = start(run, tmp_path / "work", addresses=addresses, ranks=(0, 1), patience_s=0.5)

    assert ends(machines) == [3, 3]
    assert "Error: node 0 (127.0.0.1): node 2 (127.0.0.3) did not appear within 0.5 s" in machines[1].output
    assert len(journal(run, "failed")) == 1


def test_a_machine_that_finds_no_head_says_where_it_looked(run: Path, tmp_path: Path) -> None:
    (machine,) = start(run, tmp_path / "work", ranks=(1,), patience_s=0.5)

    assert machine.end() == 3
    assert "node 1 (127.0.0.2) found no head at 127.0.0.1 port " in machine.output
    assert not journal(run, "failed"), "only the head writes"


def test_a_machine_that_is_told_to_leave_while_it_waits_takes_the_others_with_it(
    run: Path, tmp_path: Path
) -> None:
    addresses = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
    machines = start(run, tmp_path / "work", addresses=addresses, ranks=(0, 1))
    until(lambda: "node 1 (127.0.0.2) is here" in machines[0].output, machines)
    machines[1].notify()

    assert ends(machines) == [75, 75]
    assert not journal(run, "failed")


def ip(*words: str) -> bool:
    return subprocess.run(["ip", *words], capture_output=True).returncode == 0


@pytest.fixture
def cable() -> Iterator[tuple[str, str]]:
    """Two network namespaces with one cable between them: 10.77.0.1 and 10.77.0.2."""
    names = (f"vlaunch-{os.getpid()}-0", f"vlaunch-{os.getpid()}-1")
    try:
        if not (shutil.which("ip") and all(ip("netns", "add", name) for name in names)):
            pytest.skip("network namespaces need root and iproute2")
        assert ip("-n", names[0], "link", "add", "end0", "type", "veth", "peer", "end1", "netns", names[1])
        for number, name in enumerate(names):
            assert ip("-n", name, "address", "add", f"10.77.0.{number + 1}/24", "dev", f"end{number}")
            assert ip("-n", name, "link", "set", f"end{number}", "up") and ip(
                "-n", name, "link", "set", "lo", "up"
            )
        yield names
    finally:
        for name in names:
            ip("netns", "delete", name)


def test_two_networks_form_one_attempt_and_both_notice_that_the_cable_is_pulled(
    run: Path, tmp_path: Path, cable: tuple[str, str]
) -> None:
    """The ranks find the interface that has their node's address, and nothing listens on any other address.

    Slow: ten seconds of it are the silence after which a machine counts as gone.
    """
    machines = start(run, tmp_path / "work", addresses=("10.77.0.1", "10.77.0.2"), namespaces=cable)
    until(lambda: durable(run, 1), machines)
    listening = subprocess.run(
        ["ip", "netns", "exec", cable[0], "cat", "/proc/net/tcp", "/proc/net/tcp6"],
        capture_output=True,
        text=True,
    ).stdout
    assert ip("-n", cable[0], "link", "set", "end0", "down")

    assert ends(machines) == [75, 75]
    assert "node 1 (10.77.0.2) is gone" in machines[0].output
    assert "node 0 (10.77.0.1) is gone" in machines[1].output
    found = {line.split()[1].split(":")[0] for line in listening.splitlines() if line.split()[3] == "0A"}
    assert found == {"01004D0A"}, "10.77.0.1 in the byte order of /proc"
