"""Events -> attempts: what the journal says about each machine's life.

An attempt is billed from the moment its machine was seen up to its recorded end. Journals have gaps (a laptop
that was closed, a box that was killed between a commit and the entry about it); each gap is filled by the
evidence that is left, and the report says where.

Pure: no clock, no store.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

from trainer.artifacts.journal import RunEvent

# The last thing a box says in its life; what its machine does afterwards is idle.
_LAST_WORDS = ("finished", "failed", "preempted", "fenced")
_BEGINNINGS = ("requested", "running")
_OPENING, _CLOSING = ("requested", "running", "started"), ("ended", "finished", "no_capacity")


@dataclass(frozen=True, slots=True)
class Price:
    """What one hour of an attempt's machines costs, as known when they were asked for."""

    usd_per_hour: Fraction | None  # None: nobody recorded a price
    on_demand_usd_per_hour: Fraction | None
    source: str
    notional: bool  # the machine is not rented (the local cloud): nothing is paid


@dataclass(frozen=True, slots=True)
class Mark:
    """A step that became durable and the moment training had reached it."""

    step: int
    taken_at: datetime


@dataclass(frozen=True, slots=True)
class Attempt:
    """One machine's life, as far as the journal knows it."""

    ordinal: int
    cloud: str
    region: str
    zone: str
    instance: str
    market: str  # "spot" | "on-demand"
    price: Price
    asked: datetime  # first event of the attempt
    up: datetime | None  # None: no machine was ever seen
    started: datetime | None
    resumed_from: int | None
    trained: datetime | None  # end of the first new step
    marks: tuple[Mark, ...]
    last_word: datetime | None
    finished: bool
    end: datetime | None  # None: still there
    reason: str | None  # why it ended; None where nobody recorded it
    end_assumed: bool = False
    sent_bytes: int = 0


def attempts_of(
    events: Iterable[RunEvent], durable: Mapping[int, Sequence[Mark]] | None = None
) -> tuple[Attempt, ...]:
    """The attempts of a run in order, an unclosed one closed where a later one took over."""
    events = sorted(events, key=lambda event: event.time)
    # Other words of a launcher (stopping, ended) may carry the number of an attempt that never was.
    ordinals = sorted(
        {e.attempt for e in events if e.attempt and (e.writer == "box" or e.kind in _BEGINNINGS)}
    )
    groups = [[event for event in events if event.attempt == ordinal] for ordinal in ordinals]
    attempts: list[Attempt] = []
    for index, group in enumerate(groups):
        successor = _first(groups[index + 1], "requested", "started") if index + 1 < len(groups) else None
        attempts.append(_attempt(group, successor, durable or {}))
    return tuple(attempts)


def open_attempts(events: Sequence[RunEvent]) -> list[int]:
    """Attempts that were asked for, or began by themselves, and of whose end nobody has told."""
    of = {kind: {event.attempt for event in events if event.kind == kind} for kind in _OPENING + _CLOSING}
    refused = of["no_capacity"] - of["running"] - of["started"]
    return sorted((of["requested"] | of["started"]) - of["ended"] - of["finished"] - refused)


def box_at_work(events: Sequence[RunEvent]) -> bool:
    """Whether the newest attempt has begun, and neither its box nor its launcher has told of its end."""
    newest = max((event.attempt for event in events), default=0)
    kinds = {event.kind for event in events if event.attempt == newest}
    return "started" in kinds and not kinds & {*_LAST_WORDS, "ended"}


def region_name(attempt: Attempt) -> str:
    return f"{attempt.cloud}/{attempt.region}" if attempt.cloud else attempt.region or "unknown"


def moment(value: object) -> datetime | None:
    """A time inside an event's data: ISO 8601 text or seconds since 1970 (UTC)."""
    if isinstance(value, datetime):
        return value
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC)
    if isinstance(value, str):
        time = datetime.fromisoformat(value)
        return time if time.tzinfo else time.replace(tzinfo=UTC)
    return None


def _attempt(
    group: Sequence[RunEvent], successor: RunEvent | None, durable: Mapping[int, Sequence[Mark]]
) -> Attempt:
    request = next((event.data for event in reversed(group) if event.kind == "requested"), {})
    running = next((event.data for event in group if event.kind == "running"), {})
    started = _last(group, "started")
    finished = _last(group, "finished")
    ended = _first(group, "ended")
    epoch = started.data.get("epoch") if started else None
    end, assumed = _end(group, ended, successor)
    return Attempt(
        ordinal=group[0].attempt,
        cloud=str(request.get("cloud") or ""),
        region=str(request.get("region") or (started.data.get("region") if started else "") or ""),
        zone=str(running.get("zone") or request.get("zone") or ""),
        instance=str(running.get("instance") or request.get("instance") or ""),
        market=str(request.get("market") or "spot"),
        price=_price(request, running),
        asked=group[0].time,
        up=_up(group),
        started=started.time if started else None,
        resumed_from=(_int(started.data.get("resumed_from")) or 0) if started else None,
        trained=getattr(_first(group, "training"), "time", None),
        marks=_marks(group, durable.get(epoch, ()) if isinstance(epoch, int) else ()),
        last_word=getattr(_last(group, *_LAST_WORDS), "time", None),
        finished=finished is not None,
        end=end,
        reason=str(ended.data.get("reason")) if ended else None,
        end_assumed=assumed,
        sent_bytes=sum(
            _int(event.data.get("sent_bytes")) or 0 for event in group if event.kind == "checkpoint"
        ),
    )


def _up(group: Sequence[RunEvent]) -> datetime | None:
    """When billing begins: the machine was seen running, or else must have been there since it was asked for.

    A request that led to no sign of life bills nothing, unless the launcher lost sight of it (`orphaned`).
    """
    running = _first(group, "running")
    boxes = [event for event in group if event.writer == "box"]
    if running is not None:
        return min([running.time, *(event.time for event in boxes[:1])])
    ended = _first(group, "ended")
    if boxes or (ended is not None and ended.data.get("reason") == "orphaned"):
        return (_first(group, "requested") or group[0]).time
    return None


def _end(
    group: Sequence[RunEvent], ended: RunEvent | None, successor: RunEvent | None
) -> tuple[datetime | None, bool]:
    """When billing stops, and whether that is an assumption.

    Without `ended`: at the request for the machine that came after (but not before the box's own last event,
    when it was there to be seen), or at the box's last word: a managed job's machine goes away with its job.
    An orphan's `ended` is when it was found, so there the last word counts too.
    """
    word = _last(group, *_LAST_WORDS)
    if ended is not None and (ended.data.get("reason") != "orphaned" or word is None):
        return ended.time, False
    box_times = [event.time for event in group if event.writer == "box"]
    if successor is not None and ended is None:
        return max([successor.time, *box_times]), True
    return (word.time, True) if word is not None else (None, False)


def _price(request: Mapping[str, Any], running: Mapping[str, Any]) -> Price:
    """As planned; where no price was known then, as the cloud said when it gave the machine."""
    planned = request.get("usd_per_hour")
    return Price(
        usd_per_hour=_fraction(running.get("usd_per_hour") if planned is None else planned),
        on_demand_usd_per_hour=_fraction(request.get("on_demand_usd_per_hour")),
        source=str(request.get("price_source") or ""),
        notional=bool(request.get("notional", request.get("cloud") == "local")),
    )


def _marks(group: Sequence[RunEvent], from_manifests: Sequence[Mark]) -> tuple[Mark, ...]:
    """Durable steps in order; the journal's time of a step wins over a manifest's, which is later."""
    marks = {mark.step: mark for mark in from_manifests}
    for event in group:
        step = _int(event.data.get("steps" if event.kind == "finished" else "step"))
        if step is None:
            continue
        if event.kind == "checkpoint":
            marks[step] = Mark(step, moment(event.data.get("taken_at")) or event.time)
        elif event.kind == "finished":  # the run's end keeps everything before it
            marks[step] = Mark(step, event.time)
    return tuple(sorted(marks.values(), key=lambda mark: mark.step))


def _first(events: Sequence[RunEvent], *kinds: str) -> RunEvent | None:
    return next((event for event in events if event.kind in kinds), None)


def _last(events: Sequence[RunEvent], *kinds: str) -> RunEvent | None:
    return next((event for event in reversed(events) if event.kind in kinds), None)


def _fraction(value: object) -> Fraction | None:
    """Through the decimal text, so that 0.0266 is 266/10000 and not the nearest double."""
    try:
        return Fraction(str(value)) if isinstance(value, int | float | str) else None
    except ValueError:  # "nan": the price was not known
        return None


def _int(value: object) -> int | None:
    return value if isinstance(value, int) else None
