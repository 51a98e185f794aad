"""When the local cloud's machines can be had and when they are taken: the weather, decided beforehand.

Both markets are pure functions of their settings, so a run can be repeated preemption for preemption.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from launcher.spot.trace import SpotTrace


class Market(Protocol):
    """Times are seconds since the run began."""

    def available(self, zone: str, at_s: float) -> bool:
        """Whether a machine can be had in this zone."""
        ...

    def taken_at(self, zone: str, since_s: float, attempt: int) -> float:
        """When a machine that came up at `since_s` is taken away; infinite for never."""
        ...


@dataclass(frozen=True, slots=True)
class OnDemand:
    """Machines that nobody takes away."""

    def available(self, zone: str, at_s: float) -> bool:
        return True

    def taken_at(self, zone: str, since_s: float, attempt: int) -> float:
        return float("inf")


@dataclass(frozen=True, slots=True)
class Interval:
    """Each machine is taken after `every_s`, give or take `jitter_s`; there is always another."""

    every_s: float
    jitter_s: float = 0.0
    seed: int = 0

    def available(self, zone: str, at_s: float) -> bool:
        return True

    def taken_at(self, zone: str, since_s: float, attempt: int) -> float:
        digest = hashlib.sha256(f"{self.seed}/{attempt}".encode()).digest()
        drawn = int.from_bytes(digest[:8], "big") / 2**64  # uniform in [0, 1)
        return since_s + self.every_s + (2.0 * drawn - 1.0) * self.jitter_s


@dataclass(frozen=True, slots=True)
class Traces:
    """Availability as recorded, `scale` times as fast as it happened."""

    traces: Sequence[SpotTrace]
    scale: float = 1.0
    machines: int = 1

    def available(self, zone: str, at_s: float) -> bool:
        return self._of(zone).available(at_s * self.scale, self.machines)

    def taken_at(self, zone: str, since_s: float, attempt: int) -> float:
        return self._of(zone).next_change(since_s * self.scale, self.machines) / self.scale

    def _of(self, zone: str) -> SpotTrace:
        return next(trace for trace in self.traces if trace.zone == zone)
