"""Being told to leave a machine: a signal, or the cloud's own word, becomes a flag that the loop reads between steps.

SIGTERM is a notice: the machine is taken after some seconds. SIGINT is a request to stop: the machine stays until
the last step is saved. What the cloud says of the machine (trainer/notices.py asks it) stands on a board that all
processes of the machine read: it says when the machine goes, or that it may go.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from dataclasses import asdict, dataclass
from types import FrameType

from trainer.errors import UsageError

SIGNALS = (signal.SIGTERM, signal.SIGINT)

# To the supervisor alone: the board says that the machine goes. The ranks read the board by themselves.
NEWS = signal.SIGUSR1

# What a cloud gives at least where it gives anything: GCP and Azure 30 s, AWS 120 s.
DEFAULT_NOTICE_S = 30.0
# Kept back from the notice for the last PUT and for clocks that disagree.
_RESERVE_S = 1.0


@dataclass(frozen=True, slots=True)
class News:
    """One thing that the cloud said about this machine."""

    source: str
    """Who said what, for people: `aws: terminate at 2026-11-21T10:02:00Z`."""
    leave_by: float | None = None
    """When the machine is gone, on the clock of time.monotonic, which all processes of a machine share. None: it
    stays for now."""
    urgent: bool = True
    """Without a time: whether it is wise to save soon."""


class Board:
    """What has been said, in the order in which it was said; written by one process, read by all that it is shared
    with by fork.

    Memory, not a file on a disk that may be full. A line that is half written is not read.
    """

    def __init__(self) -> None:
        anonymous = hasattr(os, "memfd_create")  # Linux
        self._file = (
            os.fdopen(os.memfd_create("vlaunch-notices"), "r+b", buffering=0)
            if anonymous
            else tempfile.TemporaryFile(buffering=0)
        )

    def post(self, news: News) -> None:
        self._file.write(json.dumps(asdict(news)).encode() + b"\n")

    def read(self, start: int) -> tuple[list[News], int]:
        """What was posted beyond the byte `start`, and where to go on. One system call of about a microsecond."""
        data = os.pread(self._file.fileno(), 1 << 16, start)
        whole = data[: data.rfind(b"\n") + 1]
        return [News(**json.loads(line)) for line in whole.splitlines()], start + len(whole)

    def close(self) -> None:
        self._file.close()


class Notice:
    """Whether this machine has been told to go, and how long it has left.

    The machine's launcher says in VLAUNCH_NOTICE_S how many seconds lie between SIGTERM and the end; a cloud that
    names a time is taken at its word. Where both speak, the earlier end counts.
    """

    def __init__(self, board: Board | None = None) -> None:
        self.save_soon = False
        """The cloud warned that the machine may go, and nothing has been saved since. Who saves takes it back."""
        self._signal: str | None = None
        self._taken_at: float | None = None
        self._length_s = notice_length_s()
        self._board, self._read = board, 0
        self._told: News | None = None
        self._warnings: list[News] = []

    def listen(self) -> None:
        """From now on the signals mean: go."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    @property
    def given(self) -> bool:
        self._look()
        return self._signal is not None or self._told is not None

    @property
    def left_s(self) -> float:
        """Seconds that may still be used; infinite without a notice, and where a user asked to stop."""
        self._look()
        ends = [self._taken_at + self._length_s] if self._taken_at is not None else []
        if self._told is not None and self._told.leave_by is not None:
            ends.append(self._told.leave_by)
        return min(ends, default=float("inf")) - _RESERVE_S - time.monotonic()

    @property
    def source(self) -> str:
        """Who said so: the cloud's words, or the signal's name."""
        self._look()
        return self._told.source if self._told is not None else self._signal or ""

    def warnings(self) -> list[News]:
        """What the cloud said that is not (yet) a reason to leave, each told once."""
        self._look()
        heard, self._warnings = self._warnings, []
        return heard

    def _look(self) -> None:
        if self._board is None:
            return
        posted, self._read = self._board.read(self._read)
        for news in posted:
            if news.leave_by is None:
                self._warnings.append(news)
                self.save_soon = self.save_soon or news.urgent
            elif self._told is None or news.leave_by < (self._told.leave_by or 0.0):
                self._told = news

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGTERM and self._taken_at is None:
            self._taken_at = time.monotonic()
        if self._signal is None or number == signal.SIGTERM:
            self._signal = signal.Signals(number).name


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
