"""The process beside an attempt that keeps W&B up to date: `python -m launcher.tracking.beside URI ATTEMPT`.

Started by the box on its first machine where there is a key (trainer/publishing.py). It only reads the store, at a
low priority, so W&B can neither stop nor slow training: a server that hangs, or wandb's own process killed, ends
one try, and another follows. It lives as long as its standard input is open; then it looks once more, and ends.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
import time

from launcher.errors import NotReady, VlaunchError
from launcher.tracking.following import Followed, follow
from launcher.tracking.wandb_run import WandbRun
from trainer.artifacts.journal import Journal
from trainer.artifacts.store import open_store

log = logging.getLogger("tracking")

# A tenth of what training gets where cores are short. At 19 it would not even start on a machine that is overloaded.
_BELOW_TRAINING = 10
# Between two tries, doubled up to the second.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 300.0
# After the last look wandb may still be sending; then this machine is needed for nothing else.
_LAST_WORDS_S = 45.0


def main(run_uri: str, attempt: int) -> int:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout
    )
    os.nice(_BELOW_TRAINING)
    # A notice or a Ctrl-C goes to the whole group; what follows from it is seen in the store.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    lifeline = Lifeline()
    run, pause_s, last = Followed(run_uri), _FIRST_PAUSE_S, False
    while True:
        try:
            _keep_up(run, attempt, lifeline)
            return 0
        except NotReady as error:
            log.warning("W&B: %s; the numbers stay in the store", error.message)
            return error.exit_code
        except (VlaunchError, OSError) as error:
            log.warning("W&B: %s", error)
        if last:
            return 1
        last = lifeline.cut_within(pause_s)  # then one more try: what is durable now may be the whole curve
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _keep_up(run: Followed, attempt: int, lifeline: Lifeline) -> None:
    run.look()
    view = WandbRun(run.record)
    log.info("W&B: %s", view.url)
    if not any(event.kind == "tracked" and event.attempt == attempt for event in run.record.events):
        Journal(open_store(run.record.uri), attempt, "box", quiet=True).record("tracked", url=view.url)
    follow([view], run, lifeline.cut_within)
    view.close(run.over)


class Lifeline:
    """Standard input: open while the box wants this process."""

    def __init__(self) -> None:
        self._cut = False

    def cut_within(self, seconds: float) -> bool:
        """Waits; whether the box is gone, or done. From then on this process has `_LAST_WORDS_S` left."""
        deadline = time.monotonic() + seconds
        while not self._cut and (left := deadline - time.monotonic()) > 0:
            readable, _, _ = select.select([sys.stdin], [], [], left)
            if readable and not os.read(sys.stdin.fileno(), 1):
                self._cut = True
                guard = threading.Timer(_LAST_WORDS_S, os._exit, [1])
                guard.daemon = True
                guard.start()
        return self._cut


if __name__ == "__main__":
    code = main(sys.argv[1], int(sys.argv[2]))
    sys.stdout.flush()
    os._exit(code)  # wandb would wait at exit for a process of its own that may be gone
