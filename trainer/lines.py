"""Lines of JSON between the nodes of an attempt, and the news when one of them closes its line or falls silent.

A thread of its own keeps them: it beats once a second, reads, and hands on what was said. A machine that loses its
power sends no FIN, and TCP would ask after it for a quarter of an hour; a missing beat tells within seconds. The
thread works under a lock that whoever forks takes first, so that no child is born in the middle of its work.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
from collections import deque
from multiprocessing.connection import wait
from typing import Any, NamedTuple, Protocol

log = logging.getLogger("trainer")

Message = dict[str, Any]

# Sent by this thread to the main one: drop what you prepare, the attempt is over. The main thread has a handler.
INTERRUPT = signal.SIGUSR2

_BEAT_S = 1.0
# Linux sends a lost segment again after 0.2, 0.6, 1.4, 3 and 6.2 s (its shortest wait, doubled as RFC 6298 has it):
# a network that loses the same beat five times is gone.
SILENCE_S = 10.0
# While torch is imported the loader holds the interpreter, beats included: 0.3 s at a stretch where the libraries are
# in memory (measured), but 2 GB of CUDA libraries from a disk of 20 MB/s take 100 s. Little is lost if a machine that
# dies before the first step is found a little later.
SILENCE_AT_START_S = 120.0
# A message holds names, numbers and one error text. Longer is no message of ours.
_LONGEST = 64 << 10
_SEND_S = 5.0  # a line whose buffer stays full that long has nobody at its other end
_PROOF_S = 10.0  # how long a stranger may take to prove that it belongs
_STRANGERS = 64  # at once; the next one waits outside
_GOODBYE_S = 2.0  # how long a closing line waits until the last word has been read


class Broken(Exception):
    """The other end has closed the line, or says what no node of ours would say."""


class Event(NamedTuple):
    """What a node said; `gone` is said by nobody: its line is closed or silent, message["why"]."""

    rank: int
    say: str
    message: Message


class Line:
    """One TCP connection that carries JSON objects, one per line. Nothing is unpickled, nothing is trusted."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(_SEND_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._unread = bytearray()
        self.heard = time.monotonic()
        self.pending: list[Message] = []
        """What came together with a message that was awaited."""

    def fileno(self) -> int:
        return self._connection.fileno()

    def send(self, message: Message) -> None:
        """Broken where the other end is gone."""
        data = json.dumps(message).encode() + b"\n"
        if len(data) > _LONGEST:
            raise ValueError(f"a message of {len(data)} bytes")
        try:
            self._connection.sendall(data)
        except OSError as error:
            raise Broken(f"it takes no more words ({error})") from None

    def read(self) -> list[Message]:
        """The messages that are complete by now; waits only where nothing has arrived at all."""
        try:
            data = self._connection.recv(_LONGEST)
        except OSError as error:
            raise Broken(f"its line broke ({error})") from None
        if not data:
            raise Broken("it closed its line")
        self.heard = time.monotonic()
        self._unread += data
        *lines, rest = bytes(self._unread).split(b"\n")
        self._unread = bytearray(rest)
        if max(map(len, (*lines, rest))) >= _LONGEST:
            raise Broken("it sent a line that is too long")
        return [_message(line) for line in lines]

    def read_one(self, within_s: float) -> Message:
        """The next message, where the two ends speak in turn."""
        deadline = time.monotonic() + within_s
        while wait([self.fileno()], max(0.0, deadline - time.monotonic())):
            if messages := self.read():
                self.pending = messages[1:]
                return messages[0]
        raise Broken(f"it said nothing for {within_s:.0f} s")

    def hang_up(self) -> None:
        """No more from here; the other end can still read what was sent."""
        try:
            self._connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        self._connection.close()


def _message(line: bytes) -> Message:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise Broken("it sent something that is no JSON") from None
    if not isinstance(message, dict) or not isinstance(message.get("say"), str):
        raise Broken("it sent something that is no message")
    return message


class Door(Protocol):
    """Who may come in at a listening socket."""

    def greet(self, stranger: Line) -> None:
        """Say the first word."""

    def admit(self, stranger: Line, message: Message) -> int:
        """The rank of the node that has proved itself with this message; Broken for anybody else."""


class Watch:
    """The lines of this node, kept by a thread. Its own methods are for the main thread."""

    def __init__(self, listener: socket.socket | None = None, door: Door | None = None) -> None:
        self.silence_s = SILENCE_AT_START_S
        self.interrupts = False
        """Whether bad news is told by a signal too, as the main thread is not listening just now."""
        self.still = threading.Lock()
        """Held while a child is forked."""
        self._lines: dict[int, Line] = {}
        self._strangers: dict[Line, float] = {}
        self._listener, self._door = listener, door
        self._said: deque[tuple[int | None, Message]] = deque()
        self._heard: deque[Event] = deque()
        self._news, self._tell_news = os.pipe()
        self._work, self._tell_work = os.pipe()
        self._last_beat = self._last_turn = time.monotonic()
        self._closing_since: float | None = None
        self._hung_up = False
        self._thread = threading.Thread(target=self._run, name="nodes", daemon=True)

    def start(self, lines: dict[int, Line]) -> None:
        for rank, line in lines.items():
            self._lines[rank] = line
            for message in line.pending:
                self._receive(rank, message)
        self._thread.start()

    def say(self, message: Message, to: int | None = None) -> None:
        """To one node, or to all of them. Never waits, so a signal handler may call it."""
        self._said.append((to, message))
        os.write(self._tell_work, b"!")

    def fileno(self) -> int:
        """Readable while there are events."""
        return self._news

    def events(self) -> list[Event]:
        """What was heard since the last call, in order."""
        while wait([self._news], 0):
            os.read(self._news, 4096)
        return [self._heard.popleft() for _ in range(len(self._heard))]

    def close(self) -> None:
        """Send what was said last, wait a moment until it has been read, and end."""
        self._closing_since = time.monotonic()
        os.write(self._tell_work, b"!")
        self._thread.join()
        for number in (self._news, self._tell_news, self._work, self._tell_work):
            os.close(number)

    def forget(self) -> None:
        """In a forked child: the lines are the parent's, and close when it dies."""
        for line in (*self._lines.values(), *self._strangers):
            line.close()
        if self._listener is not None:
            self._listener.close()

    def _run(self) -> None:
        # Signals are the main thread's: blocked there for a moment, none must slip in here.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            while not self._over():
                ready = wait(self._waits_for(), 0.05 if self._closing_since else _BEAT_S)
                with self.still:
                    self._turn({int(number) for number in ready if isinstance(number, int)})
        except Exception:  # without this thread nobody would notice that a node died
            log.exception("the watch over the other nodes failed")
            for rank in list(self._lines):
                self._lose(rank, "this node's watch failed")
        finally:
            for line in (*self._lines.values(), *self._strangers):
                line.close()
            if self._listener is not None:
                self._listener.close()

    def _waits_for(self) -> list[int]:
        waits_for = [self._work, *(line.fileno() for line in (*self._lines.values(), *self._strangers))]
        if self._listener is not None and len(self._strangers) < _STRANGERS:
            waits_for.append(self._listener.fileno())
        return waits_for

    def _over(self) -> bool:
        since = self._closing_since
        return since is not None and (not self._lines or time.monotonic() - since > _GOODBYE_S)

    def _turn(self, ready: set[int]) -> None:
        now = time.monotonic()
        if now - self._last_turn > 3 * _BEAT_S:
            # This node was stopped itself: what it missed is yet to be read, and nobody's silence is proven.
            for line in self._lines.values():
                line.heard = now
        self._last_turn = now
        if self._work in ready:
            os.read(self._work, 4096)
        for rank, line in list(self._lines.items()):
            if line.fileno() in ready:
                self._hear(rank, line)
        self._attend(ready, now)
        self._speak(now)
        for rank, line in list(self._lines.items()):
            if now - line.heard > self.silence_s:
                self._lose(rank, f"not a word for {self.silence_s:.0f} s")

    def _hear(self, rank: int, line: Line) -> None:
        try:
            for message in line.read():
                self._receive(rank, message)
        except Broken as error:
            self._lose(rank, str(error))

    def _receive(self, rank: int, message: Message) -> None:
        if message["say"] != "beat":
            self._report(Event(rank, message["say"], message))

    def _speak(self, now: float) -> None:
        if self._hung_up:
            return
        if now - self._last_beat >= _BEAT_S:
            self._last_beat = now
            self._said.append((None, {"say": "beat"}))
        while self._said:
            to, message = self._said.popleft()
            for rank in list(self._lines) if to is None else [to]:
                try:
                    if rank in self._lines:
                        self._lines[rank].send(message)
                except Broken as error:
                    self._lose(rank, str(error))
        if self._closing_since is not None:
            self._hung_up = True
            for line in self._lines.values():
                line.hang_up()

    def _attend(self, ready: set[int], now: float) -> None:
        """Strangers at the door: greet them, hear their proof, or show them out."""
        for stranger in list(self._strangers):
            if now > self._strangers[stranger]:
                self._show_out(stranger, "it did not prove itself in time")
            elif stranger.fileno() in ready:
                self._examine(stranger)
        if self._listener is None or self._listener.fileno() not in ready or self._door is None:
            return
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it is gone already
        stranger = Line(connection)
        self._strangers[stranger] = now + _PROOF_S
        try:
            self._door.greet(stranger)
        except Broken as error:
            self._show_out(stranger, str(error))

    def _examine(self, stranger: Line) -> None:
        assert self._door is not None
        try:
            messages = stranger.read()
            if not messages:
                return
            rank = self._door.admit(stranger, messages[0])
        except Broken as error:
            self._show_out(stranger, str(error))
            return
        del self._strangers[stranger]
        self._lines[rank] = stranger
        self._report(Event(rank, "joined", {}))

    def _show_out(self, stranger: Line, why: str) -> None:
        log.debug("somebody was refused at the nodes' port: %s", why)
        del self._strangers[stranger]
        stranger.close()

    def _lose(self, rank: int, why: str) -> None:
        self._lines.pop(rank).close()
        self._report(Event(rank, "gone", {"why": why}))

    def _report(self, event: Event) -> None:
        self._heard.append(event)
        os.write(self._tell_news, b"!")
        if self.interrupts and event.say in ("gone", "halt", "over", "end"):
            signal.pthread_kill(threading.main_thread().ident or 0, INTERRUPT)
