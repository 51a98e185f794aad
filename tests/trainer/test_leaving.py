"""A notice ends an attempt with its last step saved where there is time, and the next attempt goes on bit-identically.

Real boxes (the whole program: supervisor, watcher, ranks) beside metadata services as strict as those of the clouds.
Nothing is saved on the way, so what is durable is what the notice saved.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.boxes import REPOSITORY
from tests.trainer.killing import begin_box
from tests.trainer.metadata_servers import AwsService, AzureService, GcpService, MetadataService
from tests.trainer.nodes import ADDRESSES, Machine, free_port, until
from tests.trainer.runs import create_run, write_corpus
from tests.trainer.test_exact_resume import exported, numbers
from trainer.artifacts.journal import RunEvent, read_journal
from trainer.artifacts.store import open_store

PREEMPTED = 75
PATIENCE_S = 120.0
STEPS = 120
# Saves that no run of this length makes.
NEVER: dict[str, Any] = {"checkpoint__save_steps": 1000, "train__max_steps": STEPS, "train__eval_steps": 1000}
SERVICES: dict[str, type[Any]] = {"aws": AwsService, "gcp": GcpService, "azure": AzureService}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "train.jsonl", 100)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> dict[int, Path]:
    """By number of processes, a run that is never told to leave."""
    folder = tmp_path_factory.mktemp("undisturbed")
    runs = {processes: folder / f"runs/whole-{processes}" for processes in (1, 2)}
    for processes, run in runs.items():
        create_run(str(run), corpus, parallel__processes=processes, **NEVER)
        assert end_of(Box(run, folder / f"work-{processes}")) == 0
    return runs


class Box:
    """A running box and what its run's journal says."""

    def __init__(self, run: Path, workdir: Path, cloud: str = "none", service: MetadataService | None = None):
        environment = {"VLAUNCH_CLOUD": cloud, "VLAUNCH_NOTICE_POLL_S": "0.2"}
        if service is not None:
            environment["VLAUNCH_METADATA_URL"] = service.url
        self.store = open_store(str(run))
        self.known = {event.key for event in read_journal(self.store)}
        self.log = workdir.with_suffix(".log")
        self.process = begin_box(str(run), workdir, environment)

    def events(self, kind: str) -> list[RunEvent]:
        """Of this attempt."""
        return [e for e in read_journal(self.store) if e.kind == kind and e.key not in self.known]

    def wait_for(self, kind: str) -> RunEvent:
        deadline = time.monotonic() + PATIENCE_S
        while not (found := self.events(kind)):
            assert self.process.is_alive() and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.005)
        return found[0]


def end_of(box: Box) -> int | None:
    """The exit code."""
    box.process.join(PATIENCE_S)
    assert not box.process.is_alive(), box.log.read_text()
    return box.process.exitcode


@pytest.mark.parametrize(("cloud", "processes"), [("aws", 1), ("gcp", 1), ("azure", 2)])
def test_the_step_of_the_notice_is_saved_and_the_next_attempt_goes_on_bit_identically(
    tmp_path: Path,
    corpus: Path,
    undisturbed: dict[int, Path],
    served: Callable[[Any], Any],
    cloud: str,
    processes: int,
) -> None:
    run = tmp_path / "runs/told"
    create_run(str(run), corpus, parallel__processes=processes, **NEVER)
    service = served(SERVICES[cloud]())
    box = Box(run, tmp_path / "work-1", cloud, service)
    box.wait_for("training")
    service.interrupt({"aws": 120.0}.get(cloud, 30.0))

    assert end_of(box) == PREEMPTED

    (notice,), (left,) = box.events("notice"), box.events("preempted")
    assert 0 < left.data["step"] < STEPS
    assert left.data == {"step": notice.data["step"], "durable_step": notice.data["step"], "lost_steps": 0}
    assert notice.data["source"].startswith(f"{cloud}: ")
    assert 20 < notice.data["left_s"] < {"aws": 120}.get(cloud, 30)
    assert [saved.data["step"] for saved in box.events("checkpoint")] == [left.data["step"]]
    follower = Box(run, tmp_path / "work-2")
    assert end_of(follower) == 0
    assert follower.events("started")[0].data["resumed_from"] == left.data["step"]
    assert numbers(str(run)) == numbers(str(undisturbed[processes]))
    assert exported(run) == exported(undisturbed[processes])


def test_a_notice_that_is_shorter_than_a_save_keeps_the_last_commit(
    tmp_path: Path, corpus: Path, undisturbed: dict[int, Path], served: Callable[[Any], Any]
) -> None:
    run = tmp_path / "runs/short"
    create_run(str(run), corpus, **NEVER | {"checkpoint__save_steps": 25})
    service = served(AwsService())
    box = Box(run, tmp_path / "work-1", "aws", service)
    box.wait_for("checkpoint")
    service.interrupt(0)

    assert end_of(box) == PREEMPTED

    (notice,), (left,) = box.events("notice"), box.events("preempted")
    assert notice.data["left_s"] < notice.data["save_s"]
    assert left.data["durable_step"] % 25 == 0 and left.data["durable_step"] > 0
    assert left.data["lost_steps"] == left.data["step"] - left.data["durable_step"]
    assert {saved.data["step"] % 25 for saved in box.events("checkpoint")} == {0}
    assert end_of(Box(run, tmp_path / "work-2")) == 0
    assert numbers(str(run)) == numbers(str(undisturbed[1]))


def test_a_rebalance_recommendation_alone_saves_once_and_training_goes_on_to_its_end(
    tmp_path: Path, corpus: Path, undisturbed: dict[int, Path], served: Callable[[Any], Any]
) -> None:
    run = tmp_path / "runs/advised"
    create_run(str(run), corpus, **NEVER)
    service = served(AwsService())
    box = Box(run, tmp_path / "work", "aws", service)
    box.wait_for("training")
    service.recommend_rebalance()

    assert end_of(box) == 0

    (warning,) = box.events("warning")
    early, last = box.events("checkpoint")
    assert warning.data["source"].startswith("aws: rebalance recommended at ")
    assert warning.data["step"] <= early.data["step"] < STEPS == last.data["step"]
    assert not box.events("notice")
    assert numbers(str(run)) == numbers(str(undisturbed[1]))


@pytest.mark.parametrize("cloud", ["aws", "azure"])
def test_a_notice_that_is_taken_back_after_the_run_heard_of_it_still_ends_the_attempt(
    tmp_path: Path, corpus: Path, served: Callable[[Any], Any], cloud: str
) -> None:
    """Half of the ranks may have left by then. It costs a restart, no work."""
    run = tmp_path / "runs/reprieved"
    create_run(str(run), corpus, **NEVER)
    service = served(SERVICES[cloud]())
    box = Box(run, tmp_path / "work", cloud, service)
    box.wait_for("training")
    service.interrupt(60)
    box.wait_for("notice")
    if isinstance(service, AwsService):
        service.action = None
    elif isinstance(service, AzureService):
        service.cancel()

    assert end_of(box) == PREEMPTED
    assert box.events("preempted")[0].data["lost_steps"] == 0


def test_an_event_of_azure_that_is_cancelled_while_it_is_far_off_costs_one_save(
    tmp_path: Path, corpus: Path, served: Callable[[Any], Any]
) -> None:
    run = tmp_path / "runs/cancelled"
    create_run(str(run), corpus, **NEVER | {"train__max_steps": 3 * STEPS})  # two looks have to fit in
    service = served(AzureService())
    box = Box(run, tmp_path / "work", "azure", service)
    box.wait_for("training")
    service.schedule("Redeploy", 900)
    box.wait_for("warning")
    service.cancel()

    assert end_of(box) == 0

    told = [event.data["source"] for event in box.events("warning")]
    assert told[0].startswith("azure: Redeploy not before ")
    assert told[1:] == [f"{told[0]}: taken back"]
    assert len(box.events("checkpoint")) == 2


def test_a_machine_that_is_already_being_taken_is_left_before_anything_is_prepared(
    tmp_path: Path, corpus: Path, served: Callable[[Any], Any]
) -> None:
    run = tmp_path / "runs/late"
    create_run(str(run), corpus, **NEVER)
    service = served(GcpService())
    service.interrupt()
    box = Box(run, tmp_path / "work", "gcp", service)

    assert end_of(box) == PREEMPTED
    assert not box.events("failed")


@pytest.mark.parametrize(("cloud", "fault"), [("aws", "hangs"), ("gcp", "html"), ("azure", "drips")])
def test_a_metadata_service_that_fails_does_not_touch_the_run(
    tmp_path: Path,
    corpus: Path,
    undisturbed: dict[int, Path],
    served: Callable[[Any], Any],
    cloud: str,
    fault: str,
) -> None:
    """The faults one by one are in test_notices; here the whole box lives beside one that hangs and one that talks."""
    run = tmp_path / "runs/deaf"
    create_run(str(run), corpus, **NEVER)
    service = served(SERVICES[cloud]())
    service.fault = fault
    box = Box(run, tmp_path / "work", cloud, service)

    assert end_of(box) == 0
    assert not box.events("notice") and not box.events("warning")
    assert "Traceback" not in box.log.read_text()
    assert numbers(str(run)) == numbers(str(undisturbed[1]))


def test_what_one_of_several_machines_hears_all_heed_and_none_saves_where_one_has_no_time(
    tmp_path: Path, corpus: Path, served: Callable[[Any], Any]
) -> None:
    """The second machine alone is warned, and then taken at once; the first, which leads, knows of nothing."""
    run = tmp_path / "runs/gang"
    create_run(str(run), corpus, **NEVER)
    service = served(AwsService())
    shared = {
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_IPS": "\n".join(ADDRESSES),
        "VLAUNCH_RENDEZVOUS_PORT": str(free_port()),
    }
    told = {
        "VLAUNCH_CLOUD": "aws",
        "VLAUNCH_METADATA_URL": service.url,
        "VLAUNCH_NOTICE_POLL_S": "0.2",
    }
    machines = [
        Machine(run, tmp_path / "node-0", shared | {"SKYPILOT_NODE_RANK": "0"}),
        Machine(run, tmp_path / "node-1", shared | {"SKYPILOT_NODE_RANK": "1"} | told),
    ]

    def said(kind: str) -> list[RunEvent]:
        return [event for event in read_journal(open_store(str(run))) if event.kind == kind]

    until(lambda: bool(said("training")), machines)
    service.recommend_rebalance()
    until(lambda: bool(said("checkpoint")), machines)
    service.interrupt(0)

    assert [machine.end() for machine in machines] == [PREEMPTED, PREEMPTED], machines[0].output
    (early,), (left,) = said("checkpoint"), said("preempted")
    assert left.data["durable_step"] == early.data["step"] < left.data["step"]


def test_sigterm_is_the_notice_of_slurm_and_kubernetes(tmp_path: Path, corpus: Path) -> None:
    """`python -m trainer` as a machine starts it: an interpreter of its own, a signal from outside."""
    run = tmp_path / "runs/job"
    create_run(str(run), corpus, **NEVER)
    store = open_store(str(run))
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer", "--run", str(run), "--workdir", str(tmp_path / "work")],
        env=environment | {"VLAUNCH_CLOUD": "none", "VLAUNCH_NOTICE_S": "45"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    while not any(event.kind == "training" for event in read_journal(store)):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)  # Slurm signals every process of a job step

    said, _ = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == PREEMPTED, said.decode()
    notice = next(event for event in read_journal(store) if event.kind == "notice")
    left = next(event for event in read_journal(store) if event.kind == "preempted")
    assert notice.data["source"] == "SIGTERM" and 30 < notice.data["left_s"] <= 44
    assert left.data["lost_steps"] == 0


def test_a_wrong_variable_is_one_sentence_and_exit_code_2(tmp_path: Path, corpus: Path) -> None:
    run = tmp_path / "runs/misspelled"
    create_run(str(run), corpus, **NEVER)
    box = Box(run, tmp_path / "work", "asw")

    assert end_of(box) == 2
    said = box.log.read_text()
    assert "Error: VLAUNCH_CLOUD=asw is no cloud" in said and "Traceback" not in said
