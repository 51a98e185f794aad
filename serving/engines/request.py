"""One request on its way through an engine: what was asked, what was made so far, and where its answer goes."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from serving.engine import Delta, Logprob, Sampling

if TYPE_CHECKING:
    from serving.engines.cache import KeyValues
    from serving.engines.schema import Follower
    from serving.engines.text import Writer

Finish = Literal["stop", "length"]


class Answer:
    """What the model's thread has made and the event loop has not fetched yet. Used on the loop only."""

    def __init__(self) -> None:
        self._deltas: list[Delta] = []
        self._error: Exception | None = None
        self._news = asyncio.Event()

    def put(self, news: Delta | Exception) -> None:
        if isinstance(news, Delta):
            self._deltas.append(news)
        else:
            self._error = news
        self._news.set()

    async def next(self) -> Delta:
        """All that has been made since the last call as one delta, so a slow reader costs no queue."""
        await self._news.wait()
        self._news.clear()
        if not self._deltas:
            assert self._error is not None
            raise self._error
        deltas, self._deltas = self._deltas, []
        if self._error is not None:
            self._news.set()
        if len(deltas) == 1:
            return deltas[0]
        return Delta(
            text="".join(delta.text for delta in deltas),
            tokens=sum(delta.tokens for delta in deltas),
            logprobs=tuple(logprob for delta in deltas for logprob in delta.logprobs),
            finish=deltas[-1].finish,
            cached_tokens=deltas[0].cached_tokens,
        )


@dataclass(slots=True, eq=False)
class Request:
    """Everything an engine knows about one request.

    tokens: the prompt, then what was made. Their first `kv.length` have keys and values.
    pending, told: tokens made since the last delta, and their logprobs.
    follower: keeps the answer to a JSON schema.
    pooled: for embeddings, the sum of the hidden states so far; such a request makes no token.
    """

    prompt: list[int]
    sampling: Sampling
    most: int
    kv: KeyValues
    writer: Writer
    answer: Answer
    adapter: str | None = None
    tokens: list[int] = field(default_factory=list)
    counts: dict[int, int] = field(default_factory=dict)
    draw: random.Random = field(default_factory=random.Random)
    ends: frozenset[int] = frozenset()
    arrived: float = field(default_factory=time.monotonic)
    cached_tokens: int = 0
    pending: int = 0
    told: list[Logprob] = field(default_factory=list)
    follower: Follower | None = None
    pooled: list[float] | None = None
    begun: bool = False
    cancelled: bool = False

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)
        if self.sampling.seed is not None:
            self.draw = random.Random(self.sampling.seed)

    @property
    def made(self) -> int:
        return len(self.tokens) - len(self.prompt)

    @property
    def left(self) -> int:
        """Tokens without keys and values; the last one's logits choose the next token."""
        return len(self.tokens) - self.kv.length
