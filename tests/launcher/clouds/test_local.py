"""The main job as a user runs it: the command line, a keeper of its own, real machines that are taken away.

Each machine is a process group that starts Python and imports torch, so a life costs some seconds of CPU; these
tests do much in one run for that reason. What is exact is proved in tests/trainer; here it is shown to hold through
every layer.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from launcher.clouds import local_keeper as keeper
from launcher.clouds.local import LocalCloud
from launcher.clouds.local_keeper import MACHINE, PID
from launcher.clouds.local_machine import process_start
from launcher.render import run_uri, trusted_task
from launcher.runs.follow import conclude
from launcher.shipment import Shipment
from tests.conftest import Ran
from tests.trainer.runs import write_corpus
from trainer.artifacts.journal import RunEvent, read_journal
from trainer.artifacts.layout import BLOBS, TASK
from trainer.artifacts.store import open_store
from trainer.errors import NotReady, VlaunchError

Vlaunch = Callable[..., Ran]

SHAPE = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "tie_word_embeddings": True,
}
PATIENCE_S = 90.0


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "chats.jsonl")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    """A store whose runs are ended with the test, whatever became of it."""
    uri = (tmp_path / "store").as_uri()
    yield uri
    for name in open_store(uri).children("runs/"):
        LocalCloud().stop(run_uri(uri, name))
        until(lambda name=name: not LocalCloud().alive(run_uri(uri, name)))  # type: ignore[misc]


def train(corpus: Path, store: str, *more: object, steps: int = 40) -> list[object]:
    """A command line of `train` for a model that learns a step in some hundredths of a second."""
    settings = {
        "model.shape": json.dumps(SHAPE),
        "vocab_size": "384",
        "model.dropout": "0.1",
        "threads": "1",
        "max_new_tokens": "0",
        "logging_seconds": "0.1",
        "save_strategy": "steps",
        "save_steps": "5",
    }
    pairs = [item for key, value in settings.items() for item in ("--set", f"{key}={value}")]
    return [
        "train", "--size", "tiny", "--data", corpus, "--max-length", 96, "--max-steps", steps, "--store", store,
        *pairs, "--yes", *more,
    ]  # fmt: skip


def until(true: Callable[[], bool]) -> None:
    """Wait for a fact that another process brings about; fails instead of hanging."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def events(store: str, name: str) -> list[RunEvent]:
    return read_journal(open_store(run_uri(store, name)))


def kinds(store: str, name: str) -> list[str]:
    return [event.kind for event in events(store, name)]


def kinds_of(store: str, name: str, attempt: int) -> list[str]:
    return [event.kind for event in events(store, name) if event.attempt == attempt]


def rank_of(store: str, name: str) -> int | None:
    """The process that trains: the one child of the machine's leader."""
    try:
        leader = json.loads((LocalCloud().home(run_uri(store, name)) / MACHINE).read_text())["pid"]
        children = Path(f"/proc/{leader}/task/{leader}/children").read_text().split()
    except (OSError, KeyError):
        return None
    return int(children[0]) if children else None


def step_lines(vlaunch: Vlaunch, store: str, name: str) -> list[dict[str, Any]]:
    done = vlaunch("metrics", name, "--store", store, "--json")
    assert done.code == 0
    lines = [json.loads(line) for line in done.out.splitlines()]
    return [{key: value for key, value in line.items() if key != "attempt"} for line in lines]


def kill_keeper(store: str, name: str) -> None:
    """kill -9, and until the kernel has let go of its lock."""
    os.kill(int((LocalCloud().home(run_uri(store, name)) / PID).read_text()), signal.SIGKILL)
    until(lambda: not LocalCloud().alive(run_uri(store, name)))


def vanish(store: str, name: str) -> None:
    """The machine of the run is gone from one instant to the next, as when a cloud takes it without notice."""
    machine = json.loads((LocalCloud().home(run_uri(store, name)) / MACHINE).read_text())
    os.killpg(machine["pid"], signal.SIGKILL)


def test_a_run_whose_machines_vanish_leaves_the_region_each_time_and_equals_the_undisturbed_run(
    vlaunch: Vlaunch, corpus: Path, store: str
) -> None:
    calm = vlaunch(*train(corpus, store, "--name", "calm", "--json", steps=300))
    assert vlaunch(*train(corpus, store, "--name", "spot", "--spot", "--detach", steps=300)).code == 0
    for attempt in (1, 2):
        until(lambda attempt=attempt: "checkpoint" in kinds_of(store, "spot", attempt))  # type: ignore[misc]
        vanish(store, "spot")
    until(lambda: "finished" in kinds(store, "spot"))
    until(lambda: not LocalCloud().alive(run_uri(store, "spot")))

    assert calm.code == 0 and calm.json["state"] == "finished"
    spot = vlaunch("status", "spot", "--store", store, "--json").json
    assert (spot["state"], spot["preemptions"], spot["failovers"]) == ("finished", 2, 2)
    assert step_lines(vlaunch, store, "spot") == step_lines(vlaunch, store, "calm")
    assert "nothing was paid" in vlaunch("cost-report", "spot", "--store", store).out


def test_the_market_takes_a_machine_with_a_notice_and_the_last_step_is_saved(
    vlaunch: Vlaunch, corpus: Path, store: str
) -> None:
    asked = ["--name", "taken", "--spot", "--preempt-every", "12s,1s", "--notice", "60s", "--detach"]
    assert vlaunch(*train(corpus, store, *asked, steps=100_000)).code == 0
    until(lambda: "preempted" in kinds(store, "taken"))
    until(lambda: kinds(store, "taken").count("requested") >= 2)

    left = next(event for event in events(store, "taken") if event.kind == "preempted")
    assert left.data["durable_step"] == left.data["step"]
    regions = [event.data["region"] for event in events(store, "taken") if event.kind == "requested"]
    assert regions[0] != regions[1]


def test_a_run_that_finishes_while_its_machine_is_being_taken_is_finished(tmp_path: Path) -> None:
    assert keeper._reason(0) == "finished"
    assert keeper._reason(75) == keeper._reason(-9) == "preempted"
    assert keeper._reason(1) == "failed"


def test_a_machine_that_fails_is_replaced_a_few_times_as_long_as_nothing_is_gained(
    vlaunch: Vlaunch, corpus: Path, store: str, tmp_path: Path
) -> None:
    """A rank that dies is no reason to give up; three times in a row without a checkpoint is."""
    assert vlaunch(*train(corpus, store, "--name", "sick", "--detach", steps=100_000)).code == 0
    for attempt in (1, 2, 3):
        until(lambda attempt=attempt: "started" in kinds_of(store, "sick", attempt))  # type: ignore[misc]
        until(lambda: rank_of(store, "sick") is not None)
        os.kill(rank_of(store, "sick") or 0, signal.SIGKILL)
        until(lambda attempt=attempt: "ended" in kinds_of(store, "sick", attempt))  # type: ignore[misc]
    until(lambda: not LocalCloud().alive(run_uri(store, "sick")))

    assert [e.data["reason"] for e in events(store, "sick") if e.kind == "ended"] == ["failed"] * 3
    assert vlaunch("status", "sick", "--store", store, "--json").json["state"] == "failed"


def test_a_run_outlives_its_keeper_and_the_laptops_memory(
    vlaunch: Vlaunch, corpus: Path, store: str, isolated: Path
) -> None:
    """kill -9 of the keeper, then everything this machine knew is deleted: the store alone says it all."""
    assert vlaunch(*train(corpus, store, "--name", "orphan", "--detach", steps=3000)).code == 0
    home = LocalCloud().home(run_uri(store, "orphan"))
    until(lambda: "checkpoint" in kinds(store, "orphan"))
    kill_keeper(store, home.name.rpartition("-")[0])
    machine = json.loads((home / MACHINE).read_text())
    os.killpg(machine["pid"], signal.SIGKILL)  # the laptop is gone with all it ran
    until(lambda: process_start(machine["pid"]) is None)
    shutil.rmtree(isolated / "state")

    seen = vlaunch("status", "orphan", "--store", store, "--json")
    assert seen.code == 0 and seen.json["durable_step"] >= 5
    assert vlaunch("runs", "--store", store, "--json").json["runs"][0]["run"] == "orphan"

    assert vlaunch("resume", "orphan", "--store", store, "--detach").code == 0
    until(lambda: kinds(store, "orphan").count("training") == 2)
    assert vlaunch("stop", "orphan", "--store", store).code == 0
    restarted = [event for event in events(store, "orphan") if event.kind == "started"][-1]
    assert restarted.data["resumed_from"] >= seen.json["durable_step"]


def test_resume_takes_away_the_machine_that_a_killed_keeper_left_running(
    vlaunch: Vlaunch, corpus: Path, store: str
) -> None:
    assert vlaunch(*train(corpus, store, "--name", "left", "--detach", steps=3000)).code == 0
    home = LocalCloud().home(run_uri(store, "left"))
    until(lambda: "training" in kinds(store, "left"))
    kill_keeper(store, home.name.rpartition("-")[0])
    machine = json.loads((home / MACHINE).read_text())
    assert process_start(machine["pid"]) == machine["started"]

    assert vlaunch("resume", "left", "--store", store, "--detach").code == 0
    until(lambda: kinds(store, "left").count("running") == 2)

    until(lambda: process_start(machine["pid"]) != machine["started"])
    assert [e.data["reason"] for e in events(store, "left") if e.kind == "ended"] == ["orphaned"]


def test_stop_takes_away_the_machine_that_a_killed_keeper_left_running(
    vlaunch: Vlaunch, corpus: Path, store: str
) -> None:
    assert vlaunch(*train(corpus, store, "--name", "alone", "--detach", steps=3000)).code == 0
    home = LocalCloud().home(run_uri(store, "alone"))
    until(lambda: "running" in kinds(store, "alone"))
    kill_keeper(store, home.name.rpartition("-")[0])
    machine = json.loads((home / MACHINE).read_text())

    stopped = vlaunch("stop", "alone", "--store", store, "--json")

    assert stopped.json["was_running"] is True and stopped.json["state"] == "stopped"
    until(lambda: process_start(machine["pid"]) != machine["started"])


def test_train_says_that_nobody_looks_after_a_run_whose_keeper_died(
    vlaunch: Vlaunch, vlaunch_process: Vlaunch, corpus: Path, store: str
) -> None:
    assert vlaunch(*train(corpus, store, "--name", "lost", "--detach", steps=100_000)).code == 0
    kill_keeper(store, "lost")

    with pytest.raises(VlaunchError) as error:
        conclude(click.Context(click.Command("train")), store, "lost")

    assert "nobody looks after it any more" in error.value.message and "resume lost" in (
        error.value.hint or ""
    )


def test_a_task_in_the_store_that_runs_other_commands_is_refused(
    vlaunch: Vlaunch, corpus: Path, store: str, tmp_path: Path
) -> None:
    assert vlaunch(*train(corpus, store, "--name", "evil", "--detach", steps=100_000)).code == 0
    until(lambda: "running" in kinds(store, "evil"))
    vlaunch("stop", "evil", "--store", store)
    run = open_store(run_uri(store, "evil"))
    run.put(
        TASK,
        run.get(TASK).replace(
            b"exec python3", b"touch " + str(tmp_path / "owned").encode() + b"; exec python3"
        ),
    )

    with pytest.raises(NotReady, match="would run other commands"):
        trusted_task(run.get(TASK), run.uri, Shipment())


def test_stop_saves_the_last_step_and_resume_goes_on_from_it(
    vlaunch: Vlaunch, corpus: Path, store: str
) -> None:
    assert vlaunch(*train(corpus, store, "--name", "pause", "--detach", steps=600)).code == 0
    until(lambda: "training" in kinds(store, "pause"))
    second = vlaunch(*train(corpus, store, "--name", "pause", steps=600))
    assert second.code == 3 and "running already" in second.err

    stopped = vlaunch("stop", "pause", "--store", store, "--json")
    assert stopped.code == 0 and stopped.json["state"] == "stopped"
    left = next(event for event in events(store, "pause") if event.kind == "preempted")
    assert left.data["durable_step"] == left.data["step"] == stopped.json["durable_step"]

    assert vlaunch("resume", "pause", "--store", store).code == 0
    lines = step_lines(vlaunch, store, "pause")
    assert [line["step"] for line in lines] == list(range(1, 601))
    assert vlaunch("logs", "pause", "--store", store).out.count("resuming after step") == 1


@pytest.mark.parametrize("damage", ["a flipped bit", "a lost tail"])
def test_a_damaged_checkpoint_is_passed_over_and_said_so(
    vlaunch: Vlaunch, corpus: Path, store: str, damage: str
) -> None:
    assert vlaunch(*train(corpus, store, "--name", "bitten", "--detach", steps=100_000)).code == 0
    until(lambda: kinds(store, "bitten").count("checkpoint") >= 3)
    assert vlaunch("stop", "bitten", "--store", store).code == 0
    before = step_lines(vlaunch, store, "bitten")
    run = open_store(run_uri(store, "bitten"))
    newest = max(int(e.data["step"]) for e in events(store, "bitten") if e.kind == "checkpoint")
    manifest = next(json.loads(run.get(e.key)) for e in run.list(f"manifest/{newest:012d}"))
    blob = Path(run_uri(store, "bitten").removeprefix("file://")) / BLOBS / manifest["files"][0]["blob"]
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data if damage == "a flipped bit" else data[:-5])

    assert vlaunch("resume", "bitten", "--store", store, "--detach").code == 0
    until(
        lambda: any(e.kind == "checkpoint" and e.data["step"] >= newest for e in events(store, "bitten")[-8:])
    )
    until(lambda: max(e.data["step"] for e in events(store, "bitten") if e.kind == "checkpoint") > newest)
    assert vlaunch("stop", "bitten", "--store", store).code == 0

    assert kinds(store, "bitten").count("fallback") == 1
    assert "is damaged, using the one before" in vlaunch("logs", "bitten", "--store", store).out
    # What was lost is computed again, to the last bit.
    assert step_lines(vlaunch, store, "bitten")[: len(before)] == before


def test_a_budget_ends_the_run_with_its_work_saved_and_exit_code_5(
    vlaunch: Vlaunch, corpus: Path, store: str
) -> None:
    # m6i.large on demand is $0.096 an hour: six ten-thousandths of a dollar are about 22 seconds.
    done = vlaunch(
        *train(corpus, store, "--name", "poor", "--max-cost", "0.0006", "--notice", "0", steps=100_000)
    )

    assert done.code == 5 and "the budget of $0.0006 is spent" in done.err
    left = next(event for event in events(store, "poor") if event.kind == "preempted")
    assert left.data["durable_step"] == left.data["step"] > 0  # asked to stop, not taken: it may save

    again = vlaunch("resume", "poor", "--store", store)
    assert (
        again.code == 5 and kinds(store, "poor").count("requested") == 1
    )  # no machine is paid for to say so
    assert vlaunch("resume", "poor", "--store", store, "--max-cost", "5", "--detach").code == 0
    until(lambda: kinds(store, "poor").count("training") == 2)


def test_a_run_waits_where_the_traces_have_no_machine_and_goes_on_where_they_have_one(
    vlaunch: Vlaunch, corpus: Path, store: str, tmp_path: Path
) -> None:
    """us-west-2a is up for 3 s, then nothing for 3 s, then us-east-1a for the rest."""
    west = tmp_path / "us-west-2a_v100_1.json"
    east = tmp_path / "us-east-1a_v100_1.json"
    west.write_text(json.dumps({"metadata": {"gap_seconds": 3}, "data": [1] + [0] * 1000}))
    east.write_text(json.dumps({"metadata": {"gap_seconds": 3}, "data": [0] * 2 + [1] * 999}))
    asked = ["--name", "traced", "--spot", "--notice", "0", "--time-scale", "1", "--detach"]

    assert vlaunch(
        *train(corpus, store, *asked, "--spot-trace", west, "--spot-trace", east, steps=100_000)
    ).code == 0  # fmt: skip
    until(lambda: "training" in kinds_of(store, "traced", 2))

    regions = [e.data["region"] for e in events(store, "traced") if e.kind == "requested"]
    assert regions == ["us-west-2", "us-east-1"]
    assert "no_capacity" in kinds(store, "traced")


def test_a_box_that_fails_ends_the_run_with_its_own_words(vlaunch: Vlaunch, corpus: Path, store: str) -> None:
    shape = json.dumps({**SHAPE, "model_type": "no-such"})
    done = vlaunch(*train(corpus, store, "--name", "broken", "--set", f"model.shape={shape}"))

    assert done.code == 2
    assert "no-such" in done.err and "Traceback" not in done.err
    assert vlaunch("status", "broken", "--store", store, "--json").json["state"] == "failed"
