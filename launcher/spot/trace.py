"""Recorded availability of spot machines, per zone (github.com/skypilot-org/spot-traces).

A file is {"metadata": {"gap_seconds": g}, "data": [n, ...]}: at each tick of g seconds, how many of the
requested machines were up or obtainable. A zone's name is the file's name up to the accelerator.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import UsageError

# us-west-2a, us-central1-a, ... and then what the trace asked for: _v100_1, _c3-88.
_ZONE = re.compile(r"(?P<zone>(?P<region>[a-z]+-[a-z]+-?\d+)-?[a-z])(?:_|$)")
_FORM = '{"metadata": {"gap_seconds": 60}, "data": [1, 1, 0, ...]}'


@dataclass(frozen=True, slots=True)
class SpotTrace:
    """Machines available over time in one zone."""

    zone: str
    region: str
    gap_s: float
    counts: tuple[int, ...]

    @property
    def length_s(self) -> float:
        return len(self.counts) * self.gap_s

    def available(self, at_s: float, machines: int = 1) -> bool:
        """Whether `machines` could be had; a trace that has ended begins again."""
        return self.counts[int(at_s / self.gap_s) % len(self.counts)] >= machines

    def next_change(self, at_s: float, machines: int = 1) -> float:
        """The first time after `at_s` at which availability differs; infinite where it never does."""
        now = self.available(at_s, machines)
        first = int(at_s / self.gap_s) + 1
        for tick in range(first, first + len(self.counts)):
            if (self.counts[tick % len(self.counts)] >= machines) != now:
                return tick * self.gap_s
        return float("inf")


def load_trace(path: Path) -> SpotTrace:
    """One zone's trace.

    Raises:
        UsageError: no such file, or not a trace, with what was expected.
    """
    try:
        raw = json.loads(path.read_text())
        gap = float(raw["metadata"]["gap_seconds"])
        counts = tuple(int(count) for count in raw["data"])
    except OSError as error:
        raise UsageError(f"cannot read the spot trace {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a spot trace ({error!r})", hint=f"a trace is {_FORM}") from None
    if gap <= 0 or not counts or min(counts) < 0:
        raise UsageError(
            f"{path}: a spot trace needs a positive gap and counts from 0", hint=f"a trace is {_FORM}"
        )
    match = _ZONE.match(path.stem)
    zone, region = (match["zone"], match["region"]) if match else (path.stem, path.stem)
    return SpotTrace(zone, region, gap, counts)
