"""The journal: facts that are written once, read in order, and never stop a training."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.artifacts.stores import InterceptedStore, MemoryStore, Operation
from trainer.artifacts.journal import EVENTS, Journal, RunEvent, read_journal
from trainer.artifacts.store import Store
from trainer.errors import CorruptObject, StoreError

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def clock(*seconds: float) -> Callable[[], datetime]:
    """Gives these moments after noon, then stands still."""
    left = list(seconds)
    return lambda: NOON + timedelta(seconds=left.pop(0) if len(left) > 1 else left[0])


def test_events_come_back_in_order_with_their_data(store: MemoryStore) -> None:
    launcher = Journal(store, 1, "launcher", now=clock(0, 20))
    box = Journal(store, 1, "box", now=clock(10))
    launcher.record("requested", cloud="aws", region="us-east-1", usd_per_hour=3.93)
    launcher.record("ended", reason="preempted", exit_code=75)
    box.record("training", step=11, seconds={"restore": 3.25, "first_step": 1.5})
    events = read_journal(store)
    assert [event.kind for event in events] == ["requested", "training", "ended"]
    assert [event.writer for event in events] == ["launcher", "box", "launcher"]
    assert events[1].data == {"step": 11, "seconds": {"restore": 3.25, "first_step": 1.5}}
    assert events[1].time == NOON + timedelta(seconds=10)


def test_a_follower_gets_what_came_after_the_last_event_it_knows(store: MemoryStore) -> None:
    journal = Journal(store, 1, "box", now=clock(1, 2, 3))
    for step in (1, 2, 3):
        journal.record("notice", step=step)
    known = read_journal(store)[0]
    assert [event.data["step"] for event in read_journal(store, start_after=known.key)] == [2, 3]


def test_a_clock_that_is_set_back_does_not_reorder_one_writers_events(store: MemoryStore) -> None:
    journal = Journal(store, 1, "box", now=clock(100, 50, 50, 200))
    for step in range(4):
        journal.record("notice", step=step)
    assert [event.data["step"] for event in read_journal(store)] == [0, 1, 2, 3]


def test_two_writers_at_the_same_microsecond_do_not_overwrite_each_other(store: MemoryStore) -> None:
    for exit_code in (1, 2):
        Journal(store, 1, "launcher", now=clock(0)).record("ended", exit_code=exit_code)
    assert [event.data["exit_code"] for event in read_journal(store)] == [1, 2]


def test_a_number_that_json_has_not_is_recorded_as_text(store: MemoryStore) -> None:
    event = Journal(store, 1, "box").record("checkpoint", stall_s=float("nan"), save_s=float("-inf"), step=3)
    assert event is not None and event.data == {"stall_s": "nan", "save_s": "-inf", "step": 3}
    assert read_journal(store) == [event]
    assert b"NaN" not in store.get(event.key), "strict JSON, for readers in other languages"


def test_what_json_does_not_know_is_recorded_as_text(store: MemoryStore) -> None:
    Journal(store, 1, "box").record("failed", error=ValueError("bad shape"), hint=None, exit_code=True)
    assert read_journal(store)[0].data == {"error": "bad shape", "hint": None, "exit_code": True}


@pytest.mark.parametrize(("kind", "data"), [("exploded", {}), ("finished", {"los": 1.0})])
def test_a_kind_or_field_that_is_not_documented_is_a_mistake(
    store: MemoryStore, kind: str, data: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="journal event"):
        Journal(store, 1, "box", quiet=True).record(kind, **data)
    assert read_journal(store) == []


def test_a_store_that_fails_stops_a_loud_journal_and_not_a_quiet_one(
    store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(operation: Operation) -> Any:
        raise StoreError("the store is gone")

    broken: Store = InterceptedStore(store, gone)
    with pytest.raises(StoreError):
        Journal(broken, 1, "box").record("notice", step=3)
    with caplog.at_level(logging.WARNING):
        assert Journal(broken, 1, "box", quiet=True).record("notice", step=3) is None
    assert "notice event was not written: the store is gone" in caplog.text


def test_events_of_a_newer_program_are_read_and_broken_ones_are_named(store: MemoryStore) -> None:
    newer = RunEvent(kind="teleported", time=NOON, attempt=1, seq=0, writer="box", data={"to": "mars"})
    store.put_new(newer.key, newer.encode())
    store.put_new("journal/README", b"not one of ours")
    assert read_journal(store) == [newer]
    broken = newer.model_copy(update={"seq": 1}).key
    store.put(broken, b"{")
    with pytest.raises(CorruptObject, match=broken):
        read_journal(store)


def test_every_documented_kind_fits_its_key_and_has_a_meaning() -> None:
    for kind, documented in EVENTS.items():
        store = MemoryStore()
        event = Journal(store, 0, documented.writer).record(kind, **dict.fromkeys(documented.fields, 1))
        assert read_journal(store) == [event] and documented.meaning
