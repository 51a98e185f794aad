"""What each step computes: one token of every answer under way, and pieces of prompts beside them.

Pure: no model, no thread, no clock.

    arrives -> waiting -> running: its prompt in pieces, then a token a step -> finished
                  ^           |
                  +-----------+  preempted: the last that came in makes room when memory is full; its prompt and what it
                                 made are computed again later, its answer goes on where it was

A request is only let in where its whole prompt fits, the first that came in is never preempted, and none that could
not fit alone is accepted: so every accepted request ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from serving.engines.cache import Cache, KeyValues
from serving.engines.request import Request

# A step should not keep those who read an answer waiting longer: five tokens a second are still read as flowing.
_STALL_S = 0.2
# The first prompt that came in gets at least this share of a step; the rest goes to who needs least.
_FIRST_SHARE = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an engine takes on.

    Attributes:
        running: answers under way at a time.
        waiting: requests that may wait; more are told that the engine is busy.
        kv_tokens: tokens whose keys and values are held, of running and finished sequences together; None: as many
            as a share of the free memory holds.
        step_tokens: most prompt tokens of one step. Fewer are taken where a step would last longer than 0.2 s.
    """

    running: int = 64
    waiting: int = 256
    kv_tokens: int | None = None
    step_tokens: int = 2048


@dataclass(frozen=True, slots=True)
class Part:
    """The next tokens of a request. `chooses`: they are its last, so a token is chosen after them."""

    request: Request
    tokens: list[int]
    chooses: bool

    @classmethod
    def of(cls, request: Request, count: int) -> Part:
        start = request.kv.length
        return cls(request, request.tokens[start : start + count], count == request.left)


class Scheduler:
    """Requests that wait, those that run, and what to compute next."""

    def __init__(self, limits: Limits, cache: Cache) -> None:
        self._limits = limits
        self._cache = cache
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # in the order in which they came in
        self._prompt_tokens = min(256, limits.step_tokens)

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def step(self) -> list[Part]:
        """What to compute now; empty if there is nothing to do."""
        self._drop_cancelled()
        self._make_room()
        room = self._prompt_tokens
        self._admit(room)
        answering = [Part.of(request, 1) for request in self.running if request.left == 1]
        return answering + list(self._prompts(room))

    def took(self, parts: list[Part], seconds: float) -> None:
        """Learn from how long a step took how many prompt tokens fit into one."""
        tokens = sum(len(part.tokens) for part in parts if len(part.tokens) > 1)
        if tokens < 16 or tokens < len(parts):
            return
        fitting = int(tokens * _STALL_S / max(seconds, 1e-6))
        smoothed = (self._prompt_tokens + fitting) // 2
        self._prompt_tokens = max(16, min(smoothed, self._limits.step_tokens))

    def remove(self, request: Request) -> None:
        """A request is over; what it computed is kept for the next turn."""
        self.running.remove(request)
        self._cache.keep(request.tokens, request.adapter, request.kv)

    def everything(self) -> list[Request]:
        """Every request that is not over."""
        return [*self.running, *self.waiting]

    def _drop_cancelled(self) -> None:
        for request in [request for request in self.running if request.cancelled]:
            self.remove(request)
        if any(request.cancelled for request in self.waiting):
            self.waiting = deque(request for request in self.waiting if not request.cancelled)

    def _make_room(self) -> None:
        """Room for the next token of each running request, taken from those that came in last."""
        for request in list(self.running):
            while request in self.running and not self._cache.reserve(request.kv, len(request.tokens)):
                last = self.running.pop()
                self._cache.release(last.kv)
                if last.pooled is not None:
                    last.pooled = []
                self.waiting.appendleft(last)

    def _admit(self, room: int) -> None:
        """Let in whoever is next, as long as this step has prompt tokens to give; a long prompt counts by its share."""
        share = max(1, room // _FIRST_SHARE)
        asked = sum(min(request.left, share) for request in self.running if request.left > 1)
        while self.waiting and asked < room and len(self.running) < self._limits.running:
            request = self.waiting[0]
            kv = self._room(request)
            if kv is None:
                return
            self.waiting.popleft()
            request.kv = kv
            if not request.begun:
                request.cached_tokens = kv.length
            self.running.append(request)
            asked += min(request.left, share)

    def _room(self, request: Request) -> KeyValues | None:
        if request.pooled is not None:  # the hidden states of all its tokens are wanted
            return self._cache.fresh(len(request.tokens))
        others = ((other.tokens, other.adapter, other.kv) for other in self.running)
        return self._cache.begin(request.tokens, request.adapter, others)

    def _prompts(self, room: int) -> Iterator[Part]:
        """Pieces of prompts: a share for the first that came in, so that none starves, then the shortest first."""
        prompts = [request for request in self.running if request.left > 1]
        if not prompts:
            return
        first = prompts[0]
        share = min(first.left, max(1, room // _FIRST_SHARE))
        room -= share
        counts = {id(first): share}
        for request in sorted(prompts, key=lambda request: request.left - counts.get(id(request), 0)):
            more = min(room, request.left - counts.get(id(request), 0))
            counts[id(request)] = counts.get(id(request), 0) + more
            room -= more
        for request in prompts:
            if count := counts[id(request)]:
                yield Part.of(request, count)
