"""Where to go next: a pure decision from what is known.

A region that has just taken a machine away is the likeliest to do so again, and zones of one region fail
together (correlation 0.4 to 0.8 in the public traces, below 0.3 between regions), so recovery leaves the region
where it can. Stock SkyPilot 0.14.1 goes back to it: its EAGER_NEXT_REGION never blocks the region that was lost.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from launcher.plan import Candidate

# How long a region stays suspect. In the traces most up-times that end do so within their first hour.
MEMORY_S = 3600.0


def choose(
    candidates: Sequence[Candidate],
    available_zones: Collection[str],
    lost_at_s: Mapping[str, float],
    now_s: float,
) -> Candidate | None:
    """The candidate to try now; None if no zone has a machine.

    Candidates come in order of preference. One in a region lost within MEMORY_S stands behind all others; of
    several such, the one whose loss is longest ago comes first.

        candidates A, B (B dearer); nothing lost  -> A
        A lost just now                           -> B
        B lost too, a minute later                -> A
    """
    obtainable = [candidate for candidate in candidates if candidate.zone in available_zones]

    def suspicion(candidate: Candidate) -> float:
        lost = lost_at_s.get(candidate.region)
        return 0.0 if lost is None or now_s - lost > MEMORY_S else 1.0 + lost

    return min(obtainable, key=suspicion, default=None)
