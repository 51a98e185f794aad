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
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from launcher.clouds.local_machine import Machine, destroy_orphan
from launcher.costs import cost_report
from launcher.launch import Launch, from_events
from launcher.plan import Candidate
from launcher.spot.policy import choose
from trainer.artifacts.journal import Journal, RunEvent, read_journal
from trainer.artifacts.layout import TASK, log_key
from trainer.artifacts.store import Store, open_store
from trainer.errors import LimitReached, Preempted, RemoteJobFailed, RunIsLive, StoreError, VlaunchError

log = logging.getLogger("keeper")

# How often the keeper looks for a stop, a limit or a machine in a market that had none, in seconds.
_LOOK_S = 0.25
# What a stop leaves the trainer for its last save.
_STOP_GRACE_S = 30.0

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
    """Go on as a process that is nobody's child. True in that one; the caller of the other sees it exit with 0,
    and from then on the run is being looked after."""
    child = os.fork()
    if child:
        pid_file.write_text(str(child))
    return child == 0


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
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise is_live(self._run_uri) from None

    def keep(self) -> None:
        """Until the run is finished or stopped; raises the error that ended it otherwise."""
        signal.signal(signal.SIGTERM, self._on_stop)
        end_orphan(self._store, self._home / MACHINE, "orphaned")
        self._run_attempts()

    def _run_attempts(self) -> None:
        events = read_journal(self._store)
        launch = from_events(events)
        task = yaml.safe_load(self._store.get(TASK))
        began = next(event.time for event in events if event.kind == "created").timestamp()
        market = launch.market.market(launch.spot)
        while not self._stop:
            events = read_journal(self._store)
            attempt = max((event.attempt for event in events), default=0) + 1
            now_s = time.time() - began
            open_zones = [c.zone for c in launch.candidates if market.available(c.zone, now_s)]
            candidate = choose(launch.candidates, open_zones, _losses(events, began), now_s)
            if candidate is None:
                self._wait_for_capacity(launch, events)
                continue
            Limits(launch, candidate, events).refuse(
                Journal(self._store, attempt - 1, "launcher", quiet=True)
            )
            taken_at = market.taken_at(candidate.zone, now_s, attempt) + began
            if self._live(launch, task, candidate, attempt, taken_at, events) in ("finished", "stopped"):
                return
        # Asked to stop between two machines: there is none left that could say so.
        latest = max((event.attempt for event in read_journal(self._store)), default=0)
        Journal(self._store, latest, "launcher", quiet=True).record("stopping")

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
        journal.record("requested", **_offer(candidate))
        path = self._home / f"attempt-{attempt:06d}.log"
        environment = {
            "VLAUNCH_ATTEMPT": str(attempt),
            "VLAUNCH_REGION": candidate.region,
            "VLAUNCH_NOTICE_S": str(launch.notice_s),
        }
        disk = self._home / "disks" / f"{candidate.zone}-{attempt}"
        machine = Machine.start(task, disk, path, self._home / MACHINE, environment)
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
        if reason == "failed":
            raise RemoteJobFailed(f"attempt {attempt} failed with exit code {code}", hint=f"its log: {path}")
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
                return _REASONS.get(code, "failed"), code
            if self._stop or limits.passed():
                told = ("limit", {"what": limits.reached}) if limits.reached else ("stopping", {})
                journal.record(told[0], **told[1])
                machine.notify()
                return "stopped", machine.wait(_STOP_GRACE_S)
            if time.time() >= taken_at:
                if launch.notice_s > 0:
                    machine.notify()
                    machine.wait(launch.notice_s)
                return "preempted", None

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
        spent = self._spent + (now - self._since) / 3600.0 * self._candidate.usd_per_hour
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


_REASONS = {0: "finished", Preempted.exit_code: "preempted"}


def end_orphan(store: Store, record: Path, reason: str) -> bool:
    """Take away the machine that a killed keeper may have left, and close its attempt in the journal. Returns
    whether there was one."""
    running = destroy_orphan(record)
    for attempt in _open_attempts(read_journal(store)):
        Journal(store, attempt, "launcher").record("ended", reason=reason)
    return running


def is_live(run_uri: str) -> RunIsLive:
    name = run_uri.rstrip("/").rsplit("/", 1)[-1]
    return RunIsLive(f"{name} is running already", hint=f"vlaunch logs -f {name} follows it")


def _offer(candidate: Candidate) -> dict[str, Any]:
    return {
        "cloud": candidate.cloud,
        "region": candidate.region,
        "zone": candidate.zone,
        "instance": candidate.instance,
        "market": candidate.market,
        "usd_per_hour": candidate.usd_per_hour,
        "on_demand_usd_per_hour": candidate.on_demand_usd_per_hour,
        "price_source": candidate.price_source,
    }


def _open_attempts(events: list[RunEvent]) -> list[int]:
    """Attempts that were asked for and never ended."""
    asked = {event.attempt for event in events if event.kind == "requested"}
    return sorted(asked - {event.attempt for event in events if event.kind == "ended"})


def _losses(events: list[RunEvent], began: float) -> dict[str, float]:
    """When each region last took a machine away, in seconds since the run began."""
    regions = {event.attempt: event.data["region"] for event in events if event.kind == "requested"}
    return {
        regions[event.attempt]: event.time.timestamp() - began
        for event in events
        if event.kind == "ended" and event.data.get("reason") == "preempted" and event.attempt in regions
    }


if __name__ == "__main__":
    sys.exit(main())
