"""One attempt on this machine: claim, fetch, restore, start the ranks, say what became of them.

It claims the run, fetches what the box needs while torch is imported, and forks one process per GPU. With several
nodes the head alone claims and writes the journal; the others learn from it where to resume, fetch the same bytes
from the store, and end with it (gang.py).
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import time
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from trainer.artifacts.fencing import Lease, claim
from trainer.artifacts.journal import Journal
from trainer.artifacts.layout import CONFIG, epoch_key
from trainer.artifacts.manifest import Manifest
from trainer.artifacts.sources import Sources
from trainer.artifacts.store import Store
from trainer.config import TrainConfig, decode_config
from trainer.endings import Report, failure
from trainer.errors import (
    Fenced,
    MissingKey,
    Preempted,
    StoreAway,
    UsageError,
    VlaunchError,
)
from trainer.fetching import Fetching
from trainer.gang import Halted, Head, Member
from trainer.lines import INTERRUPT
from trainer.nodes import Nodes, interface_of, region
from trainer.preemption import NEWS, SIGNALS, Board, notice_length_s
from trainer.processes import Processes
from trainer.publishing import published

if TYPE_CHECKING:
    from trainer.prepare import Inputs
    from trainer.rank import Brief

log = logging.getLogger("trainer")

# How long a store that is away is waited for before anything is done (as at the end of a run), and between two looks,
# each of which is patient by itself.
_PATIENCE_S, _PAUSE_S = 900.0, 1.0

_LEFT = Report("left", Preempted.exit_code, "told to leave this machine before there was anything to save")
_HALTED = Report("halted", Preempted.exit_code, "ended by another node")


class Attempt:
    """One life of the run on this machine."""

    def __init__(self, store: Store, workdir: Path) -> None:
        self._began = time.monotonic() - _age_of_process_s()
        self._workdir = workdir
        self._preparing = True
        self._ranks: Processes | None = None
        self._gang: Head | Member
        self.store = store
        self.clock: dict[str, float] = {}
        self.board = Board()
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        signal.signal(INTERRUPT, self._on_interrupt)
        signal.signal(NEWS, self._on_news)

    def run(self) -> None:
        """Returns when the run is finished, or raises the error whose exit code the box ends with."""
        self._mark("start")
        try:
            notice_length_s()  # refused here, where it costs nothing
            nodes = Nodes.from_environment(os.environ)
            config = self._config()
            self._sources = Sources(self.store, config.store, region(os.environ))
            begin = self._lead if nodes.leads else self._join
            begin(nodes)
        except _Leave:
            raise Preempted(_LEFT.error) from None
        self.journal = Journal(self.store, self.attempt, "box", quiet=True)
        cause: Exception | None = None
        try:
            self._gang.interrupt(True)
            report = self._live(config)
        except _Leave:
            report = _LEFT
        except Halted:
            report = _HALTED
        except Exception as error:
            report, cause = failure(error), error
        self._settle(report, cause)

    def _lead(self, nodes: Nodes) -> None:
        self._gang = head = Head(nodes)
        self._lease: Lease | None = claim(self.store)
        self.epoch = self._lease.epoch
        self.attempt = _attempt(self.epoch)
        head.open(self.epoch, self.attempt, self.store.get(epoch_key(self.epoch)))

    def _join(self, nodes: Nodes) -> None:
        self._gang = member = Member(nodes, lambda epoch: self.store.get(epoch_key(epoch)))
        self._lease, self.epoch, self.attempt = None, member.epoch, member.attempt

    def _settle(self, report: Report, cause: Exception | None) -> None:
        """Come to one end with the other nodes, and leave with its exit code."""
        self._preparing = False
        self._gang.interrupt(False)
        if cause is not None and not isinstance(cause, VlaunchError):
            log.error("the attempt failed", exc_info=cause)
        verdict = self._gang.over(report)
        if isinstance(self._gang, Head):
            if verdict.kind == "failed" and not isinstance(cause, Fenced):
                told = {"error": verdict.error, "hint": verdict.hint, "exit_code": verdict.exit_code}
                self.journal.record("failed", **told)
            elif verdict.kind == "gone":
                self.journal.record("preempted")
        self._gang.end(verdict)
        if verdict.kind == "finished":
            return
        if verdict is report and isinstance(cause, VlaunchError):
            raise cause
        if verdict.exit_code == Preempted.exit_code:
            raise Preempted(verdict.error, hint=verdict.hint)
        error = VlaunchError(verdict.error, hint=verdict.hint)
        error.exit_code = verdict.exit_code
        raise error from cause

    def _live(self, config: TrainConfig) -> Report:
        # Another node's lists, and names the blobs that its ranks send; never started, it cannot commit.
        lease = self._lease or Lease(self.store, self.epoch)
        self._make_workdir()
        self._mark("claim")
        fetching = Fetching(config, lease, self.journal, self._sources, self._workdir, self._mark)
        gang = self._gang
        inputs, resumed = fetching.lead(gang) if isinstance(gang, Head) else fetching.follow(gang)
        size = config.parallel.processes or _processes()
        self._gang.set_off(size)
        if self._gang.nodes.count > 1:
            self._mark("nodes")
        if self._gang.nodes.leads:
            self.journal.record(
                "started",
                epoch=lease.epoch,
                resumed_from=resumed.step if resumed else 0,
                world_size=size * self._gang.nodes.count,
                region=region(os.environ),
                corpus=inputs.report,
                store_region=self._sources.region,
                read=self._sources.read(),
                nodes=self._gang.nodes.count,
            )
        log.info(
            "attempt %d: %s", self.attempt, f"resuming after step {resumed.step}" if resumed else "starting"
        )
        with published(self.store.uri, self.attempt, config.tracking, leads=self._gang.nodes.leads) as curve:
            report = self._run_ranks(config, lease, inputs, resumed, size)
            curve.whole = report.kind == "finished"
        return report

    def _make_workdir(self) -> None:
        """An empty folder of this attempt's own; those of its forerunners on this disk go. Nodes may share a disk."""
        name = self.store.uri.rstrip("/").rpartition("/")[2]
        node = f"-n{self._gang.nodes.rank}" if self._gang.nodes.count > 1 else ""
        for old in self._workdir.glob(f"{name}-e[0-9]*{node}"):
            shutil.rmtree(old, ignore_errors=True)
        self._workdir = self._workdir / f"{name}-e{self.epoch:08d}{node}"
        self._workdir.mkdir(parents=True)

    def _config(self) -> TrainConfig:
        try:
            data = self._first_look(CONFIG)
        except MissingKey:
            raise UsageError(
                f"there is no run at {self.store.uri}",
                hint="the URI ends in runs/NAME; vlaunch runs lists them",
            ) from None
        return decode_config(data, f"{self.store.uri}/{CONFIG}")

    def _first_look(self, key: str) -> bytes:
        """A store that is away when a machine comes up is waited for: to give up would end the run for good."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return self.store.get(key)
            except StoreAway as error:
                if time.monotonic() > deadline:
                    raise
                log.warning("waiting for the store: %s", error.message)
                time.sleep(_PAUSE_S)

    def _run_ranks(
        self, config: TrainConfig, lease: Lease, inputs: Inputs, resumed: Manifest | None, size: int
    ) -> Report:
        from trainer.rank import Brief

        gang, nodes = self._gang, self._gang.nodes
        alone = nodes.count == 1
        brief = Brief(
            config=config,
            store=self.store,
            lease=lease,
            journal=self.journal,
            attempt=self.attempt,
            inputs=inputs,
            checkpoint=self._workdir / "checkpoint",
            resumed=resumed,
            workdir=self._workdir,
            world_size=size * nodes.count,
            sources=self._sources,
            threads=config.parallel.threads or max(1, (os.cpu_count() or 1) // size),
            rendezvous=f"file://{self._workdir}/rendezvous" if alone else nodes.rendezvous,
            clock=self.clock,
            board=self.board,
        )
        # On one machine, what the processes say to each other is never heard outside of it.
        interface = interface_of("127.0.0.1" if alone else nodes.addresses[nodes.rank])
        if interface:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        if config.train.auto_batch:
            brief = self._with_rows_found(brief, size)
        self._ranks = ranks = Processes(brief, nodes.rank * size, size, gang.forget)
        # A signal that comes between a fork and the child's own handler waits for that handler.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self._preparing = False
        gang.interrupt(False)
        with gang.still():
            ranks.fork()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        try:
            gang.host_meeting()
            return self._wait(ranks)
        finally:
            ranks.kill()

    def _with_rows_found(self, brief: Brief, size: int) -> Brief:
        """As many rows in a forward pass as this machine holds; tried by its own processes, without other nodes."""
        from trainer.batching import settle_rows
        from trainer.rank import memory_case, try_rows
        from trainer.shortage import Forks

        alone = replace(brief, world_size=size)

        def trial(config: TrainConfig, rank: int, number: int) -> Any:
            rendezvous = f"file://{self._workdir}/trial-{number}"
            return try_rows(replace(alone, config=config, rendezvous=rendezvous), rank)

        config = settle_rows(
            brief.config,
            self.store,
            size,
            -(-brief.config.train.global_batch_size // brief.world_size),
            trial,
            lambda config, hardware: memory_case(replace(alone, config=config), hardware),
            Forks(self._gang.still, self._gang.forget),
        )
        self._mark("rows")
        return replace(brief, config=config)

    def _wait(self, ranks: Processes) -> Report:
        """Until every process is gone; the first that fails, here or on another node, ends the others at once."""
        gang = self._gang
        while True:
            gang.listen()
            for number in gang.notices():
                ranks.signal(number)
            if ranks.in_trouble:
                gang.halt()
            if gang.halted:
                ranks.kill()
            if not ranks.alive:
                return ranks.report()
            wait([*ranks.sentinels, *gang.waitables])
            ranks.reap()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Pass it on, to every machine; before there is anything to save, simply go."""
        if self._preparing:
            self._preparing = False
            raise _Leave
        if self._ranks is not None:
            self._ranks.signal(number)
            self._gang.notify(number)

    def _on_interrupt(self, _number: int, _frame: FrameType | None) -> None:
        """Another node has ended the attempt; what is being prepared here is of no use any more."""
        if self._preparing:
            self._preparing = False
            raise Halted

    def _on_news(self, _number: int, _frame: FrameType | None) -> None:
        """The cloud takes this machine. The ranks read that from the board, and tell those of other nodes."""
        if self._preparing:
            self._preparing = False
            raise _Leave

    def _mark(self, part: str) -> None:
        """Seconds since the mark before; the parts of a start are told in the journal."""
        now = time.monotonic()
        self.clock[part] = round(now - self._began, 3)
        self._began = now


class _Leave(BaseException):
    """Raised by the signal handler. No Exception: an import under way would swallow that."""


def _attempt(epoch: int) -> int:
    """The ordinal that the launcher gave this machine; the claim's where there is no launcher."""
    text = os.environ.get("VLAUNCH_ATTEMPT", "")
    if text and not text.isdigit():
        raise UsageError(f"VLAUNCH_ATTEMPT={text} is no ordinal of an attempt")
    return int(text or epoch)


def _processes() -> int:
    import torch

    return max(1, torch.cuda.device_count())


def _age_of_process_s() -> float:
    """Seconds since this process was started, interpreter start-up included; 0 off Linux."""
    try:
        with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
            started = int(stat.read().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
            return max(0.0, float(uptime.read().split()[0]) - started)
    except OSError:
        return 0.0
