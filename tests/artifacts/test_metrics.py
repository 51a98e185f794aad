"""Metrics: every step once, bit for bit, whatever attempts wrote beyond what counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from tests.artifacts.stores import InterceptedStore, MemoryStore, Operation, Writer
from trainer.artifacts.fencing import claim
from trainer.artifacts.layout import metrics_key
from trainer.artifacts.metrics import EvalRecord, MetricsWriter, StepRecord, read_metrics
from trainer.artifacts.store import Store
from trainer.errors import CorruptObject, StoreError


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def record(step: int, epoch: int = 1, loss: float = 0.1) -> StepRecord:
    return StepRecord(
        step, loss + step, 1 / 3, 2e-5, step * 100, step * 4, "5f3a", 1, epoch, 1.79e9 + 0.1, 0.7
    )


def evaluation(step: int, loss: float = 2.5) -> EvalRecord:
    return EvalRecord(step, loss, 1.79e9)


def attempt(store: Store, resumed_from: int) -> MetricsWriter:
    lease = claim(store)
    lease.start(resumed_from, None)
    return MetricsWriter(store, lease.epoch, lease.epoch, resumed_from)


def train(writer: MetricsWriter, steps: Iterable[int], epoch: int = 1) -> None:
    for step in steps:
        writer.add(record(step, epoch))


def numbers(store: Store) -> list[tuple[int, int]]:
    return [(found.step, found.epoch) for found in read_metrics(store)[0]]


def test_floats_come_back_bit_for_bit(store: MemoryStore) -> None:
    writer = attempt(store, 0)
    wild = [0.1, 1e-310, -0.0, math.pi, float("inf"), float("nan")]
    for step, loss in enumerate(wild, start=1):
        writer.add(StepRecord(step, loss, 0.1 + 0.2, 2e-5, 1, 2, "ab", 1, 1, 1.79e9, 0.5))
    writer.flush()
    steps, _ = read_metrics(store)
    assert [found.loss.hex() for found in steps] == [loss.hex() for loss in wild]
    assert steps[0] == StepRecord(1, 0.1, 0.1 + 0.2, 2e-5, 1, 2, "ab", 1, 1, 1.79e9, 0.5)
    assert '"loss": "0x1.999999999999ap-4"' in steps[0].line()


def test_steps_that_a_lost_attempt_had_not_saved_are_those_of_its_successor(store: MemoryStore) -> None:
    first = attempt(store, 0)
    train(first, range(1, 11))
    first.cut()  # the checkpoint of step 10 is taken here
    train(first, range(11, 15))
    first.flush()
    second = attempt(store, 10)
    assert numbers(store) == [(step, 1) for step in range(1, 11)]
    train(second, range(11, 21), epoch=2)
    second.flush()
    assert numbers(store) == [(step, 1) for step in range(1, 11)] + [(step, 2) for step in range(11, 21)]


def test_a_zombie_that_goes_on_writing_changes_nothing(store: MemoryStore) -> None:
    zombie = attempt(store, 0)
    train(zombie, range(1, 11))
    zombie.flush()
    second = attempt(store, 10)
    train(second, range(11, 16), epoch=2)
    second.flush()
    before = read_metrics(store)
    train(zombie, range(11, 31))
    zombie.add(evaluation(30, loss=9.9))
    zombie.flush()
    assert read_metrics(store) == before == read_metrics(store)


def test_a_reader_that_is_slow_never_takes_what_a_zombie_wrote_meanwhile(store: MemoryStore) -> None:
    zombie = attempt(store, 0)
    train(zombie, range(1, 11))
    zombie.flush()
    found: list[StepRecord] = []
    reader = Writer(store, lambda view: found.extend(read_metrics(view)[0]))
    reader.advance()
    reader.run(until=lambda operation: operation.name == "list")
    attempt(store, 10)
    train(zombie, range(11, 21))
    zombie.flush()
    reader.run()
    assert found == read_metrics(store)[0] and found[-1].step == 10


def test_a_segment_never_straddles_a_cut(store: MemoryStore) -> None:
    writer = attempt(store, 0)
    for checkpoint in (10, 20):
        train(writer, range(checkpoint - 9, checkpoint + 1))
        writer.cut()
    train(writer, range(21, 24))
    writer.flush()
    writer.flush()
    segments = [entry.key for entry in store.list("metrics/")]
    assert segments == [metrics_key(0, 10, 1), metrics_key(10, 20, 1), metrics_key(20, 23, 1)]


def test_an_evaluation_counts_as_long_as_the_checkpoint_of_its_step(store: MemoryStore) -> None:
    writer = attempt(store, 0)
    writer.add(evaluation(0, 3.0))
    train(writer, range(1, 11))
    writer.cut()
    writer.add(evaluation(10, 2.0))  # made after the state of step 10 was taken
    train(writer, range(11, 21))
    writer.add(evaluation(20, 1.0))
    writer.flush()
    assert [(found.step, found.loss) for found in read_metrics(store)[1]] == [(0, 3.0), (10, 2.0), (20, 1.0)]
    second = attempt(store, 10)
    assert [(found.step, found.loss) for found in read_metrics(store)[1]] == [(0, 3.0), (10, 2.0)]
    second.add(evaluation(10, 2.0))
    second.flush()
    assert [(found.step, found.loss) for found in read_metrics(store)[1]] == [(0, 3.0), (10, 2.0)]


def test_a_flush_that_got_no_answer_is_repeated_with_the_same_segments(store: MemoryStore) -> None:
    replies = iter([False, True, True, True])

    def sometimes(operation: Operation) -> Any:
        result = operation.happen()
        if operation.name == "put_new" and operation.key.startswith("metrics/") and not next(replies):
            raise StoreError("no answer")
        return result

    writer = attempt(InterceptedStore(store, sometimes), 0)
    train(writer, range(1, 4))
    with pytest.raises(StoreError):
        writer.flush()
    train(writer, range(4, 6))
    writer.flush()
    assert [entry.key for entry in store.list("metrics/")] == [metrics_key(0, 3, 1), metrics_key(3, 5, 1)]
    assert numbers(store) == [(step, 1) for step in range(1, 6)]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda writer: writer.add(record(2)),
        lambda writer: writer.add(evaluation(1)),
        lambda writer: (writer.add(record(1)), writer.add(record(1))),
    ],
)
def test_records_out_of_order_are_a_mistake(
    store: MemoryStore, wrong: Callable[[MetricsWriter], Any]
) -> None:
    with pytest.raises(ValueError, match="cannot follow"):
        wrong(attempt(store, 0))


def test_two_writers_of_one_epoch_are_an_error_and_a_broken_segment_is_named(store: MemoryStore) -> None:
    writer, double = attempt(store, 0), MetricsWriter(store, 1, 1, 0)
    writer.add(record(1, loss=1.0))
    writer.flush()
    double.add(record(1, loss=2.0))
    with pytest.raises(StoreError, match="is there with other numbers"):
        double.flush()
    store.put(metrics_key(0, 1, 1), b'{"step": 1}\n')
    with pytest.raises(CorruptObject, match=metrics_key(0, 1, 1)):
        read_metrics(store)


def test_a_long_run_is_read_with_one_request_per_segment_that_counts(store: MemoryStore) -> None:
    first = attempt(store, 0)
    for checkpoint in range(0, 20_000, 1000):
        train(first, range(checkpoint + 1, checkpoint + 1001))
        first.flush()
    attempt(store, 10_000)
    calls: list[str] = []

    def note(operation: Operation) -> Any:
        calls.append(f"{operation.name} {operation.key.partition('/')[0]}")
        return operation.happen()

    steps, _ = read_metrics(InterceptedStore(store, note))
    assert [found.step for found in steps] == list(range(1, 10_001))
    assert calls == ["list metrics", "list epoch"] + ["get epoch"] * 2 + ["get metrics"] * 10
