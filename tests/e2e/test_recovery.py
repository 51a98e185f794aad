"""Runs on real SkyPilot over two real Slurm clusters, started by the command line alone; machines are cancelled.

Each test takes minutes: a machine comes up in half a minute, and SkyPilot looks at it every five seconds.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e.slurm.rig import REGIONS, Rig, until

# A model that learns a step in some hundredths of a second: what takes time here is SkyPilot.
SMALL = {
    "model.shape": '{"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, '
    '"num_attention_heads": 4, "tie_word_embeddings": true}',
    "vocab_size": "384",
    "data.max_length": "96",
    "threads": "1",
    "max_new_tokens": "0",
}
STEPS = 600
BOTH = ["--infra", "slurm/us-east", "--infra", "slurm/us-west"]


def train(rig: Rig, name: str, steps: int, *more: object) -> None:
    """Start a run there and do not wait for it."""
    where = [] if "--infra" in more else BOTH
    rig.vlaunch("train", *run_options(rig, name, steps), *where, *more, "--detach")


def run_options(rig: Rig, name: str, steps: int) -> list[object]:
    """Of `vlaunch train`, for the small model."""
    settings = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    return ["--size", "tiny", "--store", rig.store, "--name", name, "--max-steps", steps, "--yes", *settings]


def events(rig: Rig, name: str, kind: str) -> list[Any]:
    return [event for event in rig.journal(name) if event.kind == kind]


def training(rig: Rig, name: str, attempt: int) -> None:
    """Until this attempt has made its first step and something is durable."""
    until(
        lambda: any(e.attempt == attempt for e in events(rig, name, "checkpoint")),
        f"attempt {attempt} of {name} trains",
    )


def finished(rig: Rig, name: str) -> dict[str, Any]:
    """Until the run is over; what its status says."""
    until(lambda: events(rig, name, "finished"), f"{name} finishes", 900)
    status: dict[str, Any] = json.loads(rig.vlaunch("status", name, "--store", rig.store, "--json").stdout)
    return status


def curve(rig: Rig, name: str) -> list[tuple[object, ...]]:
    lines = rig.vlaunch("metrics", name, "--store", rig.store, "--json").stdout.splitlines()
    steps = [json.loads(line) for line in lines]
    return [(s["step"], s["loss_hex"], s["grad_norm_hex"], s["learning_rate_hex"], s["batch"]) for s in steps]


def regions(rig: Rig, name: str) -> list[str]:
    """Of the attempts that had a machine, in order."""
    up = {event.attempt for event in events(rig, name, "running")}
    return [event.data["region"] for event in events(rig, name, "requested") if event.attempt in up]


def test_three_losses_each_leave_the_region_and_change_nothing_in_the_curve(rig: Rig) -> None:
    steps = 4 * STEPS  # on a quiet machine 600 are over before the third loss
    rig.vlaunch("train", "--infra", "local", *run_options(rig, "calm", steps))
    train(rig, "lost", steps)
    taken = []
    for attempt in (1, 2, 3):
        training(rig, "lost", attempt)
        taken.append(rig.take("lost"))

    status = finished(rig, "lost")

    assert taken == ["us-east", "us-west", "us-east"]
    assert regions(rig, "lost") == [*taken, "us-west"]
    assert (status["state"], status["preemptions"], status["failovers"]) == ("finished", 3, 3)
    assert curve(rig, "lost") == curve(rig, "calm")
    bill = json.loads(rig.vlaunch("cost-report", "lost", "--store", rig.store, "--json").stdout)
    rows = bill["runs"][0]["attempts"]
    assert [row["region"] for row in rows] == ["us-east", "us-west"] * 2
    assert all(row["usd"] > 0 for row in rows)


def test_a_run_gets_round_an_outage_of_a_region_and_of_a_zone(rig: Rig) -> None:
    try:
        train(rig, "outage", STEPS)
        training(rig, "outage", 1)
        for zone in ("us-west-a", "us-west-b", "us-east-a"):
            rig.set_zone(zone.rpartition("-")[0], zone, "inactive")
        rig.take("outage")

        finished(rig, "outage")
    finally:
        for region in REGIONS:
            for zone in "ab":
                rig.set_zone(region, f"{region}-{zone}", "up")

    zones = [event.data["zone"] for event in events(rig, "outage", "running")]
    assert regions(rig, "outage") == ["us-east", "us-east"] and zones == ["us-east-a", "us-east-b"]
    assert [event.data["regions"] for event in events(rig, "outage", "no_capacity")] == [["us-west"]]


@pytest.mark.parametrize("with_all", [True, False], ids=["power cut", "server alone"])
def test_skypilots_server_is_killed_during_a_recovery_and_the_run_goes_on(rig: Rig, with_all: bool) -> None:
    name = "dark" if with_all else "killed"
    train(rig, name, STEPS)
    training(rig, name, 1)
    rig.take(name)
    until(lambda: len(events(rig, name, "requested")) == 2, "the recovery begins")
    rig.kill_server(with_all=with_all)
    if with_all:
        rig.sky(
            "api", "start"
        )  # else the controller starts one, and two that start at once get in each other's way

    status = finished(rig, name)

    assert (status["state"], status["preemptions"]) == ("finished", 1)
    assert regions(rig, name) == ["us-east", "us-west"]


def test_a_stopped_run_is_saved_and_resumed_from_any_laptop(rig: Rig) -> None:
    train(rig, "pause", 8 * STEPS, "--infra", "slurm/us-west")  # it must not be over before it can be stopped
    training(rig, "pause", 1)

    stopped = json.loads(rig.vlaunch("stop", "pause", "--store", rig.store, "--json").stdout)
    again = json.loads(rig.vlaunch("stop", "pause", "--store", rig.store, "--json").stdout)
    rig.vlaunch("resume", "pause", "--store", rig.store, "--detach")
    twice = rig.vlaunch("resume", "pause", "--store", rig.store, check=False)

    assert (stopped["state"], stopped["was_running"], again["was_running"]) == ("stopped", True, False)
    assert twice.returncode == 3 and "running already" in twice.stderr
    assert finished(rig, "pause")["state"] == "finished"
    (saved,) = events(rig, "pause", "preempted")
    assert saved.data["lost_steps"] == 0
    assert [event.data["resumed_from"] for event in events(rig, "pause", "started")] == [
        0,
        saved.data["step"],
    ]


def test_two_nodes_of_eight_gpus_meet_and_have_their_ranks(rig: Rig) -> None:
    machine = ["--gpus", "A100:8", "--num-nodes", 2, "--set", "parallel.processes=8"]
    train(rig, "nodes", 4, "--infra", "slurm/us-east", *machine)

    assert finished(rig, "nodes")["state"] == "finished"
    (started,) = events(rig, "nodes", "started")
    assert (started.data["nodes"], started.data["world_size"]) == (2, 16)
