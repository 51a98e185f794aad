"""Bytes on their way into a store: counted, held to a rate, and stopped.

A store takes its bytes from a file in the middle of a request; whoever wants to slow that down or to call it off is
far away. So `carried` names the pace for the calling thread, and a store asks for `current()` where it opens
the file. Nothing is held back in memory: a reader that must wait simply reads later.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from trainer.errors import StoreError

_PIECE = 1 << 20  # bytes copied at a time
# A pause is made up for by at most this many seconds of full speed.
_BURST_S = 0.25


class GivenUp(StoreError):
    """The transfer was called off by its owner."""


class Pace:
    """Of one transfer, or of several one after another; thread-safe."""

    def __init__(self, bytes_per_s: float | None = None) -> None:
        """None: as fast as it goes."""
        self.bytes_per_s = bytes_per_s
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._why = ""
        self._paid_until = 0.0  # when the bytes let through so far will have had their time
        self._sent = 0

    @property
    def sent(self) -> int:
        """Bytes let through, those of repeated requests included."""
        return self._sent

    def let(self, count: int) -> None:
        """Count bytes that are about to go, and wait until they may.

        Raises:
            GivenUp: the transfer was stopped.
        """
        with self._lock:
            self._sent += count
            wait_s = self._wait_s(count)
        if self._stopped.wait(wait_s) if wait_s > 0 else self._stopped.is_set():
            raise GivenUp(self._why)

    def stop(self, why: str) -> None:
        """What is under way ends with GivenUp at its next bytes."""
        self._why = why
        self._stopped.set()

    def _wait_s(self, count: int) -> float:
        if self.bytes_per_s is None:
            return 0.0
        now = time.monotonic()
        self._paid_until = max(self._paid_until, now - _BURST_S) + count / self.bytes_per_s
        return self._paid_until - now


_current: ContextVar[Pace | None] = ContextVar("pace", default=None)


def current() -> Pace | None:
    """The pace of the calling thread; None where nobody minds."""
    return _current.get()


@contextmanager
def carried(pace: Pace) -> Iterator[None]:
    """Every file that this thread puts into a store meanwhile goes at this pace."""
    token = _current.set(pace)
    try:
        yield
    finally:
        _current.reset(token)


def copy_file(source: Path, target: Path) -> None:
    """All bytes of a file into a new one, at the current pace."""
    pace = current()
    if pace is None:
        shutil.copyfile(source, target)
        return
    with open(source, "rb") as old, open(target, "xb") as new:
        while piece := old.read(_PIECE):
            pace.let(len(piece))
            new.write(piece)
