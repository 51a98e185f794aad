"""Where to go next: a pure decision from what the run's journal remembers.

A region that has just taken a machine away is the likeliest to do so again, and zones of one region fail
together (correlation 0.4 to 0.8 in the public traces, below 0.3 between regions), so recovery leaves the region
where it can. Stock SkyPilot 0.14.1 goes back to it: its EAGER_NEXT_REGION never blocks the region that was lost.

The local cloud and the strategy in SkyPilot's controller ask the same policy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from launcher.planning.catalog import OWN
from launcher.planning.plan import Candidate
from trainer.artifacts.journal import RunEvent

# How long a region stays suspect. In the traces most up-times that end do so within their first hour.
MEMORY_S = 3600.0
# How long a place that had no machine stays suspect: outages of a zone last one to three hours in the traces, but
# asking costs seconds, and an empty region must not be left for good.
REFUSAL_S = 600.0

Place = tuple[str, str, str]
"""Cloud, region, market: what is lost together. An on-demand machine is not taken with the spot ones beside it."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What a run has met so far, as UTC seconds."""

    lost_s: Mapping[Place, float] = field(default_factory=dict)
    """When a machine was last taken away there."""
    refused_s: Mapping[Place, float] = field(default_factory=dict)
    """When there was last none to be had."""


def remember(events: Iterable[RunEvent]) -> Memory:
    """The memory that a journal holds; of a place that gave a machine after it had none, the refusal is forgotten."""
    asked: dict[int, Place] = {}
    lost: dict[Place, float] = {}
    refused: dict[Place, float] = {}
    up: set[int] = set()
    for event in events:
        if event.kind == "requested":
            asked[event.attempt] = _place(event.data)
        place = asked.get(event.attempt)
        if place is None:
            continue
        if event.kind == "ended" and event.data.get("reason") == "preempted":
            lost[place] = event.time.timestamp()
        elif event.kind == "no_capacity" and event.attempt not in up:
            refused[place] = event.time.timestamp()
        elif event.kind == "running":
            up.add(event.attempt)
            refused.pop(place, None)
    return Memory(lost, refused)


def order(candidates: Sequence[Candidate], memory: Memory, now_s: float) -> list[Candidate]:
    """All candidates, in the order to try them now.

    They come in order of preference. One in a suspect place stands behind all others that may be taken as well, but
    before an on-demand machine that was behind it: none is paid for while another region may have a spot one. Of
    suspect ones that comes first whose trouble is longest ago.

        candidates A, B (B dearer), and A on demand; nothing lost  -> A, B, A on demand
        A lost just now                                            -> B, A, A on demand
        B lost too, a minute later                                 -> A, B, A on demand
    """
    ranked = list(candidates)
    for safe in (False, True):
        seats = [number for number, candidate in enumerate(candidates) if _is_safe(candidate) is safe]
        taken = sorted((candidates[seat] for seat in seats), key=lambda c: _suspicion(c, memory, now_s))
        for seat, candidate in zip(seats, taken, strict=True):
            ranked[seat] = candidate
    return ranked


def choose(
    candidates: Sequence[Candidate], available_zones: Collection[str], memory: Memory, now_s: float
) -> Candidate | None:
    """The first in that order of those whose zone has a machine; None if no zone has one."""
    ranked = order(candidates, memory, now_s)
    return next((candidate for candidate in ranked if candidate.zone in available_zones), None)


def _is_safe(candidate: Candidate) -> bool:
    """Paid for not being taken."""
    return candidate.market == "on-demand" and candidate.cloud not in OWN


def _suspicion(candidate: Candidate, memory: Memory, now_s: float) -> float:
    """0 for a place without trouble, else when the trouble was."""
    place = (candidate.cloud, candidate.region, candidate.market)
    troubles = [
        at
        for times, kept_s in ((memory.lost_s, MEMORY_S), (memory.refused_s, REFUSAL_S))
        if (at := times.get(place)) is not None and now_s - at <= kept_s
    ]
    return max(troubles, default=0.0)


def _place(asked: Mapping[str, object]) -> Place:
    return (str(asked.get("cloud") or ""), str(asked.get("region") or ""), str(asked.get("market") or ""))
