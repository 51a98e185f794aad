"""A view that follows a run never has to forget: whatever dies, it gets each step once, and the one that counts."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.runs.runview import RunRecord
from launcher.tracking.following import Followed, bring_up_to_date, curve_id, follow
from launcher.tracking.points import Point
from tests.launcher.lives import at, event, life, write_run
from trainer.artifacts.fencing import Lease, claim
from trainer.artifacts.journal import Journal, read_journal
from trainer.artifacts.manifest import Manifest
from trainer.artifacts.metrics import EvalRecord, MetricsWriter, StepRecord, read_durable, read_metrics
from trainer.artifacts.store import Store, open_store


@dataclass
class Board:
    """A view that keeps what it is given, as a server would."""

    points: list[Point] = field(default_factory=list)
    ended: bool | None = None

    @property
    def newest(self) -> int:
        return self.points[-1].step if self.points else -1

    def add(self, point: Point) -> None:
        self.points.append(point)

    def tell(self, record: RunRecord, now: datetime) -> None:
        pass

    def close(self, over: bool) -> None:
        self.ended = over


class Training:
    """Attempts by the real writers; `losses` differ by attempt, so that a step that was made again is told apart."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.attempt = 0
        self.take_over()

    def take_over(self) -> None:
        """The machine is gone with what it had not written; another one goes on from the newest checkpoint."""
        self.attempt += 1
        self.lease: Lease = claim(self.store)
        newest = next(self.lease.newest(), None)
        self.step = newest.step if newest else 0
        self.lease.start(self.step, newest.key if newest else None)
        self.writer = MetricsWriter(self.store, self.lease.epoch, self.attempt, self.step)
        self.measured = -1
        if newest is None:
            self.measure()

    def train(self) -> None:
        self.step += 1
        self.writer.add(
            StepRecord(
                step=self.step, loss=self.step + self.attempt / 100, grad_norm=1.0, learning_rate=1e-3,
                tokens=10 * self.step, samples=self.step, batch="00", attempt=self.attempt,
                epoch=self.lease.epoch, time=at(self.step).timestamp(), step_s=0.5,
            )
        )  # fmt: skip

    def measure(self) -> None:
        if self.measured != self.step:
            self.measured = self.step
            self.writer.add(EvalRecord(self.step, 100.0 + self.step, at(self.step).timestamp()))

    def flush(self) -> None:
        self.writer.flush()

    def save(self) -> None:
        if self.step:
            self.writer.flush()
            self.lease.commit(
                Manifest(step=self.step, epoch=self.lease.epoch, parent=None, world_size=1, samples=self.step,
                         tokens=self.step, created=at(self.step), files=())
            )  # fmt: skip

    def finish(self) -> None:
        self.train()
        self.save()
        Journal(self.store, self.attempt, "box").record("finished", steps=self.step)


ACTIONS = st.lists(
    st.sampled_from(
        ["train", "train", "train", "measure", "flush", "save", "take_over", "look", "publisher_dies"]
    ),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(ACTIONS)
def test_a_view_gets_each_step_once_and_only_the_one_that_counts(actions: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        uri = f"{folder}/runs/drawn"
        training, board, run = Training(open_store(uri)), Board(), Followed(uri)
        for action in [*actions, "finish", "look"]:
            if action == "look":
                run.look()
                bring_up_to_date([board], run)
            elif action == "publisher_dies":
                run = Followed(uri)
            else:
                getattr(training, action)()
        steps, held_out = read_metrics(open_store(uri))
        assert [point.step for point in board.points] == list(range(training.step + 1))
        assert {p.step: p.values["train/loss"] for p in board.points[1:]} == {s.step: s.loss for s in steps}
        assert {p.step for p in board.points if "eval/loss" in p.values} == {
            record.step for record in held_out
        }


def test_steps_that_may_be_lost_are_in_the_metrics_and_not_in_a_view(tmp_path: Path) -> None:
    """The negative control: the steps after the checkpoint can be seen, and a later attempt takes them back."""
    uri = str(tmp_path / "runs/one")
    training, board, run = Training(open_store(uri)), Board(), Followed(uri)
    for action in ["train", "train", "save", "train", "flush"]:
        getattr(training, action)()
    run.look()
    bring_up_to_date([board], run)
    assert [step.step for step in read_metrics(open_store(uri))[0]] == [1, 2, 3]
    assert [step.step for step in read_durable(open_store(uri)).steps] == [1, 2]
    assert [point.step for point in board.points] == [0, 1]  # step 2 waits for its held-out loss
    training.take_over()
    assert [step.step for step in read_metrics(open_store(uri))[0]] == [1, 2]


def test_a_held_out_loss_that_is_written_after_its_checkpoint_is_on_its_step(tmp_path: Path) -> None:
    uri = str(tmp_path / "runs/one")
    training, board, run = Training(open_store(uri)), Board(), Followed(uri)
    for action in ["train", "save", "look", "measure", "train", "save", "look"]:
        if action == "look":
            run.look()
            bring_up_to_date([board], run)
        else:
            getattr(training, action)()
    assert [(p.step, p.values.get("eval/loss")) for p in board.points] == [(0, 100.0), (1, 101.0)]


def test_what_is_asked_for_begins_after_what_is_there(tmp_path: Path) -> None:
    write_run(str(tmp_path), "demo")
    store = open_store(str(tmp_path / "runs/demo"))
    for after in (-1, 0, 7, 19, 20, 21, 39, 40):
        assert [step.step for step in read_durable(store, after).steps] == list(range(max(after, 0) + 1, 41))


def test_following_ends_when_nobody_wants_more_after_one_last_look(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "runs/live"))
    for item in life(1, 0, trained=15, saved=[(20, 35)]):
        store.put_new(item.key, item.encode())
    waits: list[float] = []
    run = Followed(str(tmp_path / "runs/live"))
    follow([Board()], run, lambda seconds: waits.append(seconds) is None)
    assert waits == [pytest.approx(15.0)] and not run.over


def test_the_name_of_a_curve_is_that_of_this_run_and_no_other(tmp_path: Path) -> None:
    """The same on every computer and in every attempt; a run of the same name in another store has another."""
    write_run(str(tmp_path), "demo")
    events = read_journal(open_store(str(tmp_path / "runs/demo")))
    name = curve_id("demo", events)
    assert name == curve_id("demo", events[:3]) == curve_id("demo", list(reversed(events)))
    assert name != curve_id("demo", [event("created", 1, 0)]) and name.startswith("demo-")
