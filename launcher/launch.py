"""What a cloud must know to look after a run, kept in the run's own journal.

The laptop may be closed, lost or wiped: whoever resumes the run reads this from the store, not from a file here.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.clouds.base import Cloud, open_cloud
from launcher.plan import Candidate, Plan
from launcher.render import run_uri
from launcher.spot.market import Interval, Market, OnDemand, Traces
from launcher.spot.trace import load_trace
from trainer.artifacts.journal import RunEvent, read_journal
from trainer.artifacts.store import open_store
from trainer.errors import UsageError

_ZONE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class MarketSettings:
    """The local spot market as it was asked for."""

    preempt_every_s: float | None = None
    jitter_s: float = 0.0
    seed: int = 0
    traces: tuple[str, ...] = ()
    time_scale: float = 1.0

    def market(self, spot: bool) -> Market:
        if not spot:
            return OnDemand()
        if self.traces:
            return Traces([load_trace(Path(path)) for path in self.traces], self.time_scale)
        if self.preempt_every_s is not None:
            return Interval(self.preempt_every_s, self.jitter_s, self.seed)
        return OnDemand()


@dataclass(frozen=True, slots=True)
class Launch:
    """Where to run, in order of preference, and when to stop."""

    cloud: str
    candidates: tuple[Candidate, ...]
    market: MarketSettings
    notice_s: float = 5.0
    max_cost_usd: float | None = None
    deadline_s: float | None = None

    @property
    def spot(self) -> bool:
        return self.candidates[0].market == "spot"


def difference(old: Launch, new: Launch) -> list[str]:
    """What a second command would change in a run that exists. Limits may change, and so may prices and with them
    the order of the places."""
    before, after = ({**asdict(launch), "places": _places(launch)} for launch in (old, new))
    return [
        f"{name}: {before[name]} -> {after[name]}"
        for name in ("cloud", "places", "market", "notice_s")
        if before[name] != after[name]
    ]


def _places(launch: Launch) -> list[str]:
    return sorted({f"{c.place} {c.instance} {c.accelerator} {c.market}" for c in launch.candidates})


def to_event(plan: Plan, launch: Launch) -> dict[str, Any]:
    """The data of the `created` event."""
    return {"plan": asdict(plan) | {"launch": asdict(launch)}}


def from_events(events: list[RunEvent]) -> Launch:
    """The launch that the `created` event holds, with the limits that were given later.

    Raises:
        UsageError: the run was not created by vlaunch train.
    """
    created = next((event for event in events if event.kind == "created"), None)
    if created is None or "launch" not in created.data.get("plan", {}):
        raise UsageError("this run has no launch settings in its journal", hint="vlaunch train creates runs")
    raw = dict(created.data["plan"]["launch"])
    raw["candidates"] = tuple(Candidate(**candidate) for candidate in raw["candidates"])
    for candidate in raw["candidates"]:
        if candidate.cloud == "local" and not _ZONE.fullmatch(candidate.zone):  # it becomes part of a path
            raise UsageError(f"{candidate.zone!r} in the journal of this run is no name of a zone")
    raw["market"] = MarketSettings(**{**raw["market"], "traces": tuple(raw["market"]["traces"])})
    for event in events:
        if event.kind == "limits":
            raw |= event.data
    return Launch(**raw)


def cloud_of_run(store: str, name: str) -> Cloud:
    """The cloud that looks after a run, from its journal; this machine for one that is not created yet."""
    events = read_journal(open_store(run_uri(store, name)))
    return open_cloud(
        from_events(events).cloud if any(event.kind == "created" for event in events) else "local"
    )
