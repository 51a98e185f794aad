"""Journals of made-up runs, written down as what happened when. Seconds count from NOON."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from trainer.artifacts import layout
from trainer.artifacts.fencing import claim
from trainer.artifacts.journal import Journal, RunEvent, Writer
from trainer.artifacts.manifest import Manifest
from trainer.artifacts.metrics import EvalRecord, MetricsWriter, StepRecord
from trainer.artifacts.store import Store, join_uri, open_store

NOON = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def event(kind: str, seconds: float, attempt: int = 1, writer: Writer = "box", /, **data: Any) -> RunEvent:
    return RunEvent(kind=kind, time=at(seconds), attempt=attempt, seq=0, writer=writer, data=data)


def launcher(kind: str, seconds: float, attempt: int = 1, /, **data: Any) -> RunEvent:
    return event(kind, seconds, attempt, "launcher", **data)


def request(seconds: float, attempt: int, region: str = "us-east-1", **data: Any) -> RunEvent:
    """A machine at 36 cents an hour, so a second costs a hundredth of a cent; a dollar an hour on demand."""
    prices = {"usd_per_hour": 0.36, "on_demand_usd_per_hour": 1.0, "price_source": "catalog 2025-12"}
    place = {
        "cloud": "aws",
        "region": region,
        "zone": region + "a",
        "instance": "m6i.large",
        "market": "spot",
    }
    return launcher("requested", seconds, attempt, **{**place, **prices, **data})


def life(
    attempt: int,
    asked: float,
    *,
    region: str = "us-east-1",
    resumed_from: int = 0,
    trained: float | None = None,
    saved: Iterable[tuple[int, float]] = (),
    taken: float | None = None,
    finished: tuple[int, float] | None = None,
    **prices: Any,
) -> list[RunEvent]:
    """One attempt: up 5 s after it was asked for, its box started 2 s later.

    saved: (step, taken_at), durable one second after. taken: killed then. finished: (steps, when), gone a
    second later.
    """
    events = [
        request(asked, attempt, region, **prices),
        launcher("running", asked + 5, attempt),
        event(
            "started",
            asked + 7,
            attempt,
            epoch=attempt,
            resumed_from=resumed_from,
            world_size=1,
            region=region,
        ),
    ]
    if trained is not None:
        events.append(event("training", trained, attempt, step=resumed_from + 1, seconds={"import": 2.0}))
    for step, seconds in saved:
        times = {"taken_at": at(seconds).isoformat(), "durable_at": at(seconds + 1).isoformat()}
        events.append(event("checkpoint", seconds + 1, attempt, step=step, **times, sent_bytes=1000))
    if taken is not None:
        events.append(launcher("ended", taken, attempt, reason="preempted", exit_code=-9, notice_s=0))
    if finished is not None:
        steps, seconds = finished
        events.append(event("finished", seconds, attempt, steps=steps))
        events.append(launcher("ended", seconds + 1, attempt, reason="finished", exit_code=0, notice_s=0))
    return events


def write_run(uri: str, run_id: str) -> None:
    """A run in a real store by the real writers: preempted after step 30, resumed from 20, finished at 40.

    Attempt 1 has steps 21 to 30 in the store too; they do not count.
    """
    store = open_store(join_uri(uri, layout.run_prefix(run_id)))
    store.put_new(layout.CONFIG, b'{"train": {"max_steps": 40}}')
    events = [
        launcher("created", 0, 0, plan={"steps": 41}),
        *life(1, 0, trained=15, saved=[(20, 35)], taken=50),
        *life(2, 60, region="eu-west-1", resumed_from=20, trained=75, saved=[(40, 95)], finished=(40, 100)),
    ]
    for item in events:
        journal = Journal(store, item.attempt, item.writer, now=partial(getattr, item, "time"))
        journal.record(item.kind, **item.data)
    _train(store, attempt=1, first=0, checkpoint=20, last=30)
    _train(store, attempt=2, first=20, checkpoint=40, last=40)


def _train(store: Store, attempt: int, first: int, checkpoint: int, last: int) -> None:
    lease = claim(store)
    newest = next(lease.newest(), None)
    lease.start(first, newest.key if newest else None)
    writer = MetricsWriter(store, lease.epoch, attempt, first)
    if first == 0:
        writer.add(EvalRecord(0, 9.0, at(15).timestamp()))
    for step in range(first + 1, last + 1):
        # Steps of a cut-off attempt have another loss here, so that a test sees which one it got.
        loss = 3.0 + 1 / step if step <= checkpoint else 99.0
        total = {"tokens": 500 * step, "samples": 8 * step}
        writer.add(
            StepRecord(
                step=step, loss=loss, grad_norm=0.1 * step, learning_rate=1e-3 / step, batch=f"{step:04x}",
                attempt=attempt, epoch=lease.epoch, time=at(step).timestamp(), step_s=0.25, **total,
            )
        )  # fmt: skip
        if step == checkpoint:
            writer.add(EvalRecord(step, 3.5, at(step).timestamp()))
            writer.flush()
            lease.commit(
                Manifest(step=step, epoch=lease.epoch, parent=newest.key if newest else None, world_size=1,
                         **total, created=at(step), files=())
            )  # fmt: skip
    writer.flush()
