"""W&B kept up to date while an attempt lasts: one process beside the supervisor of the first machine.

It is a program of its own that only reads the store (launcher/tracking/beside.py), as a person with a laptop could.
So nothing that W&B does reaches training, and an attempt that is taken away leaves nothing unsent: whoever comes next
asks W&B what it has and sends what is missing.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from trainer.config import TrackingSection

log = logging.getLogger("trainer")

# How long the end of a run waits for W&B: what is left then is sent by `vlaunch metrics RUN --wandb`.
_PATIENCE_S = 60.0
_SILENT_MODES = ("offline", "dryrun", "disabled")


@contextmanager
def published(run_uri: str, attempt: int, tracking: TrackingSection, *, leads: bool) -> Iterator[Published]:
    """While this lasts, W&B follows the run; nothing at all happens where the run or this machine does not ask for it.

    What follows ends with this process, however that ends. At the end of a run it is waited for; at the end of an
    attempt it is not.
    """
    beside = Published(_start(run_uri, attempt) if leads and _wanted(tracking) else None)
    try:
        yield beside
    finally:
        beside.close()


class Published:
    """The process beside this one, if there is one."""

    def __init__(self, process: subprocess.Popen[bytes] | None) -> None:
        self._process = process
        self.whole = False
        """Set when the run is finished: then the curve should be."""

    def close(self) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()  # it looks once more, and ends
        if not self.whole:
            return
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            log.warning("W&B took too long: vlaunch metrics RUN --wandb sends the rest")


def _wanted(tracking: TrackingSection) -> bool:
    if tracking.report_to == "none":
        return False
    missing = _missing()
    if missing and tracking.report_to == "wandb":
        log.warning(
            "no curve at W&B while this trains: %s; vlaunch metrics RUN --wandb sends it later", missing
        )
    elif missing and "WANDB_API_KEY" in os.environ:
        log.info("no curve at W&B while this trains: %s", missing)
    return missing is None


def _missing() -> str | None:
    """Why W&B cannot be told from here, in words; None where it can."""
    if (mode := os.environ.get("WANDB_MODE", "online")) in _SILENT_MODES:
        return f"WANDB_MODE is {mode}"
    if not os.environ.get("WANDB_API_KEY"):
        return "WANDB_API_KEY is not set here"
    if find_spec("wandb") is None:
        return "wandb is not installed here (pip install 'vlaunch[wandb]')"
    return None


def _start(run_uri: str, attempt: int) -> subprocess.Popen[bytes] | None:
    # Its standard input is the line that it lives on; in the machine's process group, it dies with the machine.
    command = [sys.executable, "-P", "-m", "launcher.tracking.beside", run_uri, str(attempt)]
    try:
        return subprocess.Popen(command, stdin=subprocess.PIPE)
    except OSError as error:
        log.warning("no curve at W&B while this trains: %s", error)
        return None
