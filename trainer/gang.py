"""What the nodes of an attempt say to each other: where to resume, when to start, and when to end.

The first node, the head, listens on its own address; the others connect and prove that they belong (joining.py).
The head alone claims the run and writes the journal; what the others need to know it tells them here. Afterwards
the same lines are the death watch: a node on which a process failed says so, one that died closes its line, one
that lost its power falls silent (lines.py).

How it ends. As soon as one node has trouble the head tells all to halt, and each kills its ranks. The head judges
what it was told (endings.py), writes the journal and only then tells the end, with which all leave. SkyPilot kills
the other nodes as soon as one has left with an error (get_or_fail in its task_codegen.py), so none may leave before
the head has written. A node that is gone without a word is a machine that was taken: exit code 75, no `failed` in
the journal. That holds for the head too, of whom the others cannot know more.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from multiprocessing.connection import wait

from trainer.endings import Report, gone, judge
from trainer.errors import NotReady
from trainer.joining import Door, find_head
from trainer.lines import SILENCE_S, Event, Message, Watch
from trainer.nodes import Nodes, listen

log = logging.getLogger("trainer")

# Between the first bad news and the judgement. A killed process is gone in milliseconds, with a GPU in a second or
# two: long enough for the node where it began to be heard, which is not always the first to speak.
_GRACE_S = 5.0


class Halted(BaseException):
    """Another node has ended the attempt while this one still prepared. No Exception, as an import under way would
    swallow that."""


class _Gang:
    """What the head and the other nodes have in common: they listen, relay notices, and halt."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self.halted = False
        """The ranks of this node are to be killed."""
        self._notices: list[int] = []
        self._watch: Watch | None = None

    @property
    def waitables(self) -> list[int]:
        """File descriptors that become readable when there is something to listen to."""
        return [self._watch.fileno()] if self._watch else []

    def listen(self) -> None:
        """Take in what the other nodes have said."""
        for event in self._watch.events() if self._watch else []:
            self._hear(event)

    def notices(self) -> list[int]:
        """Signals that other machines were given since the last call: this one's ranks are to have them too."""
        found, self._notices = self._notices, []
        return found

    def interrupt(self, on: bool) -> None:
        """Whether bad news comes as a signal, lines.INTERRUPT; for as long as the main thread does not listen.

        Halted where there is bad news already.
        """
        if self._watch:
            self._watch.interrupts = on
        self.listen()
        if on and self.halted:
            raise Halted

    def host_meeting(self) -> None:
        """On the head: host the store at which the ranks meet."""

    def beat_strictly(self) -> None:
        """From here on no node has a reason to be silent."""
        if self._watch:
            self._watch.silence_s = SILENCE_S

    def still(self) -> AbstractContextManager[object]:
        """While it is held, forking is safe."""
        return self._watch.still if self._watch else nullcontext()

    def forget(self) -> None:
        """In a forked rank: only its parent speaks to other nodes."""
        if self._watch:
            self._watch.forget()

    def _close(self) -> None:
        watch, self._watch = self._watch, None
        if watch:
            watch.close()

    def _say(self, message: Message, to: int | None = None) -> None:
        if self._watch:
            self._watch.say(message, to)

    def _wait(self, until: Callable[[], bool], deadline: float | None = None) -> bool:
        """Listen until it is so (True) or too late (False). Halted where the attempt ends instead."""
        while not until():
            if self.halted:
                raise Halted
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0.0:
                return False
            wait(self.waitables, left)
            self.listen()
        return True

    def _hear(self, event: Event) -> None:
        raise NotImplementedError


class Head(_Gang):
    """Node 0. With no other nodes it has nobody to speak to, opens no port, and judges itself alone."""

    def __init__(self, nodes: Nodes) -> None:
        """NotReady where the ports of the rendezvous cannot be had."""
        super().__init__(nodes)
        self._opened = time.monotonic()
        self._halted_at = 0.0
        self._here: set[int] = {0}
        self._processes: dict[int, int] = {}
        self._reports: dict[int, Report] = {}
        self._listener: socket.socket | None = None
        self._meeting: socket.socket | None = None
        if nodes.count > 1:
            self._listener = listen(nodes.addresses[0], nodes.port)
            # torch itself would listen on every address of this machine.
            self._meeting = listen(nodes.addresses[0], nodes.port + 1)

    def open(self, epoch: int, attempt: int, secret: bytes) -> None:
        """Let the other nodes in; `secret` is the record of this epoch's claim."""
        if self._listener is not None:
            self._watch = Watch(self._listener, Door(self.nodes, epoch, attempt, secret))
            self._watch.start({})

    def gather(self) -> None:
        """Wait until every node is here.

        Raises:
            NotReady: after nodes.patience_s; it names those that are missing.
        """
        everyone = set(range(self.nodes.count))
        if not self._wait(lambda: self._here >= everyone, self._opened + self.nodes.patience_s):
            missing = ", ".join(self.nodes.name(rank) for rank in sorted(everyone - self._here))
            raise NotReady(
                f"{missing} did not appear within {self.nodes.patience_s:g} s",
                hint=f"see its own log; port {self.nodes.port} of {self.nodes.addresses[0]} must be open to it "
                "(VLAUNCH_RENDEZVOUS_PORT, VLAUNCH_RENDEZVOUS_TIMEOUT_S)",
            )

    def brief(self, resumed: str | None, reusable: bool) -> None:
        """Tell the others where the attempt resumes: the key of a manifest."""
        self._say({"say": "start", "resumed": resumed, "reusable": reusable})

    def set_off(self, processes: int) -> None:
        """Wait until every node is prepared, then let all start their ranks.

        Raises:
            NotReady: the nodes have different numbers of processes.
        """
        self._processes[0] = processes
        self._wait(lambda: len(self._processes) == self.nodes.count)
        if len(set(self._processes.values())) > 1:
            counts = ", ".join(f"{self.nodes.name(rank)}: {n}" for rank, n in sorted(self._processes.items()))
            asked = os.environ.get("SKYPILOT_NUM_GPUS_PER_NODE")
            raise NotReady(
                f"every node must have as many processes as the others, but {counts}",
                hint="one process per GPU that torch finds"
                + (f" ({asked} were asked for)" if asked else "")
                + "; parallel.processes sets another number",
            )
        self._say({"say": "go"})
        self.beat_strictly()

    def host_meeting(self) -> None:
        """Host torch's store, at which the ranks of all nodes meet. After the fork: it has threads."""
        if self._meeting is not None:
            from torch.distributed import TCPStore

            address, port = self._meeting.getsockname()[:2]
            self._store = TCPStore(
                address,
                port,
                is_master=True,
                wait_for_workers=False,
                master_listen_fd=self._meeting.detach(),
            )

    def forget(self) -> None:
        super().forget()
        if self._meeting is not None:
            self._meeting.close()

    def notify(self, number: int) -> None:
        """This machine was told to go: so are all."""
        self._say({"say": "notice", "number": number})

    def halt(self) -> None:
        """End the ranks of all nodes."""
        if not self.halted:
            self.halted, self._halted_at = True, time.monotonic()
            self._say({"say": "halt"})

    def over(self, report: Report) -> Report:
        """Say what became of this node; returns what became of the attempt, once all nodes are through."""
        self._report(0, report)
        while not self._reports.keys() >= self._awaited():
            left = self._halted_at + _GRACE_S - time.monotonic() if self.halted else None
            if left is not None and left <= 0.0:
                break
            wait(self.waitables, left)
            self.listen()
        return judge(list(self._reports.values()))

    def _awaited(self) -> set[int]:
        """Who is to report. One that may still appear is waited for too, or it would look for a head for minutes."""
        late = time.monotonic() > self._opened + self.nodes.patience_s
        return self._here if late else set(range(self.nodes.count))

    def end(self, verdict: Report) -> None:
        """Tell all to leave; the journal must have been written before."""
        self._say(verdict.message("end"))
        self._close()
        for opened in (self._listener, self._meeting):
            if opened is not None:
                opened.close()

    def _report(self, rank: int, report: Report) -> None:
        if rank in self._reports:
            return  # it has said its last word, what becomes of it now is no news
        if self.nodes.count > 1 and report.kind == "failed":
            report = replace(report, error=f"{self.nodes.name(rank)}: {report.error}")
        self._reports[rank] = report
        if not report.calm:
            self.halt()

    def _hear(self, event: Event) -> None:
        match event.say:
            case "joined":
                self._here.add(event.rank)
                log.info("%s is here", self.nodes.name(event.rank))
                if self.halted:
                    self._say({"say": "halt"}, event.rank)
            case "ready":
                self._processes[event.rank] = int(event.message["processes"])
            case "notice":
                number = int(event.message["number"])
                self._notices.append(number)
                for rank in self._here - {0, event.rank}:
                    self._say(event.message, rank)
            case "halt":
                self.halt()
            case "over":
                self._report(event.rank, Report.from_message(event.message))
            case "gone":
                if event.rank not in self._reports:
                    log.warning("%s is gone: %s", self.nodes.name(event.rank), event.message["why"])
                self._report(event.rank, gone(self.nodes.name(event.rank), event.message["why"]))


class Member(_Gang):
    """Any node but the head."""

    def __init__(self, nodes: Nodes, secret_of: Callable[[int], bytes]) -> None:
        """Find the head and join it; `secret_of` reads the claim of an epoch from the run's store.

        Raises:
            NotReady: no head let this node in within nodes.patience_s.
        """
        super().__init__(nodes)
        self._start: Message | None = None
        self._gone_ahead = False
        self._verdict: Report | None = None
        line, self.epoch, self.attempt = find_head(nodes, secret_of)
        self._watch = Watch()
        self._watch.start({0: line})

    def started(self) -> tuple[str | None, bool]:
        """Wait for the head: the key of the manifest to resume from, and whether its blobs may be used again."""
        self._wait(lambda: self._start is not None)
        assert self._start is not None
        return self._start["resumed"], bool(self._start["reusable"])

    def set_off(self, processes: int) -> None:
        """Say that this node is prepared, and wait until all are."""
        self._say({"say": "ready", "processes": processes})
        self._wait(lambda: self._gone_ahead)
        self.beat_strictly()

    def notify(self, number: int) -> None:
        """The machine was told to go: so are all, through the head."""
        self._say({"say": "notice", "number": number})

    def halt(self) -> None:
        """A rank here has failed: end those of all nodes."""
        if not self.halted:
            self.halted = True
            self._say({"say": "halt"})

    def over(self, report: Report) -> Report:
        """Say what became of this node; returns what became of the attempt, which only the head knows."""
        self._say(report.message("over"))
        while self._verdict is None:
            wait(self.waitables)
            self.listen()
        if self._verdict.kind == "gone" and report.kind == "failed" and report.certain:
            return report
        return self._verdict

    def end(self, verdict: Report) -> None:
        """Hang up; the verdict came from the head."""
        self._close()

    def _hear(self, event: Event) -> None:
        match event.say:
            case "start":
                self._start = event.message
            case "go":
                self._gone_ahead = True
            case "notice":
                self._notices.append(int(event.message["number"]))
            case "halt":
                self.halted = True
            case "end":
                self.halted = True
                self._verdict = Report.from_message(event.message)
            case "gone":
                self.halted = True
                self._verdict = self._verdict or gone(self.nodes.name(0), event.message["why"])
