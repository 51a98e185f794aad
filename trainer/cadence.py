"""When to save: from what saves have cost here, and from how long machines have lasted. Light.

Young's first-order optimum (1974): the interval that balances standing still against work lost is
sqrt(2 * cost of a save * mean time between preemptions). Both are measured while the run goes on, so that the
interval is planned anew after each save and in each attempt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta

from trainer.artifacts.journal import EVENTS
from trainer.artifacts.layout import JOURNAL, JournalKey, parse_journal_key
from trainer.artifacts.store import Store
from trainer.config import ASSUMED_STALL_S, CheckpointSection

# An attempt with one of these in its journal was not taken by the market.
_ENDED_OTHERWISE = frozenset({"finished", "failed", "stopping", "limit"})


def young_interval_s(cost_s: float, mtbf_s: float) -> float:
    """Seconds from one save to the next: Young (1974)."""
    return math.sqrt(2.0 * cost_s * mtbf_s)


def measured_mtbf_s(store: Store, attempt: int, expected_s: float) -> float:
    """Mean seconds between preemptions: what was expected, corrected by the attempts before this one.

    The mean of a Gamma posterior whose prior weighs as much as one preemption: (expected + seconds lived) /
    (1 + preemptions). The names of the journal's events are enough; one listing, no read. A machine that was killed
    without a notice counts until its last event, so up to one save too short.
    """
    lived, taken = timedelta(0), 0
    for events in _by_attempt(store, before=attempt).values():
        times = [event.time for event in events if EVENTS[event.kind].writer == "box"]
        began = next((event.time for event in events if event.kind == "started"), None)
        if began is None:
            continue
        lived += max([began, *times]) - began
        taken += _ENDED_OTHERWISE.isdisjoint(event.kind for event in events)
    return (expected_s + lived.total_seconds()) / (1 + taken)


def _by_attempt(store: Store, before: int) -> dict[int, list[JournalKey]]:
    """In the order of their times. A kind that a newer program writes is none of ours."""
    found: dict[int, list[JournalKey]] = {}
    for entry in store.list(JOURNAL):
        key = parse_journal_key(entry.key)
        if key and 0 < key.attempt < before and key.kind in EVENTS:
            found.setdefault(key.attempt, []).append(key)
    return found


@dataclass
class Cadence:
    """When the next save is due, from what saves have cost so far.

    The interval is kept above twice the time a save takes to become durable, so that a store which is slower than
    the optimum stretches it instead of being written to all the time, and below max_interval_s.
    """

    settings: CheckpointSection
    shares_cores: bool
    mtbf_s: float
    """Expected seconds between two preemptions."""
    stall_s: float = ASSUMED_STALL_S
    save_s: float = 0.0
    """Until the last one was durable."""
    busy_s: float = 0.0
    """Until the next one could begin: copies for other regions are made as well."""

    @property
    def cost_s(self) -> float:
        """Seconds of training that a save costs. Where training itself runs on the CPU, the background part
        takes the same cores away."""
        return self.stall_s + (self.save_s if self.shares_cores else 0.0)

    @property
    def takes_s(self) -> float:
        """Seconds from the end of a step until it is durable, as the last save took; before the first one, little."""
        return self.stall_s + self.save_s

    @property
    def store_is_slow(self) -> bool:
        """The store decides the interval, not the balance of cost and risk."""
        return self._floor_s > young_interval_s(self.cost_s, self.mtbf_s)

    @property
    def interval_s(self) -> float:
        optimum = young_interval_s(self.cost_s, self.mtbf_s)
        return min(max(optimum, self._floor_s), self.settings.max_interval_s)

    @property
    def _floor_s(self) -> float:
        return 2.0 * max(self.save_s, self.busy_s)

    def told(self) -> dict[str, float | bool]:
        """For people who watch: seconds from one save to the next, where time decides, and why."""
        if self.settings.save_strategy != "auto":
            return {}
        return {
            "next_s": round(self.interval_s, 1),
            "mtbf_s": round(self.mtbf_s, 1),
            "store_is_slow": self.store_is_slow,
        }

    def due(self, step: int, since_last_s: float) -> bool:
        if self.settings.save_strategy == "steps":
            return step % self.settings.save_steps == 0
        return since_last_s >= self.interval_s
