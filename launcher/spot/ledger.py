"""What SkyPilot's controller knows of a run's machines, and what it adds: the run's journal, from the cloud's side.

A store that does not answer must not keep a run from its next machine. So what was seen and said is also remembered
here, and the journal gets what it can. Without a run (a task that vlaunch did not render), this memory is all.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from launcher.launch import from_events
from launcher.planning.plan import Candidate
from launcher.render import infra, use_spot
from launcher.runs.attempts import box_at_work, open_attempts
from launcher.runs.costs import cost_report
from launcher.spot.policy import order, remember
from trainer.artifacts.journal import Journal, RunEvent, read_journal
from trainer.artifacts.layout import attempt_key
from trainer.artifacts.store import Store, open_store
from trainer.errors import VlaunchError

log = logging.getLogger("sky.vlaunch")

# Of a cloud's own words about a refusal: enough to see a quota, too little for a page of HTML.
_WORDS = 500


class Ledger:
    """One run's, for one life of the controller."""

    def __init__(self, run_uri: str, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._uri, self._now = run_uri, now
        self._store: Store | None = None
        self._own: list[RunEvent] = []
        self._there: list[RunEvent] = []

    def order(self, places: Sequence[tuple[str, bool]]) -> list[Candidate]:
        """Places of the task, as (infra, use_spot), in the order to try them now, with what is known of each."""
        self._read()
        # Of several zones that can only be asked for by their region, the first is the cheapest.
        known = {(infra(c), use_spot(c)): c for c in reversed(self._planned())}
        candidates = [known.get(place) or _unknown(*place) for place in places]
        return order(candidates, remember(self._events()), self._now().timestamp())

    def requested(self, candidate: Candidate) -> int:
        """Enter a request. Returns the ordinal of the attempt that it begins: no two machines ever share one."""
        attempt = max((event.attempt for event in self._events()), default=0) + 1
        attempt = self._claim(attempt)
        self._record(attempt, "requested", **offer(candidate))
        return attempt

    def refused(self, attempt: int, candidate: Candidate, said: str) -> None:
        self._record(
            attempt, "no_capacity", regions=[candidate.region], error=" ".join(said.split())[:_WORDS]
        )

    def running(self, attempt: int, zone: str, instance: str, usd_per_hour: float | None) -> None:
        self._record(attempt, "running", zone=zone, instance=instance, usd_per_hour=usd_per_hour)

    def lost(self) -> None:
        """The newest machine is gone. One that was asked for by a controller that died may never have been there."""
        self._end("preempted", never_seen="orphaned")

    def limit(self) -> str | None:
        """The budget or the deadline that has been reached, in words; entered as the end of the run's last machine."""
        self._read()
        created = next((event for event in self._there if event.kind == "created"), None)
        if created is None:
            return None
        launch, now = from_events(self._there), self._now()
        said = None
        spent = float(cost_report("", tuple(self._events()), now).usd)
        if launch.max_cost_usd is not None and spent >= launch.max_cost_usd:
            said = f"the budget of ${launch.max_cost_usd:g} is spent"
        if launch.deadline_s is not None and (now - created.time).total_seconds() >= launch.deadline_s:
            said = f"the deadline of {launch.deadline_s:g} s has come"
        if said is not None:
            self._record(max((e.attempt for e in self._events()), default=0), "limit", what=said)
        return said

    def stop_asked(self, job: int) -> bool:
        """Whether the user wants this managed job to end."""
        self._read()
        return any(event.kind == "stopping" and event.data.get("job") == job for event in self._there)

    def box_at_work(self) -> bool:
        self._read()
        return box_at_work(self._events())

    def stopped(self) -> None:
        """The newest machine was given back: at a limit, or because the user asked for it."""
        self._end("stopped", never_seen="stopped")

    def _end(self, reason: str, *, never_seen: str) -> None:
        self._read()
        events = self._events()
        seen = {event.attempt for event in events if event.writer == "box" or event.kind == "running"}
        for attempt in open_attempts(events):
            self._record(attempt, "ended", reason=reason if attempt in seen else never_seen)

    def _claim(self, attempt: int) -> int:
        try:
            while self._store is not None and not self._store.put_new(
                attempt_key(attempt), secrets.token_hex(16).encode()
            ):
                attempt += 1
        except VlaunchError as error:
            log.warning("%s: an attempt could not be claimed: %s", self._uri, error.message)
        return attempt

    def _read(self) -> None:
        if not self._uri:
            return
        try:
            if self._store is None:
                self._store = open_store(self._uri)
            self._there = read_journal(self._store, known={event.key: event for event in self._there})
        except VlaunchError as error:
            log.warning("%s: going on from memory: %s", self._uri, error.message)

    def _record(self, attempt: int, kind: str, **data: Any) -> None:
        event = RunEvent(kind=kind, time=self._now(), attempt=attempt, seq=0, writer="launcher", data=data)
        self._own.append(event)
        if self._store is not None:
            Journal(self._store, attempt, "launcher", quiet=True, now=self._now).record(kind, **data)

    def _events(self) -> list[RunEvent]:
        """In time order. An own event that the journal has too counts twice, which changes nothing."""
        return sorted([*self._there, *self._own], key=lambda event: event.time)

    def _planned(self) -> Sequence[Candidate]:
        created = any(event.kind == "created" for event in self._there)
        return from_events(self._there).candidates if created else ()


def offer(candidate: Candidate) -> dict[str, Any]:
    """A candidate as the data of `requested`."""
    return {
        "cloud": candidate.cloud,
        "region": candidate.region,
        "zone": candidate.zone,
        "instance": candidate.instance,
        "market": candidate.market,
        "usd_per_hour": candidate.usd_per_hour,
        "on_demand_usd_per_hour": candidate.on_demand_usd_per_hour,
        "price_source": candidate.price_source,
    }


def _unknown(place: str, spot: bool) -> Candidate:
    """A place that the plan does not have, as after an edit of the task by hand."""
    cloud, region, zone = [*place.split("/"), "", ""][:3]
    return Candidate(cloud, region, zone, "", "spot" if spot else "on-demand", None, None, None, "")
