"""When to save follows from what saves cost here and how long machines last here."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.artifacts.stores import MemoryStore
from trainer.artifacts.journal import EVENTS, Journal
from trainer.artifacts.store import Store
from trainer.cadence import Cadence, measured_mtbf_s, young_interval_s
from trainer.config import CheckpointSection

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def cadence(stall_s: float, save_s: float = 0.0, mtbf_s: float = 7200.0, *, cpu: bool = False) -> Cadence:
    return Cadence(CheckpointSection(mtbf_s=mtbf_s), cpu, mtbf_s, stall_s, save_s)


def lived(store: Store, attempt: int, began_s: float, **kinds: float) -> None:
    """An attempt that started then, with other events so many seconds later."""
    for kind, seconds in {"started": 0.0, **kinds}.items():
        moment = NOON + timedelta(seconds=began_s + seconds)
        Journal(store, attempt, EVENTS[kind].writer, now=lambda moment=moment: moment).record(kind)


def test_the_interval_balances_what_a_save_costs_and_what_a_preemption_loses() -> None:
    assert cadence(2.0).interval_s == young_interval_s(2.0, 7200.0) == pytest.approx(169.7, abs=0.1)
    # Where training shares its cores with the writer, the whole save is its cost.
    assert cadence(1.0, 9.0, cpu=True).interval_s == young_interval_s(10.0, 7200.0)


@given(st.floats(0.001, 100), st.floats(0, 3000), st.floats(10, 1e6), st.booleans())
def test_no_other_interval_loses_less_unless_the_store_or_the_limit_forbids_it(
    stall_s: float, save_s: float, mtbf_s: float, cpu: bool
) -> None:
    planned = cadence(stall_s, save_s, mtbf_s, cpu=cpu)

    def lost(interval_s: float) -> float:
        return planned.cost_s / interval_s + interval_s / (2 * mtbf_s)

    interval_s, limit_s = planned.interval_s, planned.settings.max_interval_s
    assert interval_s <= limit_s
    if planned.store_is_slow:
        assert interval_s == min(2.0 * save_s, limit_s)
    elif interval_s < limit_s:
        assert lost(interval_s) <= min(lost(interval_s * 0.9), lost(interval_s * 1.1)) * (1 + 1e-9)


def test_a_store_that_is_slower_than_the_optimum_stretches_the_interval() -> None:
    slow = cadence(0.5, save_s=300.0)
    assert slow.store_is_slow and slow.interval_s == 600.0 and slow.told()["store_is_slow"] is True
    assert not cadence(0.5, save_s=3.0).store_is_slow


def test_the_expected_life_of_a_machine_moves_towards_the_lives_that_were_seen() -> None:
    store = MemoryStore()
    assert measured_mtbf_s(store, 1, 7200.0) == 7200.0
    for number in range(9):
        lived(store, number + 1, 1000.0 * number, training=10.0, checkpoint=600.0)
    assert measured_mtbf_s(store, 10, 7200.0) == (7200.0 + 9 * 600.0) / 10
    assert measured_mtbf_s(store, 2, 7200.0) == (7200.0 + 600.0) / 2, "only the attempts before"


def test_an_attempt_that_nobody_took_counts_as_time_lived_and_no_preemption() -> None:
    store = MemoryStore()
    lived(store, 1, 0.0, checkpoint=3600.0, stopping=3600.0)
    lived(store, 2, 9000.0, checkpoint=600.0, ended=99_000.0)  # found dead much later: its own word counts
    assert measured_mtbf_s(store, 3, 1000.0) == (1000.0 + 3600.0 + 600.0) / 2


def test_what_a_newer_program_or_a_box_without_a_start_wrote_is_left_aside() -> None:
    store = MemoryStore()
    store.put_new("journal/20261120T120000.000000Z-000001-000000-invented.json", b"{}")
    Journal(store, 1, "launcher").record("requested")
    assert measured_mtbf_s(store, 2, 500.0) == 500.0
    assert math.isfinite(measured_mtbf_s(store, 2, 500.0))
