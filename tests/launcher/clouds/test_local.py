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

import pytest

from launcher.clouds.local import LocalCloud
from launcher.clouds.local_keeper import MACHINE, PID
from launcher.clouds.local_machine import process_start
from launcher.render import run_uri
from tests.conftest import Ran
from tests.trainer.runs import write_corpus
from trainer.artifacts.journal import RunEvent, read_journal
from trainer.artifacts.layout import BLOBS
from trainer.artifacts.store import open_store

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


def step_lines(vlaunch: Vlaunch, store: str, name: str) -> list[dict[str, Any]]:
    done = vlaunch("metrics", name, "--store", store, "--json")
    assert done.code == 0
    lines = [json.loads(line) for line in done.out.splitlines()]
    return [{key: value for key, value in line.items() if key != "attempt"} for line in lines]


def test_a_spot_run_leaves_the_region_at_each_preemption_and_equals_the_undisturbed_run(
    vlaunch: Vlaunch, corpus: Path, store: str
) -> None:
    calm = vlaunch(*train(corpus, store, "--name", "calm", "--json", steps=400))
    spot = vlaunch(
        *train(corpus, store, "--name", "spot", "--json", "--spot", "--preempt-every", "8s,1s", steps=400)
    )

    assert (calm.code, spot.code) == (0, 0), spot.err
    assert spot.json["state"] == "finished"
    assert spot.json["preemptions"] >= 1
    assert spot.json["failovers"] == spot.json["preemptions"]
    assert step_lines(vlaunch, store, "spot") == step_lines(vlaunch, store, "calm")
    bill = vlaunch("cost-report", "spot", "--store", store, "--json")
    assert bill.code == 0 and "nothing was paid" in vlaunch("cost-report", "spot", "--store", store).out


def test_a_run_outlives_its_keeper_and_the_laptops_memory(
    vlaunch: Vlaunch, corpus: Path, store: str, isolated: Path
) -> None:
    """kill -9 of the keeper, then everything this machine knew is deleted: the store alone says it all."""
    assert vlaunch(*train(corpus, store, "--name", "orphan", "--detach", steps=3000)).code == 0
    home = LocalCloud().home(run_uri(store, "orphan"))
    until(lambda: "checkpoint" in kinds(store, "orphan"))
    os.kill(int((home / PID).read_text()), signal.SIGKILL)
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
    os.kill(int((home / PID).read_text()), signal.SIGKILL)
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
    os.kill(int((home / PID).read_text()), signal.SIGKILL)
    machine = json.loads((home / MACHINE).read_text())

    stopped = vlaunch("stop", "alone", "--store", store, "--json")

    assert stopped.json["was_running"] is True and stopped.json["state"] == "stopped"
    until(lambda: process_start(machine["pid"]) != machine["started"])


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


def test_a_damaged_checkpoint_is_passed_over_and_the_curve_stays_the_same(
    vlaunch: Vlaunch, corpus: Path, store: str
) -> None:
    assert vlaunch(*train(corpus, store, "--name", "sound")).code == 0
    assert vlaunch(*train(corpus, store, "--name", "bitten", "--detach", steps=40)).code == 0
    until(lambda: kinds(store, "bitten").count("checkpoint") >= 3)
    vlaunch("stop", "bitten", "--store", store)
    run = open_store(run_uri(store, "bitten"))
    newest = max(int(e.data["step"]) for e in events(store, "bitten") if e.kind == "checkpoint")
    manifest = next(json.loads(run.get(e.key)) for e in run.list(f"manifest/{newest:012d}"))
    blob = Path(run_uri(store, "bitten").removeprefix("file://")) / BLOBS / manifest["files"][0]["blob"]
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)

    done = vlaunch("resume", "bitten", "--store", store)

    assert done.code == 0
    if newest < 40:
        assert "a checkpoint is damaged, using the one before" in done.err
    assert step_lines(vlaunch, store, "bitten") == step_lines(vlaunch, store, "sound")


def test_a_budget_ends_the_run_with_its_work_saved_and_exit_code_5(
    vlaunch: Vlaunch, corpus: Path, store: str
) -> None:
    # m6i.large on demand is $0.096 an hour: three ten-thousandths of a dollar are about eleven seconds.
    done = vlaunch(*train(corpus, store, "--name", "poor", "--max-cost", "0.0003", steps=100_000))

    assert done.code == 5 and "the budget of $0.0003 is spent" in done.err
    assert vlaunch("status", "poor", "--store", store, "--json").json["durable_step"] >= 5

    again = vlaunch("resume", "poor", "--store", store)
    assert (
        again.code == 5 and kinds(store, "poor").count("requested") == 1
    )  # no machine is paid for to say so
    assert vlaunch("resume", "poor", "--store", store, "--max-cost", "5", "--detach").code == 0
    until(lambda: kinds(store, "poor").count("training") == 2)


def test_a_run_waits_where_the_traces_have_no_machine_and_goes_on_where_they_have_one(
    vlaunch: Vlaunch, corpus: Path, store: str, tmp_path: Path
) -> None:
    """us-west-2a is up for 9 s, then nothing for 3 s, then us-east-1a for the rest."""
    west = tmp_path / "us-west-2a_v100_1.json"
    east = tmp_path / "us-east-1a_v100_1.json"
    west.write_text(json.dumps({"metadata": {"gap_seconds": 3}, "data": [1, 1, 1] + [0] * 100}))
    east.write_text(json.dumps({"metadata": {"gap_seconds": 3}, "data": [0] * 4 + [1] * 99}))

    done = vlaunch(
        *train(corpus, store, "--name", "traced", "--spot", "--json", "--notice", "0", "--time-scale", "1",
               "--spot-trace", west, "--spot-trace", east, steps=400)
    )  # fmt: skip

    assert done.code == 0, done.err
    regions = [e.data["region"] for e in events(store, "traced") if e.kind == "requested"]
    assert regions == ["us-west-2", "us-east-1"]
    assert "no_capacity" in kinds(store, "traced")


def test_a_box_that_fails_ends_the_run_with_its_own_words(vlaunch: Vlaunch, corpus: Path, store: str) -> None:
    shape = json.dumps({**SHAPE, "model_type": "no-such"})
    done = vlaunch(*train(corpus, store, "--name", "broken", "--set", f"model.shape={shape}"))

    assert done.code == 2
    assert "no-such" in done.err and "Traceback" not in done.err
    assert vlaunch("status", "broken", "--store", store, "--json").json["state"] == "failed"
