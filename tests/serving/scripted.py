"""An engine that costs nothing and does what its prompt says, so that a test knows every token beforehand.

The last message is the script:
    count to 5        1 2 3 4 5, a token per number, then "stop"
    say TEXT          TEXT, a token per character
    seed              the seed it was given
    wait              one token, and no second one
    silence           no token at all
    fail, fail after 3   the engine raises, at once or after so many tokens
    break             the engine is of no use any more
    die, die after 3  the process kills itself, at once or after so many tokens
    busy, refuse      the engine's own refusals
Anything else is counted to 1000. A token of a prompt is a byte of its text.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator, Mapping

from serving.engine import Busy, Delta, Logprob, ModelCard, Refused, Sampling
from serving.engines import EngineOptions

CONTEXT = 8192


class Scripted:
    """serving.engine.Engine, without a model."""

    def __init__(self, options: EngineOptions) -> None:
        self._card = ModelCard(
            name=options.name,
            context=CONTEXT,
            adapters=tuple(options.adapters),
            abilities=frozenset(("logprobs", "json_schema", "embeddings", "tools")),
            places=options.max_running or 16,
        )
        self._running = 0
        self._healthy = True

    @property
    def card(self) -> ModelCard:
        return self._card

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        return list(text.encode())

    def encode_chat(
        self, messages: list[Mapping[str, object]], *, tools: list[Mapping[str, object]] | None = None
    ) -> list[int]:
        if messages[-1]["role"] == "assistant":
            raise Refused("the last message must not be the assistant's")
        lines = [f"{message['role']}: {message['content']}" for message in messages]
        return self.encode("\n".join([*([str(tools)] if tools else []), *lines]))

    async def generate(
        self, prompt: list[int], sampling: Sampling, *, adapter: str | None = None
    ) -> AsyncIterator[Delta]:
        if max(prompt) > 255:
            raise Refused("a token of a prompt is a byte here")
        script = bytes(prompt).decode(errors="replace").rpartition("user: ")[2]
        if script == "busy":
            raise Busy("no place left", retry_after_s=7)
        if script == "refuse":
            raise Refused("this engine does not do that")
        self._running += 1
        try:
            async for delta in self._play(script, sampling, adapter):
                yield delta
        finally:
            self._running -= 1

    async def _play(self, script: str, sampling: Sampling, adapter: str | None) -> AsyncIterator[Delta]:
        if script == "silence":
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        fatal = re.fullmatch(r"(fail|die|break)(?: after (\d+))?", script)
        steps = int(fatal[2] or 0) if fatal else -1
        made = ""
        most = sampling.max_tokens or CONTEXT
        for number, token in enumerate(_tokens(script, sampling, adapter)):
            if number == steps and fatal:
                self._end(fatal[1])
            if number == most:
                yield Delta("", 0, finish="length")
                return
            made += token
            cut = min((made.find(stop) for stop in sampling.stop if stop in made), default=-1)
            if cut >= 0:
                yield Delta(token[: max(0, len(token) - (len(made) - cut))], 1, finish="stop")
                return
            yield Delta(token, 1, logprobs=_logprobs(token, sampling.logprobs))
            await asyncio.sleep(0)
            if script == "wait":
                await asyncio.Event().wait()
        yield Delta("", 0, finish="stop")

    def _end(self, how: str) -> None:
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        self._healthy = how != "break"
        raise RuntimeError("as the script says")

    async def embed(self, prompts: list[list[int]]) -> list[list[float]]:
        return [[math.cos(sum(prompt)), math.sin(sum(prompt))] for prompt in prompts]

    def load(self) -> tuple[int, int]:
        return min(self._running, self._card.places), max(0, self._running - self._card.places)

    def healthy(self) -> bool:
        return self._healthy

    async def close(self) -> None:
        pass


def _tokens(script: str, sampling: Sampling, adapter: str | None) -> Iterator[str]:
    if script == "seed":
        yield str(sampling.seed)
    elif script == "adapter":
        yield str(adapter)
    elif script == "sampling":
        yield str(sampling)
    elif script.startswith("say "):
        yield from script[4:]
    else:
        counted = re.fullmatch(r"count to (\d+)", script)
        for number in range(int(counted[1]) if counted else 1000):
            yield f"{' ' if number else ''}{number + 1}"


def _logprobs(token: str, alternatives: int | None) -> tuple[Logprob, ...]:
    if alternatives is None:
        return ()
    likeliest = tuple(Logprob(f"{token}{n}", f"{token}{n}".encode(), -1.0 - n) for n in range(alternatives))
    return (Logprob(token, token.encode(), -0.5, likeliest),)


async def engine(options: EngineOptions) -> Scripted:
    return Scripted(options)
