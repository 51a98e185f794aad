"""The bill: every microsecond in one part, every dollar from a recorded price."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.report.amounts import duration, percents, total_line, usd
from launcher.runs.attempts import Mark, attempts_of
from launcher.runs.costs import PARTS, CostReport, combine, cost_report
from tests.launcher.lives import at, event, launcher, life, request
from trainer.artifacts.journal import EVENTS, RunEvent

# 36 dollars an hour are a cent a second, so a hand can check the bill.
CENT_A_SECOND = {"usd_per_hour": 36.0, "on_demand_usd_per_hour": 100.0}
NOTIONAL = {"cloud": "local", "price_source": "as AWS m6i.large, catalog 2025-12"}


def bill(*lives: Sequence[RunEvent], now: float = 10_000) -> CostReport:
    return cost_report("tiny", [event for events in lives for event in events], at(now))


def seconds(report: CostReport) -> dict[str, float]:
    return {part: report.time_of(part).total_seconds() for part in PARTS}


def preempted_then_finished() -> list[list[RunEvent]]:
    """Up 5 to 85, trained from 15, step 40 taken at 65; then up 95 to 166, trained from 105, done at 165."""
    return [
        life(1, 0, trained=15, saved=[(20, 40), (40, 65)], taken=85, **CENT_A_SECOND),
        life(2, 90, resumed_from=40, trained=105, finished=(100, 165), **CENT_A_SECOND),
    ]


def test_a_preempted_run_costs_what_a_hand_computes() -> None:
    report = bill(*preempted_then_finished())
    assert seconds(report) == {"restart": 10 + 10, "useful": 50 + 60, "lost": 20, "idle": 1}
    assert report.usd == Fraction("1.51")
    assert {part: float(report.usd_of(part)) for part in PARTS} == {
        "restart": 0.20,
        "useful": 1.10,
        "lost": 0.20,
        "idle": 0.01,
    }


def test_on_demand_is_the_useful_work_and_one_restart_at_its_price() -> None:
    report = bill(*preempted_then_finished())
    assert report.on_demand_usd == Fraction(120 * 100, 3600)
    assert report.saved is not None and round(float(report.saved), 3) == 0.547


def test_the_total_says_so_in_one_line() -> None:
    assert total_line(bill(*preempted_then_finished())) == (
        "$1.51 spot for 2m 31s on 2 machines (useful 73 %, restart 13 %, lost 13 %, idle 1 %); "
        "on-demand would have been $3.33: saved 55 %"
    )


def test_a_run_that_cost_more_than_on_demand_is_said_to_have() -> None:
    lives = [
        life(n, 100 * n, trained=100 * n + 50, taken=100 * n + 90, usd_per_hour=1.0) for n in range(1, 9)
    ]
    report = bill(*lives, life(9, 1000, trained=1015, finished=(50, 1045)))
    assert report.saved is not None and report.saved < 0
    assert "% dearer than that, nothing saved" in total_line(report)


def test_a_run_on_demand_is_not_compared_with_itself() -> None:
    report = bill(life(1, 0, trained=15, finished=(40, 65), market="on-demand"))
    assert report.saved is None
    assert (
        total_line(report)
        == "$0.0061 on-demand for 1m 01s on 1 machine (useful 82 %, restart 16 %, lost 0 %, idle 2 %)"
    )


def test_a_failover_to_a_dearer_region_does_not_enlarge_the_saving() -> None:
    here, there = preempted_then_finished()
    dearer = life(2, 90, region="eu-west-1", resumed_from=40, trained=105, finished=(100, 165),
                  usd_per_hour=36.0, on_demand_usd_per_hour=400.0)  # fmt: skip
    assert bill(here, dearer).on_demand_usd == bill(here, there).on_demand_usd


def test_the_local_clouds_prices_are_called_notional_and_nothing_was_paid() -> None:
    report = bill(life(1, 0, trained=15, finished=(40, 65), **NOTIONAL))
    assert report.notional and report.usd > 0 and report.paid_usd == 0
    assert total_line(report).endswith(
        "nothing was paid (notional prices: as AWS m6i.large, catalog 2025-12)"
    )


def test_work_that_a_damaged_checkpoint_took_back_is_lost_in_the_attempts_before_too() -> None:
    report = bill(
        life(1, 0, trained=15, saved=[(20, 40), (40, 65)], taken=85),
        life(2, 90, resumed_from=40, trained=105, saved=[(60, 135)], taken=145),
        life(3, 150, resumed_from=20, trained=165, finished=(100, 265)),
    )
    first, second, third = report.charges
    assert (first.useful, first.lost) == (timedelta(seconds=25), timedelta(seconds=45))
    assert (second.useful, second.lost) == (timedelta(0), timedelta(seconds=40))
    assert (third.useful, third.lost) == (timedelta(seconds=100), timedelta(0))


def test_an_attempt_killed_before_its_first_step_is_all_restart() -> None:
    report = bill(life(1, 0, taken=25), life(2, 30, trained=45, finished=(10, 65)))
    assert report.charges[0].restart == report.charges[0].billed == timedelta(seconds=20)


def test_an_attempt_that_only_had_to_export_worked_from_its_start() -> None:
    report = bill(
        life(1, 0, trained=15, saved=[(100, 65)], taken=70), life(2, 75, resumed_from=100, finished=(100, 95))
    )
    assert seconds(report) == {"restart": 10 + 2, "useful": 50 + 13, "lost": 5, "idle": 1}


def test_work_of_a_live_machine_counts_until_it_is_gone() -> None:
    running = life(1, 0, trained=15, saved=[(20, 40)])
    assert seconds(bill(running, now=60)) == {"restart": 10, "useful": 45, "lost": 0, "idle": 0}
    gone = [*running, launcher("ended", 60, reason="preempted")]
    assert seconds(bill(gone, now=60)) == {"restart": 10, "useful": 25, "lost": 20, "idle": 0}


def test_a_running_attempt_is_billed_until_now_and_not_beyond() -> None:
    running = life(1, 0, trained=15)
    assert bill(running, now=100).billed == timedelta(seconds=95)
    assert bill(life(1, 0, trained=15, taken=500), now=100).billed == timedelta(seconds=95)
    assert not bill(running, now=3).charges


def test_an_unclosed_attempt_ends_where_the_next_was_asked_for() -> None:
    report = bill(life(1, 0, trained=15), life(2, 90, trained=105, taken=120))
    assert report.charges[0].billed == timedelta(seconds=85)
    assert report.notes == ("the end of attempt 1 was not recorded: taken as 2026-11-20 12:01:30 UTC",)


def test_an_unclosed_attempt_whose_box_finished_is_not_billed_for_ever() -> None:
    unclosed = [item for item in life(1, 0, trained=15, finished=(40, 65)) if item.kind != "ended"]
    assert bill(unclosed, now=10**6).billed == timedelta(seconds=60)


def test_a_checkpoint_that_only_the_store_knows_of_counts() -> None:
    events = [*life(1, 0, trained=15, taken=85), *life(2, 90, resumed_from=40, trained=105, taken=120)]
    unknown = cost_report("tiny", events, at(200))
    known = cost_report("tiny", events, at(200), {1: [Mark(40, at(65))]})
    assert unknown.charges[0].useful == timedelta(0)
    assert known.charges[0].useful == timedelta(seconds=50)


def test_a_request_without_a_machine_costs_nothing_and_waits() -> None:
    report = bill([request(0, 1), launcher("no_capacity", 30, regions=["us-east-1"])], now=600)
    assert (report.usd, report.waiting) == (0, timedelta(seconds=600))
    assert total_line(report) == "$0.00: no machine has run yet; waited 10m 00s for one"


def test_a_machine_that_the_launcher_lost_sight_of_is_billed_from_its_request() -> None:
    lost = [request(0, 1), launcher("ended", 60, reason="orphaned")]
    assert bill(lost).billed == timedelta(seconds=60)
    boxed = [request(0, 1), event("started", 10, epoch=1, resumed_from=0)]
    assert bill(boxed, now=60).billed == timedelta(seconds=60)


def test_waiting_counts_the_time_between_machines_but_not_a_stop() -> None:
    first = life(1, 0, trained=15, taken=85)
    assert bill(first, life(2, 300, trained=315, taken=320), now=320).waiting == timedelta(seconds=5 + 220)
    stopped = [*life(1, 0, trained=15), launcher("stopping", 80), launcher("ended", 85, reason="stopped")]
    assert bill(stopped, life(2, 300, trained=315, taken=320), now=320).waiting == timedelta(seconds=5 + 5)
    assert bill(first, now=100).waiting == timedelta(seconds=5 + 15)
    gave_up = [*first, launcher("limit", 95, what="deadline")]
    assert bill(gave_up, now=10_000).waiting == timedelta(seconds=5 + 10)


def test_the_first_word_about_an_end_counts() -> None:
    again = launcher("ended", 500, reason="orphaned")
    assert bill([*life(1, 0, trained=15, taken=85), again]).billed == timedelta(seconds=80)


def test_an_orphan_is_billed_until_its_last_word_or_else_until_it_was_found() -> None:
    found = launcher("ended", 5000, reason="orphaned")
    worked = [item for item in life(1, 0, trained=15, finished=(40, 65)) if item.kind != "ended"]
    assert bill([*worked, found]).billed == timedelta(seconds=60)
    silent = bill([*life(1, 0, trained=15), found])
    assert silent.billed == timedelta(seconds=4995)
    assert "attempt 1 was found dead" in silent.notes[0]


def test_a_stop_while_waiting_is_no_attempt_and_ends_the_wait() -> None:
    report = bill(life(1, 0, trained=15, taken=85), [launcher("ended", 100, 2, reason="stopped")])
    assert len(report.charges) == 1 and report.waiting == timedelta(seconds=5 + 15)


def test_a_missing_price_is_said_and_not_taken_for_free_of_charge() -> None:
    started = [event("started", 0, epoch=1, resumed_from=0), event("training", 10, step=1)]
    report = bill(started, now=20)
    assert report.on_demand_usd is None
    assert "no price is known for attempt 1: its dollars are missing here" in report.notes


def test_several_runs_add_up() -> None:
    one, two = (
        bill(*preempted_then_finished()),
        bill(life(1, 0, trained=15, finished=(9, 25), **CENT_A_SECOND)),
    )
    both = combine([one, two], "all")
    assert both.usd == one.usd + two.usd and both.billed == one.billed + two.billed
    assert one.on_demand_usd and two.on_demand_usd
    assert both.on_demand_usd == one.on_demand_usd + two.on_demand_usd


moments = st.integers(min_value=0, max_value=400_000_000).map(lambda micro: micro / 1_000_000)
steps = st.integers(min_value=0, max_value=50)
DATA = {
    "requested": st.fixed_dictionaries(
        {"region": st.sampled_from(["us-east-1", "eu-west-1"]), "cloud": st.sampled_from(["aws", "local"])},
        optional={
            "instance": st.sampled_from(["m6i.large", "c7i.xlarge"]),
            "usd_per_hour": st.sampled_from([0.0, 0.0266, 0.1, 12.29, "nan"]),
            "on_demand_usd_per_hour": st.sampled_from([0.096, 32.77]),
        },
    ),
    "ended": st.fixed_dictionaries(
        {"reason": st.sampled_from(["preempted", "stopped", "failed", "finished", "orphaned"])}
    ),
    "started": st.fixed_dictionaries({"epoch": st.integers(1, 6), "resumed_from": steps}),
    "checkpoint": st.fixed_dictionaries(
        {"step": steps, "taken_at": moments.map(lambda s: at(s).timestamp())}
    ),
    "finished": st.fixed_dictionaries({"steps": steps}),
}


@st.composite
def any_event(draw: st.DrawFn) -> RunEvent:
    """An event at any time: no order that makes sense, as from machines with any clocks."""
    kind = draw(st.sampled_from(sorted(EVENTS)))
    data = draw(DATA.get(kind, st.just({})))
    return event(kind, draw(moments), draw(st.integers(0, 5)), EVENTS[kind].writer, **data)


@settings(max_examples=300, deadline=None)
@given(st.lists(any_event(), max_size=40), moments)
def test_parts_add_up_to_the_billed_time_whatever_the_journal_says(
    events: list[RunEvent], now: float
) -> None:
    report = cost_report("any", events, at(now))
    for charge in report.charges:
        times = [charge.time_of(part) for part in PARTS]
        assert min(times) >= timedelta(0)
        assert charge.attempt.up is not None
        end = min(charge.attempt.end or at(now), at(now))
        assert sum(times, timedelta(0)) == charge.billed == max(timedelta(0), end - charge.attempt.up)
        assert sum(charge.usd_of(part) for part in PARTS) == charge.usd >= 0
    assert sum(report.usd_of(part) for part in PARTS) == report.usd
    assert sum((group.usd for group in report.by_region().values()), Fraction(0)) == report.usd
    assert timedelta(0) <= report.waiting
    assert total_line(report)


@st.composite
def simulated(draw: st.DrawFn) -> tuple[list[RunEvent], int, int]:
    """A run as a simulator plays it, one step a second, and the steps of work it kept and lost."""
    clock, durable, lost, goal, events = 0, 0, 0, 60, list[RunEvent]()
    for attempt in range(1, draw(st.integers(1, 8))):
        made = draw(st.integers(0, goal - durable - 1))
        kept = draw(st.integers(0, made))
        trained = clock + 10
        saved = [(durable + kept, trained + kept)] if kept else []
        events += life(
            attempt, clock, resumed_from=durable, trained=trained, saved=saved, taken=trained + made
        )
        durable, lost, clock = durable + kept, lost + made - kept, trained + made + draw(st.integers(1, 30))
        if durable == goal - 1:
            break
    final = max((item.attempt for item in events), default=0) + 1
    done = clock + 10 + goal - durable
    events += life(final, clock, resumed_from=durable, trained=clock + 10, finished=(goal, done))
    return events, goal, lost


@settings(deadline=None)
@given(simulated())
def test_a_simulated_run_is_billed_for_exactly_the_steps_it_kept_and_lost(
    run: tuple[list[RunEvent], int, int],
) -> None:
    events, kept, lost = run
    report = cost_report("simulated", events, at(10_000))
    machines = len(attempts_of(events))
    assert seconds(report) == {"restart": 5 * machines, "useful": kept, "lost": lost, "idle": 1}
    assert report.usd == Fraction(5 * machines + kept + lost + 1, 10_000)


def test_percents_of_parts_add_up_to_a_hundred() -> None:
    assert percents({"a": Fraction(1), "b": Fraction(1), "c": Fraction(1)}) == {"a": 34, "b": 33, "c": 33}
    assert percents({"a": Fraction(0)}) == {"a": 0}


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "$0.00"), (0.0041, "$0.0041"), (0.12, "$0.12"), (1234.5, "$1,234.50"), (-2, "-$2.00")],
)
def test_dollars_show_cents_or_two_figures(amount: float, text: str) -> None:
    assert usd(amount) == text


@pytest.mark.parametrize(
    ("time", "text"),
    [(0, "0s"), (2.25, "2.2s"), (59.6, "1m 00s"), (232, "3m 52s"), (7500, "2h 05m"), (90_000, "1d 01h")],
)
def test_durations_read_well(time: float, text: str) -> None:
    assert duration(time) == text
