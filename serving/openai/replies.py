"""Answers in OpenAI's shape: whole, or as server-sent events. Bytes are made here once and never opened again.

An event is a fixed beginning and end around the text, so a token costs one escape and one join.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from serving.engine import Delta, Logprob

DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Usage:
    """Tokens of a request, counted once each."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0

    def dict(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


@dataclass(slots=True)
class Choice:
    """One answer as it grows."""

    text: list[str] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)
    finish: str | None = None
    length: int = 0
    """Characters so far, for the offsets of completions."""

    def add(self, delta: Delta) -> None:
        self.text.append(delta.text)
        self.logprobs.extend(delta.logprobs)
        self.finish = delta.finish


class Reply:
    """Formats the answer to one request. `chat` decides between the two shapes."""

    def __init__(
        self, *, id: str, created: int, model: str, chat: bool, logprobs: bool, with_usage: bool
    ) -> None:
        self._chat = chat
        self._logprobs = logprobs
        self._id = ("chatcmpl-" if chat else "cmpl-") + id
        self._head = {"created": created, "model": model}
        kind = "chat.completion.chunk" if chat else "text_completion"
        head = orjson.dumps({"id": self._id, "object": kind, **self._head})
        self._before = b"data: " + head[:-1]
        self._after = b',"usage":null}\n\n' if with_usage else b"}\n\n"

    def event(self, index: int, delta: Delta, text: str, so_far: Choice, *, first: bool) -> bytes:
        """One chunk; `so_far` has what of logprobs was not sent yet, and is emptied of it."""
        made = orjson.dumps(text)
        finish = b'"%s"' % delta.finish.encode() if delta.finish else b"null"
        if self._chat:
            role = b'"role":"assistant",' if first else b""
            inner = b'"delta":{%s"content":%s}' % (role, made)
        else:
            inner = b'"text":%s' % made
        logprobs = b"null"
        if self._logprobs and so_far.logprobs:
            logprobs = orjson.dumps(self._shaped(so_far.logprobs, so_far.length))
            so_far.logprobs.clear()
        so_far.length += len(text)
        return b'%s,"choices":[{"index":%d,%s,"logprobs":%s,"finish_reason":%s}]%s' % (
            self._before,
            index,
            inner,
            logprobs,
            finish,
            self._after,
        )

    def usage_event(self, usage: Usage) -> bytes:
        return b'%s,"choices":[],"usage":%s}\n\n' % (self._before, orjson.dumps(usage.dict()))

    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        kind = "chat.completion" if self._chat else "text_completion"
        made = [self._choice(index, choice) for index, choice in enumerate(choices)]
        return orjson.dumps(
            {"id": self._id, "object": kind, **self._head, "choices": made, "usage": usage.dict()}
        )

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        text = "".join(choice.text)
        said = (
            {"message": {"role": "assistant", "content": text, "refusal": None}}
            if self._chat
            else {"text": text}
        )
        shaped = self._shaped(choice.logprobs, 0) if self._logprobs else None
        return {"index": index, **said, "logprobs": shaped, "finish_reason": choice.finish}

    def _shaped(self, made: Sequence[Logprob], offset: int) -> dict[str, Any]:
        if self._chat:
            return {
                "content": [{**_one(token), "top_logprobs": [_one(t) for t in token.top]} for token in made]
            }
        offsets = []
        for token in made:
            offsets.append(offset)
            offset += len(token.token)
        return {
            "tokens": [token.token for token in made],
            "token_logprobs": [token.logprob for token in made],
            "top_logprobs": [{top.token: top.logprob for top in token.top} for token in made],
            "text_offset": offsets,
        }


def _one(token: Logprob) -> dict[str, Any]:
    return {"token": token.token, "logprob": token.logprob, "bytes": list(token.token_bytes)}


def embeddings(vectors: Sequence[Sequence[float]], *, model: str, tokens: int, packed: bool) -> bytes:
    """The whole answer; `packed`: base64 of little-endian float32, which OpenAI's client asks for by itself."""
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
            if packed
            else vector,
        }
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return orjson.dumps({"object": "list", "data": data, "model": model, "usage": usage})
