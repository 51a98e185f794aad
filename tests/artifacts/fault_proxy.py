"""A proxy between a store and its server that does to chosen requests what networks and services do.

    with FaultProxy("http://127.0.0.1:8101") as proxy:
        proxy.plan = Nth(3, Trouble.LOST_REPLY)
        ...  # the client talks to proxy.url

It reads every request whole before it decides, so what happens depends on the request alone and not on time.
"""

from __future__ import annotations

import random
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from urllib.parse import urlsplit


class Trouble(Enum):
    """What becomes of a request."""

    BUSY = "the server says 503 and does nothing"
    TOO_MANY = "the server says 429 and does nothing"
    RESET_BEFORE = "the connection is reset before the request is through"
    LOST_REPLY = "the request is carried out, and the connection is reset instead of the reply"
    CUT_REPLY = "half of the reply's body comes, then a reset"
    FLIPPED_BIT = "one bit of the reply's body is wrong; of an object only, since listings have no checksum"
    BLACK_HOLE = "nothing ever comes back; the request is not carried out"
    LATE_REPLY = "the request is carried out, and nothing ever comes back"
    DELAYED = "it takes a little longer"


@dataclass(frozen=True)
class Request:
    """One request that came through, its number from 1 and that of its connection."""

    number: int
    connection: int
    method: str
    path: str
    head: bytes
    size: int


@dataclass(frozen=True)
class Answer:
    """A reply of the proxy's own, for what no test server would say."""

    status: int
    body: str
    headers: dict[str, str] = field(default_factory=dict)


Plan = Callable[[Request], Trouble | Answer | None]


@dataclass(frozen=True)
class Nth:
    """Trouble for one request: the `number`th of those that match."""

    number: int
    trouble: Trouble | Answer
    method: str = "."
    path: str = "."
    seen: list[int] = field(default_factory=list)

    def __call__(self, request: Request) -> Trouble | Answer | None:
        if not (re.match(self.method, request.method) and re.search(self.path, request.path)):
            return None
        self.seen.append(request.number)
        return self.trouble if len(self.seen) == self.number else None


class Sometimes:
    """Trouble for a share of all requests, drawn from a seed."""

    def __init__(self, seed: int, share: float, troubles: Sequence[Trouble]) -> None:
        self._random, self._share, self._troubles = random.Random(seed), share, troubles

    def __call__(self, request: Request) -> Trouble | None:
        return self._random.choice(self._troubles) if self._random.random() < self._share else None


def all_well(request: Request) -> None:
    """No trouble."""


def always(what: Trouble | Answer, method: str = ".", path: str = ".") -> Plan:
    """The same for every request that matches."""
    return lambda r: what if re.match(method, r.method) and re.search(path, r.path) else None


class FaultProxy:
    """Hands requests on to `upstream`; `plan` may be changed at any time, `requests` is what came.

    With `tls` its own side is https; upstream is http either way.
    """

    def __init__(self, upstream: str, tls: ssl.SSLContext | None = None) -> None:
        self.plan: Plan = all_well
        self.requests: list[Request] = []
        self.troubles = 0
        self._upstream = urlsplit(upstream).netloc
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.netloc = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._tls = tls
        self.url = f"{'https' if tls else 'http'}://{self.netloc}"

    def __enter__(self) -> FaultProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closing.set()
        self._listener.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._connections += 1
            threading.Thread(target=self._serve, args=(client, self._connections), daemon=True).start()

    def _serve(self, client: socket.socket, number: int) -> None:
        host, _, port = self._upstream.partition(":")
        with (
            suppress(OSError, _Closed),
            self._tls.wrap_socket(client, server_side=True) if self._tls else client as ours,
            socket.create_connection((host, int(port))) as server,
        ):
            talk = _Talk(ours, server)
            while self._one(talk, number):
                pass

    def _one(self, talk: _Talk, connection: int) -> bool:
        """One request and its reply; False if the connection is not to be used again."""
        head = talk.client.head()
        if b"100-continue" in head.lower():
            talk.client.socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = re.sub(rb"(?i)\r\nexpect: 100-continue", b"", head)
        body = talk.client.exactly(_length(head) or 0)
        method, path, _ = head.split(b"\r\n")[0].decode().split(" ")
        with self._lock:
            request = Request(len(self.requests) + 1, connection, method, path, head, len(body))
            self.requests.append(request)
            trouble = self.plan(request)
            self.troubles += trouble is not None
        if isinstance(trouble, Answer):
            return talk.say(trouble, method)
        if trouble in (Trouble.BUSY, Trouble.TOO_MANY):
            return talk.say(_SAID[trouble], method)
        if trouble is Trouble.RESET_BEFORE:
            return talk.reset()
        if trouble is Trouble.BLACK_HOLE:
            return talk.wait_for_the_client_to_leave()
        talk.server.socket.sendall(head + body)  # the Host is signed
        return self._reply(talk, method, trouble)

    def _reply(self, talk: _Talk, method: str, trouble: Trouble | None) -> bool:
        head = talk.server.head()
        status = int(head.split(b" ", 2)[1])
        if method == "HEAD" or status in (204, 304):
            body = b""
        elif (length := _length(head)) is not None:
            body = talk.server.exactly(length)
        else:
            body = talk.server.chunks()
        # A server says where an upload goes on; that way leads through here as well.
        head = head.replace(self._upstream.encode(), self.netloc.encode())
        if trouble is Trouble.LOST_REPLY:
            return talk.reset()
        if trouble is Trouble.LATE_REPLY:
            return talk.wait_for_the_client_to_leave()
        if trouble is Trouble.CUT_REPLY and body:
            talk.client.socket.sendall(head + body[: len(body) // 2])
            return talk.reset()
        if trouble is Trouble.FLIPPED_BIT and _is_object(head, method) and body:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        if trouble is Trouble.DELAYED:
            self._closing.wait(0.02)
        talk.client.socket.sendall(head + body)
        return b"connection: close" not in head.lower()


_SAID = {
    Trouble.BUSY: Answer(503, "<Error><Code>SlowDown</Code><Message>Please slow down</Message></Error>"),
    Trouble.TOO_MANY: Answer(429, "<Error><Code>TooManyRequests</Code></Error>"),
}


class _Closed(Exception):
    """The other side has gone."""


class _Side:
    """A socket that is read up to a length or a mark; what came too early stays for the next read."""

    def __init__(self, socket: socket.socket) -> None:
        self.socket = socket
        self._early = b""

    def head(self) -> bytes:
        return self._until(b"\r\n\r\n")

    def exactly(self, size: int) -> bytes:
        while len(self._early) < size:
            self._more()
        data, self._early = self._early[:size], self._early[size:]
        return data

    def chunks(self) -> bytes:
        """A body in chunks, with their sizes, as it came."""
        data = b""
        while True:
            line = self._until(b"\r\n")
            size = int(line.partition(b";")[0], 16)
            data += line + self.exactly(size + 2)
            if size == 0:
                return data

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._early:
            self._more()
        return self.exactly(self._early.index(mark) + len(mark))

    def _more(self) -> None:
        data = self.socket.recv(1 << 18)
        if not data:
            raise _Closed
        self._early += data


class _Talk:
    """The two sides of one connection."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = _Side(client), _Side(server)

    def say(self, answer: Answer, method: str) -> bool:
        headers = {
            "Content-Type": "application/xml",
            "Content-Length": str(len(answer.body.encode())),
        } | answer.headers
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        body = "" if method == "HEAD" else answer.body
        self.client.socket.sendall(f"HTTP/1.1 {answer.status} X\r\n{lines}\r\n{body}".encode())
        return True

    def reset(self) -> bool:
        self.client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    def wait_for_the_client_to_leave(self) -> bool:
        try:
            while True:
                self.client._more()
        except (_Closed, OSError):
            return False


def _length(head: bytes) -> int | None:
    found: Any = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return int(found[1]) if found else None


def _is_object(head: bytes, method: str) -> bool:
    kind = re.search(rb"(?i)\r\ncontent-type: *(\S+)", head)
    return method == "GET" and not (kind and (b"xml" in kind[1] or b"json" in kind[1]))
