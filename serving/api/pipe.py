"""One request on its way to a worker and back. The answer's bytes are the worker's, passed through unread.

    find a worker -> send it the request -> wait for its first byte -> from there on, pass on what comes

Until the first byte a failure costs nothing: another worker gets the request. After it the client is told, in the
stream, and the stream ends. A request during which a worker died goes to one other worker and no further, so that
one which kills engines cannot kill them all.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
import zlib
from typing import Any

import aiohttp
import orjson
from starlette.types import Receive, Scope, Send

from serving.api.directory import Directory
from serving.api.metrics import Metrics
from serving.openai.errors import ApiError, send_error
from serving.protocol import Announcement
from serving.server import Client, Cut, Gone, TooLarge, TooSlow, read_body
from serving.signing import HEADER, sign

log = logging.getLogger("api")

_MOST_TRIES, _MOST_DEATHS = 4, 2
_BODY_S = 30.0
# What the conversation is recognised by: its first messages stay the same from turn to turn.
_BEGINNING = 1024
_NO_WORKER_S = 5
_LAST_WORD_S = 1.0


class Pipe:
    """The ASGI application for the paths that workers answer."""

    def __init__(
        self,
        directory: Directory,
        metrics: Metrics,
        session: aiohttp.ClientSession,
        secret: bytes,
        *,
        most_open: int,
        most_bytes: int,
        deadline_s: float,
    ) -> None:
        self._directory = directory
        self._metrics = metrics
        self._session = session
        self._secret = secret
        self._most_open = most_open
        self._most_bytes = most_bytes
        self._deadline_s = deadline_s
        self._open = 0
        self._seen_models: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        passing = Passing(scope, send)
        if self._open >= self._most_open:
            return await passing.fail(ApiError(429, "too many requests are open", retry_after_s=1))
        self._open += 1
        self._metrics.open.inc()
        try:
            body = await self._body(receive)
            passing.read(body)
            async with Client(receive, self._deadline_s):
                await self._pass(passing)
        except ApiError as error:
            await passing.fail(error)
        except Cut:
            await passing.fail(ApiError(504, f"not done within {self._deadline_s:g} s", code="timeout"))
        except Gone:
            passing.status = 499  # nginx's word for it
        finally:
            self._open -= 1
            self._metrics.open.dec()
            self._note(passing)

    async def _body(self, receive: Receive) -> bytes:
        try:
            return await read_body(receive, self._most_bytes, _BODY_S)
        except TooLarge:
            raise ApiError(413, f"a request has at most {self._most_bytes} bytes") from None
        except TooSlow:
            raise ApiError(408, "the body did not arrive in time") from None

    async def _pass(self, passing: Passing) -> None:
        """Try workers until one answers. Raises ApiError with what the last one said."""
        tried: set[str] = set()
        deaths, last = 0, None
        while len(tried) < _MOST_TRIES and deaths < _MOST_DEATHS:
            worker = self._directory.dispatcher.choose(
                passing.model, time.monotonic(), conversation=passing.conversation, tried=tried
            )
            if worker is None:
                break
            tried.add(worker.life)
            try:
                return await self._try(worker, passing)
            except _Elsewhere as failed:
                log.info("%s: %s %s", passing.number, worker.url, failed)
                self._metrics.retries.labels(failed.why).inc()
                deaths += failed.why == "died"
                last = failed.error
        raise last or self._nobody(passing.model)

    async def _try(self, worker: Announcement, passing: Passing) -> None:
        """Raises _Elsewhere where another worker may do."""
        headers = {
            HEADER: sign(self._secret, "POST", passing.path, passing.body, time.time()),
            "content-type": "application/json",
            "x-request-id": passing.number,
        }
        try:
            async with asyncio.timeout(None) as scope:
                with self._directory.in_hand(worker, scope):
                    async with self._session.post(
                        worker.url + passing.path, data=passing.body, headers=headers, allow_redirects=False
                    ) as reply:
                        await self._relay(reply, passing)
        except aiohttp.ClientConnectorError as error:
            self._directory.dispatcher.rest(worker, time.monotonic())
            raise _Elsewhere(
                "unreachable", ApiError(503, "the worker cannot be reached", retry_after_s=1)
            ) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._directory.dispatcher.rest(worker, time.monotonic())
            lost = ApiError(502, "the worker was lost while it worked on this request", code="worker_lost")
            if passing.started:
                raise lost from None
            raise _Elsewhere("died", lost) from error

    async def _relay(self, reply: aiohttp.ClientResponse, passing: Passing) -> None:
        if reply.status in (429, 503):
            error = _of_worker(reply.status, await reply.read(), reply.headers.get("retry-after"))
            raise _Elsewhere("busy" if reply.status == 429 else "leaving", error)
        if reply.content_type != "text/event-stream":
            return await passing.whole(reply.status, reply.content_type, await reply.read())
        # The first piece decides: an empty one means that the worker died between header and token.
        piece = await reply.content.readany()
        if not piece:
            raise aiohttp.ClientPayloadError("no event came")
        await passing.start()
        while piece:
            await passing.piece(piece)
            piece = await reply.content.readany()
        await passing.end()

    def _nobody(self, model: str) -> ApiError:
        served = self._directory.dispatcher.models()
        if model in served or model in self._seen_models or not self._directory.settled:
            message = f"no worker has {model} now; try again"
            return ApiError(503, message, code="no_worker", retry_after_s=_NO_WORKER_S)
        known = f"; there is {', '.join(sorted(served)[:10])}" if served else "; no worker is there yet"
        return ApiError(404, f"there is no model {model!r}{known}", param="model", code="model_not_found")

    def _note(self, passing: Passing) -> None:
        served = self._directory.dispatcher.models()
        self._seen_models.update(served)
        model = passing.model if passing.model in self._seen_models else ""
        self._metrics.requests.labels(model, str(passing.status)).inc()
        if passing.first_at:
            self._metrics.first_byte.observe(passing.first_at - passing.began)
            self._metrics.duration.observe(time.monotonic() - passing.began)


class Passing:
    """One request: what was asked, and how far its answer is."""

    def __init__(self, scope: Scope, send: Send) -> None:
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        self.number = given.decode() if _is_number(given) else uuid.uuid4().hex
        self.path: str = scope["path"]
        self._send = send
        self.body = b""
        self.model = ""
        self.conversation = 0
        self.status = 0
        self.began = time.monotonic()
        self.first_at = 0.0

    @property
    def started(self) -> bool:
        return bool(self.first_at)

    def read(self, body: bytes) -> None:
        """What is needed to find a worker; the worker reads the rest. Raises ApiError."""
        self.body, self.began = body, time.monotonic()
        try:
            asked = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise ApiError(400, f"the body is not valid JSON: {error}") from None
        if not isinstance(asked, dict):
            raise ApiError(400, "the body is not a JSON object")
        model = asked.get("model")
        if not isinstance(model, str) or not model:
            raise ApiError(
                400, "model: the name of a model is needed; GET /v1/models lists them", param="model"
            )
        self.model = model
        self.conversation = _beginning(asked)

    async def start(self) -> None:
        self.status, self.first_at = 200, time.monotonic()
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            (b"x-request-id", self.number.encode()),
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def piece(self, piece: bytes) -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})

    async def whole(self, status: int, content_type: str, body: bytes) -> None:
        self.status, self.first_at = status, time.monotonic()
        headers = [
            (b"content-type", content_type.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", self.number.encode()),
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def fail(self, error: ApiError) -> None:
        """As a response, or inside of the stream that has begun."""
        self.status = error.status
        try:
            async with asyncio.timeout(_LAST_WORD_S):
                if self.started:
                    await self._send({"type": "http.response.body", "body": error.event()})
                else:
                    await send_error(self._send, error, [(b"x-request-id", self.number.encode())])
        except TimeoutError:
            pass  # a client that does not read: the server closes what was not completed


class _Elsewhere(Exception):
    """This worker did not do it, and nothing was sent to the client yet."""

    def __init__(self, why: str, error: ApiError) -> None:
        super().__init__(why)
        self.why = why
        self.error = error


def _of_worker(status: int, body: bytes, retry_after: str | None) -> ApiError:
    try:
        said: dict[str, Any] = orjson.loads(body)["error"]
        message, code = str(said["message"]), said.get("code")
    except (orjson.JSONDecodeError, KeyError, TypeError):
        message, code = "the worker is busy", None
    seconds = float(retry_after) if retry_after and retry_after.isdigit() else 1.0
    return ApiError(status, message, code=code, retry_after_s=seconds)


def _beginning(asked: dict[str, Any]) -> int:
    """A hash of what stays the same from turn to turn: all up to the first user message, or the prompt's beginning."""
    messages = asked.get("messages")
    if not isinstance(messages, list):
        return _hash(asked.get("prompt"))
    heads = []
    for message in messages[:3]:
        if isinstance(message, dict):
            heads.append(message.get("content"))
            if message.get("role") == "user":
                break
    return _hash(heads)


def _hash(said: object) -> int:
    return zlib.crc32(repr(said)[:_BEGINNING].encode(errors="replace"))


def _is_number(given: bytes) -> bool:
    """A request id of the client's own: it goes into a header and a log, so only plain ones are taken."""
    return 0 < len(given) <= 64 and given.replace(b"-", b"").replace(b"_", b"").isalnum()
