"""What SkyPilot's controller writes into a run's journal, and what it reads there; a real store, no SkyPilot."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from launcher.launch import Launch, MarketSettings
from launcher.planning.plan import Candidate
from launcher.runs.attempts import attempts_of
from launcher.runs.runview import State, state_of
from launcher.spot.ledger import Ledger
from trainer.artifacts.journal import Journal, read_journal
from trainer.artifacts.store import Store, open_store

EAST = Candidate("aws", "us-east-1", "us-east-1a", "p4d", "spot", 8.0, 32.0, 8.0, "a test")
WEST = Candidate("slurm", "us-west", "", "", "on-demand", None, None, None, "")
PLACES = [("aws/us-east-1/us-east-1a", True), ("slurm/us-west", False)]


class Clock:
    """A second passes whenever somebody looks."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 20, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path / "runs/x"))
    launch = Launch("aws", (EAST, WEST), MarketSettings())
    Journal(store, 0, "launcher").record("created", plan={"launch": asdict(launch)})
    return store


def test_places_of_a_task_get_the_prices_of_the_plan(store: Store) -> None:
    first, second = Ledger(store.uri).order(PLACES)

    assert (first.usd_per_hour, first.instance) == (8.0, "p4d")
    assert (second.place, second.usd_per_hour) == ("slurm/us-west", None)


def test_a_lost_machine_sends_the_next_controller_to_the_other_region(store: Store) -> None:
    clock = Clock()
    one = Ledger(store.uri, clock)
    attempt = one.requested(one.order(PLACES)[0])
    one.running(attempt, "us-east-1a", "p4d.24xlarge", 8.0)

    other = Ledger(store.uri, clock)  # the server was restarted: nothing is remembered but the journal
    other.lost()

    assert [c.region for c in other.order(PLACES)] == ["us-west", "us-east-1"]
    assert {e.kind for e in read_journal(store)} == {"created", "requested", "running", "ended"}


def test_a_region_that_was_only_asked_when_the_controller_died_is_not_blamed_for_a_loss(store: Store) -> None:
    clock = Clock()
    one = Ledger(store.uri, clock)
    east, west = one.order(PLACES)
    one.running(one.requested(east), "us-east-1a", "p4d.24xlarge", 8.0)
    one.lost()
    one.requested(west)

    other = Ledger(store.uri, clock)
    other.lost()

    assert [c.region for c in other.order(PLACES)] == ["us-west", "us-east-1"]
    ends = [event.data["reason"] for event in read_journal(store) if event.kind == "ended"]
    assert ends == ["preempted", "orphaned"]


def test_a_stop_is_for_the_job_that_it_names(store: Store) -> None:
    Journal(store, 1, "launcher").record("stopping", job=7)

    assert [Ledger(store.uri).stop_asked(job) for job in (7, 8)] == [True, False]


def test_every_request_is_an_attempt_of_its_own_and_only_machines_are_billed(store: Store) -> None:
    ledger = Ledger(store.uri, Clock())
    first, second = ledger.order(PLACES)
    one = ledger.requested(first)
    ledger.refused(one, first, "InsufficientInstanceCapacity\n  in us-east-1a")
    two = ledger.requested(second)
    ledger.running(two, "us-west-b", "", 0.25)

    attempts = attempts_of(read_journal(store))

    assert [(a.ordinal, a.up is not None) for a in attempts] == [(1, False), (2, True)]
    assert (attempts[1].zone, attempts[1].price.usd_per_hour) == ("us-west-b", 0.25)
    refusal = next(e for e in read_journal(store) if e.kind == "no_capacity")
    assert refusal.data["error"] == "InsufficientInstanceCapacity in us-east-1a"


def test_two_controllers_never_share_an_ordinal(store: Store) -> None:
    one, other = Ledger(store.uri, Clock()), Ledger(store.uri, Clock())
    one.order(PLACES), other.order(PLACES)

    assert one.requested(EAST) != other.requested(EAST)


def test_a_store_that_does_not_answer_keeps_no_run_from_its_next_machine(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    ledger = Ledger(str(tmp_path / "file/runs/x"), Clock())

    first = ledger.order(PLACES)[0]
    ledger.running(ledger.requested(first), "us-east-1a", "", None)
    ledger.lost()

    assert [c.region for c in ledger.order(PLACES)] == ["us-west", "us-east-1"]


def test_a_task_without_a_run_is_led_by_memory_alone() -> None:
    ledger = Ledger("", Clock())
    ledger.running(ledger.requested(ledger.order(PLACES)[0]), "", "", None)
    ledger.lost()

    assert [c.region for c in ledger.order(PLACES)] == ["us-west", "us-east-1"]


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_cost_usd": 0.01}, "the budget of $0.01 is spent"),
        ({"deadline_s": 60.0}, "the deadline of 60 s has come"),
        ({"max_cost_usd": 100.0, "deadline_s": 1e9}, None),
    ],
)
def test_a_limit_ends_the_run_with_every_laptop_closed(
    store: Store, limits: dict[str, float], said: str | None
) -> None:
    clock = Clock()
    clock.now = datetime.now(UTC)  # the run was created by a real clock
    Journal(store, 0, "launcher").record("limits", **limits)
    ledger = Ledger(store.uri, clock)
    ledger.running(ledger.requested(ledger.order(PLACES)[0]), "us-east-1a", "", None)
    clock.now += timedelta(hours=1)

    assert ledger.limit() == said
    if said:
        ledger.stopped()
        assert state_of(read_journal(store)) is State.STOPPED
