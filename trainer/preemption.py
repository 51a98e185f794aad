"""The notice that a machine is about to be taken: a signal becomes a flag that the loop reads between steps."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

# What a cloud gives at least where it gives anything: GCP and Azure 30 s, AWS 120 s.
DEFAULT_NOTICE_S = 30.0
# Kept back from the notice for the last PUT and for clocks that disagree.
_RESERVE_S = 1.0


class Notice:
    """Whether this machine has been told to go, and how long it has left.

    The machine's launcher says in VLAUNCH_NOTICE_S how many seconds lie between SIGTERM and the end.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._length_s = float(os.environ.get("VLAUNCH_NOTICE_S", DEFAULT_NOTICE_S))

    def listen(self) -> None:
        """SIGTERM (Slurm, Kubernetes, the local market, the supervisor) from now on means: go."""
        signal.signal(signal.SIGTERM, self._on_signal)

    @property
    def given(self) -> bool:
        return self._since is not None

    @property
    def left_s(self) -> float:
        """Seconds that may still be used; infinite without a notice."""
        if self._since is None:
            return float("inf")
        return self._length_s - _RESERVE_S - (time.monotonic() - self._since)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self._since is None:
            self._since = time.monotonic()
