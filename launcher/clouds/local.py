"""This machine as a cloud with a spot market: the same task, box program, store and recovery, no account."""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from launcher.clouds.base import is_live
from launcher.clouds.local_keeper import LOCK, MACHINE, PID, end_orphan
from launcher.settings import state_dir
from trainer.artifacts.layout import LOGS
from trainer.artifacts.store import Store, open_store
from trainer.errors import NotReady, VlaunchError

_LOOK_S = 0.1


class LocalCloud:
    """Runs looked after by a keeper process of this user on this machine."""

    def home(self, run_uri: str) -> Path:
        """What this machine remembers of a run. Nothing here is needed to resume it."""
        digest = hashlib.sha256(run_uri.encode()).hexdigest()[:8]
        return state_dir() / "local" / f"{run_uri.rstrip('/').rsplit('/', 1)[-1]}-{digest}"

    def launch(self, run_uri: str) -> None:
        if self.alive(run_uri):
            raise is_live(run_uri)
        home = self.home(run_uri)
        try:
            home.mkdir(parents=True, exist_ok=True)
            log = (home / "keeper.log").open("ab")
        except OSError as error:
            raise NotReady(
                f"{home} cannot be used: {error.strerror}", hint="XDG_STATE_HOME names another place"
            ) from None
        with log as out:
            started = subprocess.run(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "launcher.clouds.local_keeper",
                    "--run",
                    run_uri,
                    "--home",
                    str(home),
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # survives the terminal, and Ctrl-C in it
            )
        if started.returncode != 0:
            last = (home / "keeper.log").read_text(errors="replace").strip().splitlines()[-1:]
            raise NotReady(
                f"the keeper of the run did not start: {' '.join(last)}", hint=f"see {home}/keeper.log"
            )

    def alive(self, run_uri: str) -> bool:
        try:
            with (self.home(run_uri) / LOCK).open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except BlockingIOError:
            return True
        return False

    def stop(self, run_uri: str) -> bool:
        if not self.alive(run_uri):
            # A keeper that was killed may have left its machine: nobody else would ever take it away.
            return end_orphan(open_store(run_uri), self.home(run_uri) / MACHINE, "stopped")
        try:
            os.kill(int((self.home(run_uri) / PID).read_text()), signal.SIGTERM)
        except (ProcessLookupError, FileNotFoundError, ValueError):
            return False
        return True

    def verdict(self, run_uri: str) -> VlaunchError | None:
        return None  # the keeper writes all that it knows into the journal

    def logs(self, run_uri: str, *, follow: bool) -> Iterator[str]:
        shown: dict[int, int] = {}
        first = True
        while True:
            live = self.alive(run_uri)  # asked first: what is written before the end is still read below
            here = {
                int(path.stem.rpartition("-")[2]): path for path in self.home(run_uri).glob("attempt-*.log")
            }
            if first:
                yield from _forgotten(open_store(run_uri), here)
            first = False
            for attempt, path in sorted(here.items()):
                yield from _new_lines(path, attempt, shown, to_end=not live)
            if not follow or not live:
                return
            time.sleep(_LOOK_S)


def _new_lines(path: Path, attempt: int, shown: dict[int, int], *, to_end: bool) -> Iterator[str]:
    """Whole lines after the part already shown; an unfinished last line only at the end."""
    with path.open("rb") as log:
        log.seek(shown.get(attempt, 0))
        data = log.read()
    end = len(data) if to_end else data.rfind(b"\n") + 1
    shown[attempt] = shown.get(attempt, 0) + end
    yield from data[:end].decode(errors="replace").splitlines()


def _forgotten(store: Store, here: Collection[int]) -> Iterator[str]:
    """Logs of attempts that ended on another machine, or before this one lost its memory; from the store."""
    for entry in store.list(LOGS):
        if int(entry.key.split("/")[1].rpartition("-")[2]) not in here:
            yield from store.get(entry.key).decode(errors="replace").splitlines()
