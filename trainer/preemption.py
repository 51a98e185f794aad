"""Being told to leave a machine: a signal becomes a flag that the loop reads between steps.

SIGTERM is a notice: the machine is taken after some seconds. SIGINT is a request to stop: the machine stays until
the last step is saved.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

from trainer.errors import UsageError

SIGNALS = (signal.SIGTERM, signal.SIGINT)

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
        self._taken = False
        self._length_s = notice_length_s()

    def listen(self) -> None:
        """From now on the signals mean: go."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    @property
    def given(self) -> bool:
        return self._since is not None

    @property
    def left_s(self) -> float:
        """Seconds that may still be used; infinite without a notice, and where a user asked to stop."""
        if self._since is None or not self._taken:
            return float("inf")
        return self._length_s - _RESERVE_S - (time.monotonic() - self._since)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._taken = self._taken or number == signal.SIGTERM
        if self._since is None:
            self._since = time.monotonic()


def notice_length_s() -> float:
    """VLAUNCH_NOTICE_S, or the default.

    Raises:
        UsageError: it is no number of seconds.
    """
    text = os.environ.get("VLAUNCH_NOTICE_S", "")
    try:
        return float(text) if text else DEFAULT_NOTICE_S
    except ValueError:
        raise UsageError(f"VLAUNCH_NOTICE_S={text} is no number of seconds") from None
