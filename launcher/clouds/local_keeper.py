"""The keeper of one local run: `python -m launcher.clouds.local_keeper --run URI --home DIR`.

A process of its own that outlives the terminal. It plays the cloud's part (a market that gives machines and takes
them away) and the managed job's (start another one). Killed at any instant, it can be started again: all it
needs is in the run's journal and task.yaml.

Life of a run, by example, with regions A and B and a machine taken every 40 s:
    requested A, running, ..., SIGTERM, 5 s later SIGKILL: ended(preempted)
    requested B (A has just failed us), running, ..., ended(preempted)
    requested A, running, the trainer exits 0: ended(finished)
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import secrets
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from launcher.clouds.base import is_live
from launcher.clouds.local_machine import Machine, destroy_orphan
from launcher.launch import Launch, from_events
from launcher.planning.plan import Candidate
from launcher.render import trusted_task
from launcher.runs.attempts import open_attempts
from launcher.runs.costs import cost_report
from launcher.shipment import Shipment
from launcher.spot.ledger import offer
from launcher.spot.policy import choose, remember
from trainer.artifacts.journal import Journal, RunEvent, read_journal
from trainer.artifacts.layout import TASK, attempt_key, log_key
from trainer.artifacts.store import Store, open_store
from trainer.errors import (
    LimitReached,
    NotReady,
    Preempted,
    RemoteJobFailed,
    StoreError,
    UsageError,
    VlaunchError,
)

log = logging.getLogger("keeper")

# How often the keeper looks for a stop, a limit or a machine in a market that had none, in seconds.
_LOOK_S = 0.25
# What a stop leaves the trainer for its last save: a slow store must not cost the last steps.
_STOP_GRACE_S = 300.0
# `vlaunch logs` and `status` hold the lock for an instant to see whether somebody has it.
_LOCK_S = 1.0
_STORE_PAUSE_S = 5.0
# After an attempt that failed: this long, then twice as long, at most so often without a new checkpoint.
_FAILED_PAUSE_S, _MOST_FAILURES = 2.0, 3
# What another machine would not mend: the configuration or the corpus, or something missing on every box.
_FINAL_CODES = (UsageError.exit_code, NotReady.exit_code)

LOCK, PID, MACHINE = "keeper.lock", "keeper.pid", "machine.json"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m launcher.clouds.local_keeper")
    parser.add_argument("--run", required=True)
    parser.add_argument("--home", required=True, type=Path)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s keeper: %(message)s", stream=sys.stdout)
    try:
        keeper = Keeper(options.run, options.home)
        keeper.take_over()
        if leave_to_child(options.home / PID):
            keeper.keep()
    except VlaunchError as error:
        log.error("%s", error.message)
        return error.exit_code
    return 0


def leave_to_child(pid_file: Path) -> bool:
    """Go on as a process that is nobody's child. True in that one; the other one ends when it can be signalled."""
    ready, told = os.pipe()
    if os.fork() == 0:
        pid_file.write_text(str(os.getpid()))
        os.close(told)
        return True
    os.close(told)
    os.read(ready, 1)  # until the child has closed its end
    return False


class Keeper:
    """Starts machines for one run until it is finished, stopped, failed or at a limit."""

    def __init__(self, run_uri: str, home: Path) -> None:
        self._run_uri, self._home = run_uri, home
        self._store = open_store(run_uri)
        self._stop = False

    def take_over(self) -> None:
        """Hold the run's lock for the life of this process and its child; the kernel frees it however they end.

        Raises:
            RunIsLive: another keeper has the run.
        """
        self._home.mkdir(parents=True, exist_ok=True)
        self._lock = (self._home / LOCK).open("w")
        deadline = time.monotonic() + _LOCK_S
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise is_live(self._run_uri) from None
                time.sleep(_LOCK_S / 10)
        signal.signal(signal.SIGTERM, self._on_stop)  # before anybody is told that it can be sent

    def keep(self) -> None:
        """Until the run is finished or stopped; raises the error that ended it otherwise."""
        end_orphan(self._store, self._home / MACHINE, "orphaned")
        while not self._stop:
            try:
                if self._next_attempt():
                    return
            except StoreError as error:
                log.warning("the store does not answer, waiting: %s", error.message)
                self._pause(_STORE_PAUSE_S)
        # Asked to stop between two machines: there is none left that could say so.
        latest = max((event.attempt for event in read_journal(self._store)), default=0)
        Journal(self._store, latest, "launcher", quiet=True).record("stopping")

    def _next_attempt(self) -> bool:
        """Wait for a machine or run one. Returns whether the run needs none any more; raises what ends it."""
        events = read_journal(self._store)
        if any(event.kind == "finished" for event in events):
            return True
        launch = from_events(events)
        began = next(event.time for event in events if event.kind == "created").timestamp()
        market = launch.market.market(launch.spot)
        attempt = max((event.attempt for event in events), default=0) + 1
        now_s = time.time() - began
        open_zones = [c.zone for c in launch.candidates if market.available(c.zone, now_s)]
        candidate = choose(launch.candidates, open_zones, remember(events), time.time())
        if candidate is None:
            self._wait_for_capacity(launch, events)
            return False
        Limits(launch, candidate, events).refuse(Journal(self._store, attempt - 1, "launcher", quiet=True))
        while not self._store.put_new(attempt_key(attempt), secrets.token_hex(16).encode()):
            attempt += 1  # another computer looks after this run too: two machines are never billed as one
        task = trusted_task(self._store.get(TASK), self._run_uri, Shipment())
        taken_at = market.taken_at(candidate.zone, now_s, attempt) + began
        reason = self._live(launch, task, candidate, attempt, taken_at, events)
        if reason == "failed":
            self._pause_or_give_up(attempt)
        return reason in ("finished", "stopped")

    def _pause_or_give_up(self, attempt: int) -> None:
        """An attempt that failed is tried again, later and later, as long as the run gets on by it."""
        events = read_journal(self._store)
        told = next((event for event in events if event.kind == "failed" and event.attempt == attempt), None)
        final = told is not None and told.data.get("exit_code") in _FINAL_CODES
        fruitless = _failures_without_progress(events)
        if final or fruitless >= _MOST_FAILURES:
            raise RemoteJobFailed(f"attempt {attempt} failed", hint=f"its log is in {self._home}")
        self._pause(_FAILED_PAUSE_S * 2 ** (fruitless - 1))

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._stop and time.monotonic() < deadline:
            time.sleep(_LOOK_S)

    def _live(
        self,
        launch: Launch,
        task: dict[str, Any],
        candidate: Candidate,
        attempt: int,
        taken_at: float,
        events: list[RunEvent],
    ) -> str:
        """One machine from request to end. Returns why it ended, or raises what ends the run."""
        journal = Journal(self._store, attempt, "launcher", quiet=True)
        journal.record("requested", **offer(candidate))
        path = self._home / f"attempt-{attempt:06d}.log"
        environment = {
            "VLAUNCH_ATTEMPT": str(attempt),
            "VLAUNCH_REGION": candidate.region,
            "VLAUNCH_NOTICE_S": str(launch.notice_s),
            "VLAUNCH_CLOUD": "none",  # this market is the only one that takes machines here
        }
        disk = self._home / "disks" / f"{candidate.zone}-{attempt}"
        try:
            machine = Machine.start(task, disk, path, self._home / MACHINE, environment)
        except OSError as error:
            journal.record("ended", reason="failed")
            raise RemoteJobFailed(
                f"no machine could be started here: {error}", hint=f"look at {self._home}"
            ) from None
        journal.record("running")
        log.info("attempt %d runs in %s", attempt, candidate.zone)
        limits = Limits(launch, candidate, events)
        reason, code = self._watch(machine, journal, launch, taken_at, limits)
        killed = machine.destroy()
        code = killed if code is None else code
        if reason == "failed" and self._superseded(attempt):
            reason = "stopped"
        notice = {"notice_s": launch.notice_s} if reason == "preempted" else {}
        journal.record("ended", reason=reason, exit_code=code, **notice)
        log.info("attempt %d ended: %s (%s)", attempt, reason, code)
        self._keep_log(attempt, path)
        if limits.reached:
            raise LimitReached(limits.reached)
        return reason

    def _watch(
        self, machine: Machine, journal: Journal, launch: Launch, taken_at: float, limits: Limits
    ) -> tuple[str, int | None]:
        """Until something ends the machine: (reason, exit code or None if it must be killed)."""
        while True:
            code = machine.wait(min(_LOOK_S, max(0.0, taken_at - time.time())))
            if code is not None:
                return _reason(code), code
            if self._stop or limits.passed():
                told = ("limit", {"what": limits.reached}) if limits.reached else ("stopping", {})
                journal.record(told[0], **told[1])
                machine.ask_to_stop()
                code = machine.wait(_STOP_GRACE_S)
                return "finished" if code == 0 else "stopped", code
            if time.time() >= taken_at:
                machine.notify() if launch.notice_s > 0 else None
                code = machine.wait(launch.notice_s)
                return ("preempted", None) if code is None else (_reason(code), code)

    def _superseded(self, attempt: int) -> bool:
        """Whether the box ended because another attempt, started elsewhere, owns the run now."""
        events = read_journal(self._store)
        return any(event.kind == "fenced" and event.attempt == attempt for event in events)

    def _wait_for_capacity(self, launch: Launch, events: list[RunEvent]) -> None:
        if not events or events[-1].kind != "no_capacity":
            regions = sorted({candidate.region for candidate in launch.candidates})
            attempt = max((event.attempt for event in events), default=0)
            Journal(self._store, attempt, "launcher", quiet=True).record("no_capacity", regions=regions)
            log.info("no machine in %s: waiting", ", ".join(regions))
        time.sleep(_LOOK_S)

    def _keep_log(self, attempt: int, path: Path) -> None:
        """Logs of a machine that is gone are in the store too."""
        try:
            self._store.put_file(log_key(attempt, "box.log"), path)
        except StoreError as error:
            log.warning("the log of attempt %d stays at %s: %s", attempt, path, error)

    def _on_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stop = True


class Limits:
    """The budget and the deadline of a run, watched while one machine of it runs."""

    def __init__(self, launch: Launch, candidate: Candidate, events: list[RunEvent]) -> None:
        now = datetime.now(UTC)
        self.reached: str | None = None
        self._launch, self._candidate = launch, candidate
        self._since = time.time()
        self._spent = float(cost_report("", tuple(events), now).usd)
        self._created = min((event.time for event in events), default=now).timestamp()

    def passed(self) -> bool:
        launch, now = self._launch, time.time()
        spent = self._spent + (now - self._since) / 3600.0 * (self._candidate.usd_per_hour or 0.0)
        if launch.max_cost_usd is not None and spent >= launch.max_cost_usd:
            self.reached = f"the budget of ${launch.max_cost_usd:g} is spent"
        if launch.deadline_s is not None and now - self._created >= launch.deadline_s:
            self.reached = f"the deadline of {launch.deadline_s:g} s has come"
        return self.reached is not None

    def refuse(self, journal: Journal) -> None:
        """Raises LimitReached where nothing is left, before another machine is paid for."""
        if self.passed():
            journal.record("limit", what=self.reached)
            raise LimitReached(self.reached or "")


def _reason(code: int) -> str:
    """Why a machine ended, from the exit code of its task."""
    if code == 0:
        return "finished"
    # Killed by a signal nobody here sent: as with a machine that vanished, another one goes on.
    return "preempted" if code == Preempted.exit_code or code < 0 else "failed"


def _failures_without_progress(events: list[RunEvent]) -> int:
    """Attempts in a row that failed since the last checkpoint became durable."""
    count = 0
    for event in events:
        if event.kind == "checkpoint":
            count = 0
        elif event.kind == "ended" and event.data.get("reason") == "failed":
            count += 1
    return count


def end_orphan(store: Store, record: Path, reason: str) -> bool:
    """Take away the machine that a killed keeper may have left here, and close its attempt in the journal. Returns
    whether it was still running. Attempts that other computers look after are theirs to close."""
    if not record.exists():
        return False
    running = destroy_orphan(record)
    for attempt in open_attempts(read_journal(store)):
        Journal(store, attempt, "launcher").record("ended", reason=reason)
    return running


if __name__ == "__main__":
    sys.exit(main())
