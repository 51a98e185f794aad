"""Listening: uvicorn with what a server on the open network needs beside it.

uvicorn's fast parser waits for ever for the end of a request's headers, and takes them at any length; its SIGTERM
closes the door at once, while a worker that drains must still answer "not me". Both are mended here. uvloop and
httptools are used where they are installed, and the extra [serve] installs them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from types import TracebackType

import uvicorn
from starlette.types import ASGIApp, Receive
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# nginx: client_header_timeout 60 s, 32 KB of headers. A client of an API sends them in one packet.
_HEADER_S, _HEADER_BYTES = 10.0, 32 * 1024
# Longer than aiohttp's idle connections live (15 s), so that the API's pool never meets a door just closed.
_KEEP_ALIVE_S = 30
# A connection is a file descriptor and some KB; beyond this, 503.
_MOST_CONNECTIONS = 10_000


class TooLarge(Exception):
    """The body is longer than this server takes."""


class TooSlow(Exception):
    """The body did not arrive in time."""


class Gone(Exception):
    """The client went away."""


class Cut(Exception):
    """The request was ended from this side: its time is over, or its worker is gone."""


class Guarded(HttpToolsProtocol):
    """A connection whose headers must be complete within 10 s and 32 KB."""

    _clock: asyncio.TimerHandle | None = None
    _header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_are_there()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._clock is not None:
            self._header_bytes += len(data)
        super().data_received(data)
        # One packet may hold the end of the headers and much of a body: only what is still open counts.
        if self._clock is not None and self._header_bytes > _HEADER_BYTES:
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._clock is None:
            self._await_headers()

    def on_headers_complete(self) -> None:
        self._headers_are_there()
        super().on_headers_complete()

    def _await_headers(self) -> None:
        self._header_bytes = 0
        self._clock = self.loop.call_later(_HEADER_S, self.transport.close)

    def _headers_are_there(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None


async def read_body(receive: Receive, most_bytes: int, within_s: float) -> bytes:
    """The whole body of a request.

    Raises:
        TooLarge, TooSlow, Gone.
    """
    parts, size = [], 0
    try:
        async with asyncio.timeout(within_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                part = message.get("body", b"")
                size += len(part)
                if size > most_bytes:
                    raise TooLarge
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise TooSlow from None


class Client:
    """The other end of a request whose body was read. `async with` ends with Gone as soon as it hangs up.

    `cut()` ends it too, with Cut; `deadline_s` seconds do as well.
    """

    def __init__(self, receive: Receive, deadline_s: float | None = None) -> None:
        self._receive = receive
        self._deadline_s = deadline_s
        self._why: type[Exception] = Cut

    async def __aenter__(self) -> Client:
        self._loop = asyncio.get_running_loop()
        self._scope = asyncio.timeout(self._deadline_s)
        await self._scope.__aenter__()
        self._watching = self._loop.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watching.cancel()
        try:
            await self._scope.__aexit__(kind, error, trace)
        except TimeoutError:
            raise self._why from None

    def cut(self) -> None:
        self._scope.reschedule(self._loop.time())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._why = Gone
        self.cut()


class Server(uvicorn.Server):
    """A server that leaves signals to whoever runs it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_server(app: ASGIApp, *, grace_s: float) -> Server:
    """`grace_s`: how long requests may go on after `should_exit`."""
    return Server(
        uvicorn.Config(
            app,
            http=Guarded,
            ws="none",
            lifespan="on",
            access_log=False,
            proxy_headers=False,  # who somebody is, only the connection says
            log_config=None,
            log_level="warning",
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(grace_s) + 1,
            limit_concurrency=_MOST_CONNECTIONS,
        )
    )


async def serve_until_told(
    app: ASGIApp,
    listening: socket.socket,
    *,
    grace_s: float,
    told: asyncio.Event | None = None,
    before_the_end: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Serves until SIGTERM, SIGINT or `told`, then does `before_the_end` while still serving, then closes.

    Requests that are open then have `grace_s`. A second signal ends at once.
    """
    server = make_server(app, grace_s=grace_s)
    told = told or asyncio.Event()
    loop = asyncio.get_running_loop()

    def signalled() -> None:
        if told.is_set():
            os._exit(1)
        told.set()

    async def leave() -> None:
        await told.wait()
        if before_the_end is not None:
            await before_the_end()
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    leaving = asyncio.create_task(leave())
    await server.serve(sockets=[listening])
    leaving.cancel()
