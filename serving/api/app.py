"""The API: `python -m serving.api --controller URL`. OpenAI's paths, the page, /health, /ready, /metrics, /admin.

Whatever asks for a model is a Pipe to a worker. The rest is answered here from the controller's table. Every path but
the page's files, /health, /ready and /openapi.json needs a key, unless the API has none; then it answers this
machine's own programs only, and no page of a stranger's that runs in a browser on it.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.api.directory import Directory, DirectoryError
from serving.api.document import openapi
from serving.api.keys import ADMIN, INFERENCE, Keys
from serving.api.metrics import Metrics
from serving.api.page import page_routes
from serving.api.pipe import Pipe
from serving.api.votes import Votes
from serving.dispatch import Dispatcher, Policy
from serving.openai.errors import ApiError, send_error
from serving.protocol import Drain
from serving.server import Gone, TooLarge, TooSlow, read_body

_PIPED = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
_SMALL_BODY, _SMALL_BODY_S = 64 * 1024, 10.0
_FIRST_TABLE_S = 3.0
_CONNECT_S = 3.0  # a worker on another continent answers a SYN within 0.3 s


@dataclass(frozen=True)
class ApiOptions:
    """What an operator says of an API.

    Attributes:
        origins: of pages that may call it from a browser, beside its own; none by default.
        most_open, most_bytes, deadline_s: limits of requests, of one request's body, of its whole answer.
        votes: where the page's votes are kept; None: it offers no voting.
    """

    controller: str
    secret: bytes
    keys: Keys
    policy: Policy = "shortest-queue"
    origins: tuple[str, ...] = ()
    most_open: int = 4096
    most_bytes: int = 8 << 20
    deadline_s: float = 900.0
    votes: Path | None = None


class Api:
    """All of it, as one ASGI application."""

    def __init__(self, options: ApiOptions) -> None:
        self._options = options
        self._dispatcher = Dispatcher(options.policy)
        self.metrics = Metrics(self._dispatcher)
        self._votes = Votes(options.votes)
        self._pipe: Pipe | None = None

    def app(self) -> ASGIApp:
        routes = [
            *(Route(path, _Late(self), methods=["POST"]) for path in _PIPED),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/health", lambda request: Response(status_code=200)),
            Route("/ready", self.ready),
            Route("/metrics", self.metrics_text),
            Route("/openapi.json", lambda request: _json(openapi(sorted(self._dispatcher.models())))),
            Route("/votes", self.vote, methods=["POST"]),
            Route("/admin/workers", self.workers),
            Route("/admin/drain", self.drain, methods=["POST"]),
            *page_routes(),
        ]
        middleware = [Middleware(_Door, keys=self._options.keys, origins=self._options.origins)]
        if self._options.origins:
            cors = Middleware(
                CORSMiddleware,
                allow_origins=list(self._options.origins),
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type", "x-request-id"],
                expose_headers=["x-request-id", "retry-after"],
            )
            middleware.insert(0, cors)
        handlers: Mapping[Any, Any] = {ApiError: _said, 404: _no_such_path, 405: _no_such_path}
        return Starlette(
            routes=routes, middleware=middleware, lifespan=self._living, exception_handlers=handlers
        )

    async def piped(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._pipe is not None
        await self._pipe(scope, receive, send)

    async def models(self, request: Request) -> Response:
        served = self._dispatcher.models()
        return _json({"object": "list", "data": [_model(name, served[name]) for name in sorted(served)]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        served = self._dispatcher.models()
        if name not in served:
            raise ApiError(404, f"there is no model {name[:200]!r}", param="model", code="model_not_found")
        return _json(_model(name, served[name]))

    async def ready(self, request: Request) -> Response:
        ready = any(place.said.state == "ready" for place in self._dispatcher.places())
        return Response(status_code=200 if ready else 503)

    async def metrics_text(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def vote(self, request: Request) -> Response:
        await asyncio.to_thread(self._votes.add, await _small_body(request))
        return _json({"stored": True})

    async def workers(self, request: Request) -> Response:
        found = [
            {**place.said.model_dump(mode="json"), "sent": place.sent} for place in self._dispatcher.places()
        ]
        return _json({"workers": found})

    async def drain(self, request: Request) -> Response:
        try:
            wish = Drain.model_validate_json(await _small_body(request))
        except ValueError:
            raise ApiError(
                400, 'the body is {"url": "http://HOST:PORT"}, as /admin/workers shows it'
            ) from None
        try:
            await self._directory.drain(wish.url)
        except DirectoryError as error:
            raise ApiError(error.status, str(error)) from None
        return _json({"draining": wish.url})

    @asynccontextmanager
    async def _living(self, app: Starlette) -> AsyncIterator[None]:
        """While the server runs: connections to the workers, and the controller's table."""
        options = self._options
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("user-agent", "accept-encoding"),
        )
        async with session:
            self._directory = Directory(
                self._dispatcher, self.metrics, session, options.controller, options.secret
            )
            self._pipe = Pipe(
                self._directory,
                self.metrics,
                session,
                options.secret,
                most_open=options.most_open,
                most_bytes=options.most_bytes,
                deadline_s=options.deadline_s,
            )
            following = asyncio.create_task(self._directory.follow())
            with suppress(TimeoutError):
                # Connections that came while an API before this one died wait meanwhile.
                await asyncio.wait_for(self._directory.first_table.wait(), _FIRST_TABLE_S)
            yield
            following.cancel()


class _Late:
    """A route to the pipe, which is there once the server runs. A class, so that Starlette takes it as ASGI."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._api.piped(scope, receive, send)


class _Door:
    """Keys, and where there are none: only this machine's own programs."""

    def __init__(self, app: ASGIApp, keys: Keys, origins: tuple[str, ...]) -> None:
        self._app = app
        self._keys = keys
        self._origins = {origin.encode() for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope)
            except ApiError as error:
                return await send_error(send, error)
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        """Raises ApiError."""
        path: str = scope["path"]
        if scope["method"] == "OPTIONS" or not path.startswith(_GUARDED):
            return
        headers = dict(scope["headers"])
        if self._keys.needed:
            wanted = ADMIN if path.startswith("/admin") else INFERENCE
            self._keys.check(headers.get(b"authorization", b"").decode("latin-1"), wanted)
            return
        # A name of a stranger's that leads to 127.0.0.1 makes a browser take this API for the stranger's.
        host = headers.get(b"host", b"")
        if not _is_loopback(host.decode("latin-1")):
            raise ApiError(403, "without keys this API is for http://127.0.0.1 and http://localhost alone")
        origin = headers.get(b"origin")
        if origin not in (None, b"http://" + host, b"https://" + host) and origin not in self._origins:
            raise ApiError(403, "pages of other origins may not call this API; --allow-origin admits one")


_GUARDED = ("/v1/", "/metrics", "/votes", "/admin")


def _is_loopback(host: str) -> bool:
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


async def _small_body(request: Request) -> bytes:
    try:
        return await read_body(request.receive, _SMALL_BODY, _SMALL_BODY_S)
    except TooLarge:
        raise ApiError(413, f"at most {_SMALL_BODY} bytes here") from None
    except (TooSlow, Gone):
        raise ApiError(408, "the body did not arrive in time") from None


def _model(name: str, said: Any) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": int(said.born),
        "owned_by": "vlaunch",
        "max_model_len": said.context,
        "abilities": list(said.abilities),
    }


def _json(data: Mapping[str, Any]) -> Response:
    return Response(orjson.dumps(data), media_type="application/json")


async def _said(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    headers = {name.decode(): value.decode() for name, value in error.headers()}
    return Response(error.body(), error.status, headers)


async def _no_such_path(request: Request, error: Any) -> Response:
    message = f"there is no {request.method} {request.url.path[:200]} here; see /openapi.json"
    return Response(
        ApiError(error.status_code, message).body(), error.status_code, error.headers, "application/json"
    )
