"""Where a run is, from its journal and its store alone."""

from __future__ import annotations

from datetime import timedelta

import pytest

from launcher.report.terminal import runs_text
from launcher.runs import runview
from launcher.runs.runview import RunRecord, State, state_of, view
from tests.launcher.lives import at, event, launcher, life, request
from trainer.artifacts.journal import EVENTS, RunEvent
from trainer.artifacts.metrics import EvalRecord, StepRecord

REASONS = ("preempted", "stopped", "failed", "finished", "orphaned")
CREATED = launcher("created", 0, 0, plan={"steps": 100})


def step(number: int, attempt: int = 1, *, loss: float = 3.0, time: float = 0.0) -> StepRecord:
    return StepRecord(
        step=number, loss=loss, grad_norm=1.0, learning_rate=1e-3, tokens=500 * number, samples=8 * number,
        batch="ab", attempt=attempt, epoch=attempt, time=at(time).timestamp(), step_s=0.25,
    )  # fmt: skip


def record(*events: RunEvent, **known: object) -> RunRecord:
    return RunRecord(run_id="tiny", uri="file:///store/runs/tiny", events=events, **known)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [k for k in EVENTS if k != "ended"] + [f"ended({r})" for r in REASONS])
def test_every_kind_of_event_says_where_every_state_goes(kind: str) -> None:
    assert set(runview._TRANSITIONS[kind]) == set(State)


def test_the_table_has_no_rows_that_nobody_writes() -> None:
    written = {kind for kind in EVENTS if kind != "ended"} | {f"ended({reason})" for reason in REASONS}
    assert set(runview._TRANSITIONS) == written


UP = [CREATED, request(1, 1), launcher("running", 2)]
TRAINING = [*UP, event("started", 3, epoch=1, resumed_from=0), event("training", 4, step=1)]
TAKEN = [*TRAINING, event("notice", 5, step=9), event("preempted", 6, step=9, durable_step=9)]
ENDED = [*TAKEN, launcher("ended", 7, reason="preempted")]
AGAIN = [*ENDED, request(8, 2, "eu-west-1"), launcher("running", 9, 2), event("started", 10, 2, epoch=2)]
STOPPING = [*TRAINING, launcher("stopping", 5)]
FINISHED = [*TRAINING, event("finished", 8, steps=9)]


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([], State.PENDING),
        ([CREATED], State.PENDING),
        ([CREATED, launcher("no_capacity", 1, 0, regions=["us-east-1"])], State.PENDING),
        (UP, State.STARTING),
        ([*UP, event("started", 3, epoch=1)], State.STARTING),
        (TRAINING, State.RUNNING),
        ([*TRAINING, event("save_failed", 9, step=5, error="disk full")], State.RUNNING),
        (TAKEN, State.RECOVERING),
        (ENDED, State.RECOVERING),
        ([*ENDED, launcher("no_capacity", 8, 2, regions=["us-east-1"])], State.RECOVERING),
        (AGAIN, State.RECOVERING),
        ([*AGAIN, event("training", 11, 2, step=10)], State.RUNNING),
        (STOPPING, State.STOPPING),
        ([*STOPPING, event("preempted", 6, step=9, durable_step=9)], State.STOPPING),
        ([*STOPPING, launcher("ended", 7, reason="stopped")], State.STOPPED),
        ([*STOPPING, launcher("ended", 7, reason="preempted")], State.STOPPED),
        ([*ENDED, launcher("stopping", 8)], State.STOPPED),
        ([*ENDED, launcher("limit", 8, what="deadline")], State.STOPPED),
        ([*ENDED, launcher("ended", 8, 2, reason="stopped")], State.STOPPED),
        ([*ENDED, launcher("ended", 8, 1, reason="stopped")], State.STOPPED),
        ([*TRAINING, launcher("ended", 7, reason="orphaned")], State.STOPPED),
        ([*STOPPING, launcher("ended", 7, reason="stopped"), request(8, 2)], State.STARTING),
        (FINISHED, State.FINISHED),
        ([*FINISHED, launcher("ended", 9, reason="finished")], State.FINISHED),
        ([*FINISHED, launcher("ended", 9, reason="preempted")], State.FINISHED),
        ([*TRAINING, event("failed", 8, error="x", exit_code=1)], State.FAILED),
        ([*TRAINING, launcher("ended", 9, reason="failed")], State.FAILED),
        ([*UP, event("failed", 8, error="x"), request(20, 2)], State.STARTING),
    ],
)
def test_a_journal_leads_to_its_state(events: list[RunEvent], state: State) -> None:
    assert state_of(events) is state
    assert state_of(reversed(events)) is state  # the order of reading is not the order of time


def test_a_zombie_changes_nothing() -> None:
    training_again = [*AGAIN, event("training", 11, 2, step=10)]
    late = [
        event("finished", 12, 1, steps=9),
        event("failed", 13, 1, error="x"),
        event("fenced", 14, 1, by=2),
    ]
    assert state_of([*training_again, *late, launcher("ended", 15, 1, reason="preempted")]) is State.RUNNING


def test_events_of_a_newer_version_are_passed_over() -> None:
    assert state_of([*TRAINING, event("hibernated", 9)]) is State.RUNNING


def test_a_view_tells_the_story_of_a_run() -> None:
    events = [
        CREATED,
        *life(1, 0, trained=15, saved=[(20, 40)], taken=60),
        *life(2, 70, region="eu-west-1", resumed_from=20, trained=85, taken=95),
        *life(3, 100, region="eu-west-1", resumed_from=20, trained=115),
    ]
    steps = [*(step(n) for n in range(1, 21)), *(step(n, 3, loss=2.0) for n in range(21, 25))]
    evals = [EvalRecord(0, 9.0, 0.0), EvalRecord(20, 3.5, 0.0)]
    seen = view(record(*events, steps=tuple(steps), evals=tuple(evals)), at(130))
    assert (seen.state, seen.step, seen.max_steps, seen.loss) == (State.RUNNING, 24, 100, 2.0)
    assert (seen.attempt, seen.region) == (3, "aws/eu-west-1")
    assert (seen.preemptions, seen.failovers) == (2, 1)
    assert (seen.eval_first, seen.eval_last) == (9.0, 3.5)
    assert seen.tokens_per_s == pytest.approx(2000)
    assert seen.usd == pytest.approx((55 + 20 + 25) / 10_000)
    assert (seen.last_event, seen.last_event_at) == ("training", at(115))


def test_max_steps_of_the_config_wins_over_the_plans_estimate() -> None:
    assert view(record(CREATED), at(1)).max_steps == 100
    assert view(record(CREATED, config={"train": {"max_steps": 60}}), at(1)).max_steps == 60
    assert view(record(CREATED, config={"train": {"max_steps": -1}}), at(1)).max_steps == 100


def test_a_stopped_box_that_says_preempted_is_no_preemption() -> None:
    stopped = [*STOPPING, event("preempted", 6, step=9, durable_step=9)]
    assert view(record(*stopped), at(9)).preemptions == 0
    assert view(record(*stopped, launcher("ended", 7, reason="stopped")), at(9)).preemptions == 0
    assert view(record(*TAKEN), at(9)).preemptions == 1


def test_a_run_that_should_be_alive_and_is_silent_is_said_to_be() -> None:
    seen = view(record(*TRAINING, steps=(step(1, time=100),)), at(4000))
    assert (seen.last_event_at, seen.last_sign_at) == (at(4), at(100))
    assert "running, silent for 1h 05m" in runs_text([seen], at(4000))
    assert "silent" not in runs_text([seen], at(200))
    assert "silent" not in runs_text([view(record(*FINISHED), at(4000))], at(4000))


def test_a_failed_run_says_why() -> None:
    failed = [*TRAINING, event("failed", 8, error="the corpus is empty", exit_code=2)]
    assert view(record(*failed), at(9)).problem == "the corpus is empty"
    assert view(record(*failed, *life(2, 20, trained=35)), at(40)).problem is None


def test_metrics_of_an_epoch_that_was_followed_stand_in_for_a_checkpoint_nobody_recorded() -> None:
    events = [*life(1, 0, trained=15, taken=60), *life(2, 70, resumed_from=20, trained=85)]
    steps = [*(step(n, time=15 + n) for n in range(1, 21)), *(step(n, 2) for n in range(21, 30))]
    bill = record(*events, steps=tuple(steps)).costs(at(100))
    assert bill.charges[0].useful == timedelta(seconds=20)
    assert bill.charges[0].lost == timedelta(seconds=25)
