"""The journal of a run: write-once facts with a UTC time, from which status and costs are derived.

The launcher and the box write into the same journal without talking to each other; every event is an object
of its own, created if absent, so writers never disturb one another and a killed one leaves no half event.
Clocks of machines differ: the order between two machines is only as good as their clocks, the order of one
writer's events is always right.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from trainer.artifacts.layout import JOURNAL, journal_key, parse_journal_key
from trainer.artifacts.store import Store
from trainer.errors import CorruptObject, StoreError

_log = logging.getLogger(__name__)

Writer = Literal["launcher", "box"]


@dataclass(frozen=True, slots=True)
class EventKind:
    """What an event of this kind means, who writes it, and what its data may contain."""

    writer: Writer
    meaning: str
    fields: tuple[str, ...] = ()


EVENTS: dict[str, EventKind] = {
    "created": EventKind("launcher", "the run exists: its plan is decided and agreed to", ("plan",)),
    "submitted": EventKind(
        "launcher", "the run is handed to SkyPilot as this managed job", ("job", "name", "strategy")
    ),
    "requested": EventKind(
        "launcher",
        "a machine is asked for",
        (
            "cloud",
            "region",
            "zone",
            "instance",
            "market",
            "usd_per_hour",
            "on_demand_usd_per_hour",
            "price_source",
        ),
    ),
    "running": EventKind(
        "launcher",
        "the machine is there and the task runs: it is paid from here; what the request left open",
        ("zone", "instance", "usd_per_hour"),
    ),
    "no_capacity": EventKind(
        "launcher", "none of these regions had a machine; in the cloud's words: why", ("regions", "error")
    ),
    "ended": EventKind(
        "launcher",
        "the machine is gone; reason: preempted, stopped, failed, finished or orphaned",
        ("reason", "exit_code", "notice_s"),
    ),
    "stopping": EventKind(
        "launcher",
        "the user asked the run to stop; job: the managed job that is to end, on SkyPilot",
        ("job",),
    ),
    "limits": EventKind(
        "launcher", "the budget or the deadline is another one from here on", ("max_cost_usd", "deadline_s")
    ),
    "limit": EventKind("launcher", "a budget or a deadline ends the run", ("what",)),
    "started": EventKind(
        "box",
        "the attempt owns the run and knows where it resumes; read: bytes by store, of each of the nodes",
        ("epoch", "resumed_from", "world_size", "region", "corpus", "store_region", "read", "nodes"),
    ),
    "training": EventKind("box", "the first new step is done; seconds by phase", ("step", "seconds")),
    "tracked": EventKind("box", "a curve elsewhere is kept up to date by this attempt", ("url",)),
    "checkpoint": EventKind(
        "box",
        "a checkpoint is durable; next_s: until the next save, from this risk (mtbf_s) and what saves cost; "
        "store_is_slow: the store, not the balance, decides it; skipped: saves that were due during this one",
        (
            "step",
            "taken_at",
            "durable_at",
            "stall_s",
            "save_s",
            "upload_s",
            "bytes",
            "sent_bytes",
            "skipped",
            "next_s",
            "mtbf_s",
            "store_is_slow",
        ),
    ),
    "replicated": EventKind(
        "box", "a checkpoint is in another store as well", ("step", "store", "region", "bytes", "seconds")
    ),
    "replica_failed": EventKind(
        "box", "it is not; nothing else changes", ("step", "store", "region", "error")
    ),
    "save_failed": EventKind("box", "a save failed and training goes on", ("step", "error")),
    "fallback": EventKind(
        "box", "a checkpoint is unusable, the one before is tried", ("manifest", "problem")
    ),
    "warning": EventKind(
        "box",
        "the cloud says that the machine may be taken, or no longer; training goes on",
        ("step", "source"),
    ),
    "notice": EventKind(
        "box",
        "the machine will be taken; source: the cloud's words or a signal; left_s: until then, less a reserve; "
        "save_s: what a save takes, by estimate",
        ("step", "source", "left_s", "save_s"),
    ),
    "preempted": EventKind(
        "box",
        "the attempt ends to be resumed elsewhere; the steps above durable_step are lost",
        ("step", "durable_step", "lost_steps"),
    ),
    "exported": EventKind("box", "the final model is in the store", ("bytes",)),
    "sampled": EventKind("box", "the trained model answered a prompt", ("prompt", "reply")),
    "finished": EventKind(
        "box",
        "the training goal is reached",
        ("steps", "tokens", "samples"),
    ),
    "failed": EventKind("box", "the attempt ended with an error", ("error", "hint", "exit_code")),
    "fenced": EventKind("box", "a newer attempt owns the run; this one stopped", ("by",)),
}
"""Every kind of event. Data fields may be left out; others are refused when written."""


class RunEvent(BaseModel):
    """One fact of a run. `attempt` is the ordinal of a machine's life, from 1; 0 is before any."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    time: AwareDatetime
    attempt: Annotated[int, Field(ge=0)]
    seq: Annotated[int, Field(ge=0)]
    writer: Writer
    data: dict[str, Any] = {}

    @property
    def key(self) -> str:
        return journal_key(self.time, self.attempt, self.seq, self.kind)

    def encode(self) -> bytes:
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, allow_nan=False).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> RunEvent:
        """CorruptObject for anything but an event. An unknown kind is one: a newer program wrote it."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise CorruptObject(f"not a journal event: {error.errors()[0]['msg']}") from None


class Journal:
    """Writes the events of one attempt. `quiet`: a store that fails is logged, never raised into training."""

    def __init__(
        self,
        store: Store,
        attempt: int,
        writer: Writer,
        *,
        quiet: bool = False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store, self._attempt, self._writer = store, attempt, writer
        self._quiet, self._now = quiet, now
        self._lock = threading.Lock()
        self._seq = 0
        self._last = datetime.min.replace(tzinfo=UTC)

    def record(self, kind: str, /, **data: Any) -> RunEvent | None:
        """Write one event and return it; None only if quiet and the store failed.

        A kind or a field that EVENTS does not know is a ValueError: a mistake in the program, not a fault.
        """
        known = EVENTS.get(kind)
        if known is None:
            raise ValueError(f"unknown kind of journal event: {kind!r}")
        if surplus := sorted(set(data) - set(known.fields)):
            raise ValueError(f"journal event {kind!r} has no field {surplus[0]!r}, only {known.fields}")
        plain = {name: _plain(value) for name, value in data.items()}
        try:
            with self._lock:
                return self._write(kind, plain)
        except StoreError as error:
            if not self._quiet:
                raise
            _log.warning("journal: %s event was not written: %s", kind, error)
            return None

    def _write(self, kind: str, data: dict[str, Any]) -> RunEvent:
        # A clock that stands still or is set back must not reorder one writer's events.
        self._last = max(self._now(), self._last + timedelta(microseconds=1))
        while True:
            event = RunEvent(
                kind=kind,
                time=self._last,
                attempt=self._attempt,
                seq=self._seq,
                writer=self._writer,
                data=data,
            )
            self._seq += 1
            if self._store.put_new(event.key, event.encode()):
                return event
            # Another writer of this attempt has this very microsecond and number: take the next number.


def read_journal(
    store: Store, start_after: str = "", known: Mapping[str, RunEvent] = MappingProxyType({})
) -> list[RunEvent]:
    """Events in the order of their keys, that is of time; `start_after` is the `key` of the last one known.

    A follower that only ever asks for what comes after the last key misses an event of a machine whose clock
    is behind: read everything again now and then. One listing, one read per event that is not among the `known`,
    by key: none ever changes.
    """
    found = []
    for entry in store.list(JOURNAL, start_after=start_after):
        if parse_journal_key(entry.key):
            try:
                found.append(known.get(entry.key) or RunEvent.decode(store.get(entry.key)))
            except CorruptObject as error:
                said = f"{store.uri}: {entry.key}: {error.message}"
                raise CorruptObject(said, hint="delete that object") from None
    return found


def _plain(value: Any) -> Any:
    """JSON has no infinity and no NaN, and a diverged loss is worth recording: as text, then."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int):
        return value
    return str(value)
