"""The controller: `python -m serving.controller`. The registry on port 21001, and nothing else.

It answers workers that announce themselves, the API that asks for the table, and operators who drain. Everything
needs the service's signature. It calls nobody, so no url that it is told can make it reach anything. Killed at any
time, it knows all again within a second of its next start.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar
from urllib.parse import urlsplit

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serving import program, server
from serving.protocol import (
    ANNOUNCE_PATH,
    CONTROLLER_PORT,
    DRAIN_PATH,
    SEEN_HOST,
    TABLE_PATH,
    Announcement,
    Drain,
    Message,
)
from serving.registry import Registry
from serving.signing import HEADER, Unsigned, Verifier

log = logging.getLogger("controller")

_SWEEP_S = 0.25
# How long the API's question for a table of a newer version may wait; also how often it hears of load.
LONGEST_WAIT_S = 1.0
# A worker with a thousand adapters says 200 KB.
_MOST_BYTES = 1 << 20
_BODY_S = 10.0

M = TypeVar("M", bound=Message)


class Controller:
    """The ASGI skin of a Registry."""

    def __init__(self, secret: bytes) -> None:
        self.registry = Registry(controller=secrets.token_hex(8))
        self._verifier = Verifier(secret, once=True)
        self._changed = asyncio.Event()

    def app(self) -> Starlette:
        routes = [
            Route(ANNOUNCE_PATH, self.announce, methods=["POST"]),
            Route(DRAIN_PATH, self.drain, methods=["POST"]),
            Route(TABLE_PATH, self.table, methods=["POST"]),
            Route("/health", lambda request: Response(status_code=200)),
        ]
        return Starlette(routes=routes, lifespan=self._sweeping, exception_handlers={_Refused: _refusal})

    async def announce(self, request: Request) -> Response:
        said = _reachable(_parsed(Announcement, await self._signed(request)), request)
        before = self.registry.version
        orders = self.registry.announce(said, time.monotonic())
        if self.registry.version != before:
            log.info("%s is %s: %s", said.url, said.state, ", ".join(said.models))
            self._wake()
        return _json(orders)

    async def drain(self, request: Request) -> Response:
        wish = _parsed(Drain, await self._signed(request))
        if not self.registry.drain(wish.url):
            raise _Refused(404, f"no worker announces itself at {wish.url}")
        log.info("%s is to be drained", wish.url)
        return JSONResponse({})

    async def table(self, request: Request) -> Response:
        """The table: at once if it is newer than ?after=VERSION, else when it changes, or after a second."""
        await self._signed(request)
        if request.query_params.get("after") == f"{self.registry.controller}-{self.registry.version}":
            try:
                await asyncio.wait_for(self._changed.wait(), LONGEST_WAIT_S)
            except TimeoutError:
                pass
        return _json(self.registry.table())

    async def _signed(self, request: Request) -> bytes:
        """The body of a request that comes from a process of this service."""
        try:
            body = await server.read_body(request.receive, _MOST_BYTES, _BODY_S)
            path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            self._verifier.check(request.headers.get(HEADER), request.method, path, body, time.time())
        except Unsigned as error:
            raise _Refused(401, str(error)) from None
        except server.TooLarge:
            raise _Refused(413, f"more than {_MOST_BYTES} bytes") from None
        except (server.TooSlow, server.Gone):
            raise _Refused(408, "the body did not arrive") from None
        return body

    @asynccontextmanager
    async def _sweeping(self, app: Starlette) -> AsyncIterator[None]:
        async def sweep() -> None:
            while True:
                await asyncio.sleep(_SWEEP_S)
                if silent := self.registry.expire(time.monotonic()):
                    log.warning("silent, so out: %s", ", ".join(silent))
                    self._wake()

        sweeping = asyncio.create_task(sweep())
        yield
        sweeping.cancel()

    def _wake(self) -> None:
        """Answer everybody who waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()


def _reachable(said: Announcement, request: Request) -> Announcement:
    """With the host from which it came, where a worker does not know its own."""
    url = urlsplit(said.url)
    if url.hostname != SEEN_HOST or request.client is None:
        return said
    host = request.client.host
    seen = f"{url.scheme}://{f'[{host}]' if ':' in host else host}:{url.port}"
    return said.model_copy(update={"url": seen})


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def _parsed(kind: type[M], body: bytes) -> M:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _Refused(400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, _Refused)
    return JSONResponse({"error": {"message": str(error)}}, error.status)


def _json(message: Message) -> Response:
    return Response(message.model_dump_json(), media_type="application/json")


async def serve(common: program.Common) -> None:
    controller = Controller(common.secret)
    log.info("controller on %s", common.address)
    await server.serve_until_told(controller.app(), common.listening, grace_s=1.0)


def main(arguments: list[str] | None = None) -> int:
    parser = program.parser("serving.controller", port=CONTROLLER_PORT)
    return program.run(parser.parse_args(arguments), serve)


if __name__ == "__main__":
    raise SystemExit(main())
