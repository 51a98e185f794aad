"""A worker's HTTP: OpenAI's requests over an Engine. Only processes of the service may ask; the API is one.

The worker checks, formats and counts, so that the API in front of it passes bytes through. A response begins with
the first token: until then the request can fail with a proper status, and the API can give it to another worker.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from starlette.types import Receive, Scope, Send

from serving.engine import Busy, Delta, Engine, Refused, Sampling
from serving.openai import replies, requests
from serving.openai.errors import ApiError, send_error
from serving.openai.replies import Choice, Reply, Usage
from serving.server import Client, Gone, TooLarge, TooSlow, read_body
from serving.signing import HEADER, Unsigned, Verifier

log = logging.getLogger("worker")

MOST_BYTES = 8 << 20
_BODY_S = 30.0
_JSON = [(b"content-type", b"application/json")]
_EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
# Until requests have been seen to end, one of them is supposed to take so long.
_FIRST_GUESS_S = 2.0

Ask = requests.ChatRequest | requests.CompletionRequest


class Answering:
    """The ASGI application of one engine."""

    def __init__(self, engine: Engine, secret: bytes, *, most_waiting: int) -> None:
        self._engine = engine
        self._verifier = Verifier(secret)
        self._room = engine.card.places + most_waiting
        self._open = 0
        self._mean_s = _FIRST_GUESS_S
        self._emptied = asyncio.Event()
        self.draining = False
        self.broken = asyncio.Event()
        """The engine is of no use any more."""
        self._handlers: dict[str, Callable[[bytes, str, Send], Awaitable[None]]] = {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._completion,
            "/v1/embeddings": self._embed,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await _lifespan(receive, send)
        headers = dict(scope["headers"])
        number = headers.get(b"x-request-id", b"").decode("latin-1") or uuid.uuid4().hex
        try:
            handler = self._handlers.get(scope["path"])
            if handler is None or scope["method"] != "POST":
                raise ApiError(404, f"there is no {scope['method']} {scope['path']} here")
            body = await _body(receive)
            signature = headers.get(HEADER.encode(), b"").decode("latin-1")
            self._verifier.check(signature, "POST", scope["path"], body, time.time())
            if self.draining:
                raise ApiError(503, "this worker takes no new requests", code="draining", retry_after_s=1)
            async with Client(receive):
                await self._answer(handler, body, number, send)
        except Unsigned as error:
            await send_error(send, ApiError(401, str(error)))
        except ApiError as error:
            await send_error(send, error)
        except Gone:
            log.info("%s: the caller went away", number)

    async def empty(self) -> None:
        """Returns when no request is open."""
        while self._open:
            self._emptied.clear()
            await self._emptied.wait()

    @property
    def open(self) -> int:
        return self._open

    async def _answer(
        self,
        handler: Callable[[bytes, str, Send], Awaitable[None]],
        body: bytes,
        number: str,
        send: Send,
    ) -> None:
        """Every failure of the engine as an error of the API."""
        try:
            await handler(body, number, send)
        except Refused as error:
            raise ApiError(400, str(error), code="unsupported_value") from None
        except Busy as busy:
            raise ApiError(
                429, str(busy), code="rate_limit_exceeded", retry_after_s=busy.retry_after_s
            ) from None
        except (ApiError, asyncio.CancelledError, Gone):
            raise
        except Exception as error:
            log.exception("%s failed", number)
            if not self._engine.healthy():
                self.broken.set()
            raise ApiError(500, f"the engine failed: {type(error).__name__}") from None

    async def _chat(self, body: bytes, number: str, send: Send) -> None:
        ask = requests.parse(requests.ChatRequest, body)
        adapter = self._adapter(ask.model)
        ask.check(self._engine.card)
        messages: list[Any] = [message.plain() for message in ask.messages]
        for message in messages:
            requests.refuse_endless(message["content"], self._engine.card)
        prompt = self._engine.encode_chat(messages, tools=ask.template_tools())
        await self._generate(ask, [prompt], [""], adapter, number, send)

    async def _completion(self, body: bytes, number: str, send: Send) -> None:
        ask = requests.parse(requests.CompletionRequest, body)
        adapter = self._adapter(ask.model)
        ask.check(self._engine.card)
        given = requests.prompts_of(ask.prompt)
        echoes = [prompt if ask.echo and isinstance(prompt, str) else "" for prompt in given]
        await self._generate(ask, [self._tokens(prompt) for prompt in given], echoes, adapter, number, send)

    async def _embed(self, body: bytes, number: str, send: Send) -> None:
        ask = requests.parse(requests.EmbeddingRequest, body)
        self._adapter(ask.model)
        ask.check(self._engine.card)
        prompts = [self._tokens(prompt) for prompt in requests.prompts_of(ask.input)]
        for prompt in prompts:
            self._fit(prompt, 0)
        with self._places(1):
            vectors = await self._engine.embed(prompts)
        packed = ask.encoding_format == "base64"
        tokens = sum(map(len, prompts))
        await _send_whole(send, replies.embeddings(vectors, model=ask.model, tokens=tokens, packed=packed))

    async def _generate(
        self,
        ask: Ask,
        prompts: list[list[int]],
        echoes: list[str],
        adapter: str | None,
        number: str,
        send: Send,
    ) -> None:
        """One answer of prompts x n choices."""
        for prompt in prompts:
            self._fit(prompt, ask.most_tokens() or 1)
        jobs = [(prompt, ask.sampling(copy)) for prompt in prompts for copy in range(ask.choices)]
        first_texts = [echo for echo in echoes for _ in range(ask.choices)]
        reply = Reply(
            id=number,
            created=int(time.time()),
            model=ask.model,
            chat=isinstance(ask, requests.ChatRequest),
            logprobs=ask.alternatives() is not None,
            with_usage=ask.with_usage,
        )
        usage = Usage(prompt=sum(map(len, prompts)))
        with self._places(len(jobs)):
            async with aclosing(self._deltas(jobs, adapter)) as deltas:
                counted = _counted(deltas, usage)
                if isinstance(ask, requests.ChatRequest):
                    counted = _without_lead(counted)
                if ask.stream:
                    await _stream(counted, reply, first_texts, usage if ask.with_usage else None, send)
                else:
                    choices = [Choice([text]) for text in first_texts]
                    async for index, delta in counted:
                        choices[index].add(delta)
                    await _send_whole(send, reply.whole(choices, usage))

    async def _deltas(
        self, jobs: list[tuple[list[int], Sampling]], adapter: str | None
    ) -> AsyncGenerator[tuple[int, Delta], None]:
        """The deltas of all choices as they come, each with its choice; closing it ends all of them."""
        streams = [self._engine.generate(prompt, how, adapter=adapter) for prompt, how in jobs]
        if len(streams) == 1:
            async with aclosing(_closable(streams[0])) as stream:
                async for delta in stream:
                    yield 0, delta
            return
        arrived: asyncio.Queue[tuple[int, Delta] | BaseException | None] = asyncio.Queue()

        async def pump(index: int, stream: AsyncIterator[Delta]) -> None:
            try:
                async with aclosing(_closable(stream)) as deltas:
                    async for delta in deltas:
                        arrived.put_nowait((index, delta))
                arrived.put_nowait(None)
            except Exception as error:
                arrived.put_nowait(error)

        pumps = [asyncio.create_task(pump(index, stream)) for index, stream in enumerate(streams)]
        try:
            left = len(pumps)
            while left:
                item = await arrived.get()
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    left -= 1
                else:
                    yield item
        finally:
            for task in pumps:
                task.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    def _places(self, count: int) -> _Places:
        """Room for so many choices while this lasts. Raises Busy."""
        if self._open + count > self._room:
            running, waiting = self._engine.load()
            rounds = (running + waiting + count) / max(1, self._engine.card.places)
            raise Busy(
                f"{self._open} requests are here already", retry_after_s=max(1.0, rounds * self._mean_s)
            )
        return _Places(self, count)

    def _take(self, count: int) -> None:
        self._open += count

    def _give_back(self, count: int, took_s: float) -> None:
        self._open -= count
        self._mean_s += (took_s - self._mean_s) / 8
        if not self._open:
            self._emptied.set()

    def _adapter(self, model: str) -> str | None:
        card = self._engine.card
        if model == card.name:
            return None
        if model in card.adapters:
            return model
        raise ApiError(404, f"there is no model {model!r} here", param="model", code="model_not_found")

    def _tokens(self, prompt: requests.Prompt) -> list[int]:
        requests.refuse_endless(prompt, self._engine.card)
        return self._engine.encode(prompt) if isinstance(prompt, str) else prompt

    def _fit(self, prompt: list[int], more: int) -> None:
        if not prompt:
            raise ApiError(400, "an empty prompt has no answer", param="prompt")
        if len(prompt) + more > self._engine.card.context:
            wanted = f"{len(prompt)}, and {more} are to be made" if more > 1 else len(prompt)
            raise requests.too_long(wanted, self._engine.card)


class _Places:
    """Places that are given back however the request ends."""

    def __init__(self, answering: Answering, count: int) -> None:
        self._answering, self._count = answering, count

    def __enter__(self) -> None:
        self._began = time.monotonic()
        self._answering._take(self._count)

    def __exit__(self, *_: object) -> None:
        self._answering._give_back(self._count, time.monotonic() - self._began)


async def _stream(
    deltas: AsyncIterator[tuple[int, Delta]],
    reply: Reply,
    first_texts: list[str],
    usage: Usage | None,
    send: Send,
) -> None:
    """Server-sent events. Nothing is sent before the first delta; a failure after it is an event of its own."""
    choices = [Choice() for _ in first_texts]
    begun = [False] * len(choices)
    started = False
    try:
        async for index, delta in deltas:
            if not started:
                await send({"type": "http.response.start", "status": 200, "headers": _EVENTS})
                started = True
            choice = choices[index]
            choice.logprobs.extend(delta.logprobs)
            text = delta.text if begun[index] else first_texts[index] + delta.text
            if text or delta.finish or not begun[index]:
                event = reply.event(index, delta, text, choice, first=not begun[index])
                begun[index] = True
                await send({"type": "http.response.body", "body": event, "more_body": True})
    except Exception as error:
        if not started:
            raise
        log.exception("a stream broke")
        message = str(error) if isinstance(error, (Busy, Refused)) else "the engine failed"
        await send({"type": "http.response.body", "body": ApiError(500, message).event()})
        return
    last = (reply.usage_event(usage) if usage else b"") + replies.DONE
    await send({"type": "http.response.body", "body": last})


async def _counted(
    deltas: AsyncIterator[tuple[int, Delta]], usage: Usage
) -> AsyncIterator[tuple[int, Delta]]:
    async for index, delta in deltas:
        usage.completion += delta.tokens
        usage.cached += delta.cached_tokens
        yield index, delta


async def _without_lead(deltas: AsyncIterator[tuple[int, Delta]]) -> AsyncIterator[tuple[int, Delta]]:
    """Without the white space that some templates have a model write before its answer."""
    begun = set()
    async for index, delta in deltas:
        if index not in begun:
            delta = replace(delta, text=delta.text.lstrip())
            if delta.text:
                begun.add(index)
        yield index, delta


def _closable(stream: AsyncIterator[Delta]) -> AsyncGenerator[Delta, None]:
    """An engine's `generate` is an async generator, which its protocol cannot say."""
    assert isinstance(stream, AsyncGenerator)
    return stream


async def _send_whole(send: Send, body: bytes) -> None:
    headers = [*_JSON, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _body(receive: Receive) -> bytes:
    try:
        return await read_body(receive, MOST_BYTES, _BODY_S)
    except TooLarge:
        raise ApiError(413, f"a request has at most {MOST_BYTES} bytes") from None
    except TooSlow:
        raise ApiError(408, "the body did not arrive in time") from None


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
