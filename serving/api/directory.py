"""The API's view of the workers, kept by asking the controller; and the end of requests whose worker is gone."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
from pydantic import ValidationError

from serving.api.metrics import Metrics
from serving.dispatch import Dispatcher
from serving.protocol import ANNOUNCE_S, DRAIN_PATH, TABLE_PATH, Announcement, Drain, Table
from serving.signing import HEADER, sign

log = logging.getLogger("api")

# Between two questions to a controller that does not answer.
_PAUSE_S = 0.2
_SETTLED_S = 3 * ANNOUNCE_S
_TIMEOUT = aiohttp.ClientTimeout(total=5.0)


class Directory:
    """Who could answer, as far as the controller has said."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        metrics: Metrics,
        session: aiohttp.ClientSession,
        controller: str,
        secret: bytes,
    ) -> None:
        self.dispatcher = dispatcher
        self._metrics = metrics
        self._session = session
        self._controller = controller
        self._secret = secret
        self._after = ""
        self._known: bool | None = None
        self._settled_at = float("inf")
        self.first_table = asyncio.Event()
        self._in_hand: defaultdict[str, set[asyncio.Timeout]] = defaultdict(set)

    async def follow(self) -> None:
        """Keeps the table fresh, for ever. A controller that is away changes nothing of it."""
        while True:
            try:
                table = Table.model_validate_json(await self._ask(f"{TABLE_PATH}?after={self._after}", b""))
                problem = ""
            except (aiohttp.ClientError, TimeoutError, OSError, ValidationError, DirectoryError) as error:
                problem = str(error) or type(error).__name__
                await asyncio.sleep(_PAUSE_S)
            else:
                self._after = f"{table.controller}-{table.version}"
                if not self.first_table.is_set():
                    self._settled_at = time.monotonic() + _SETTLED_S
                    self.first_table.set()
                self._let_go(self.dispatcher.update(table, time.monotonic()))
            if self._known is not (not problem):
                self._known = not problem
                self._metrics.controller_up.set(self._known)
                log.info("the controller answers" if self._known else f"the controller fails: {problem}")

    @property
    def settled(self) -> bool:
        """Whether every live worker has had the time to be in the table, also of a controller that began with us."""
        return time.monotonic() >= self._settled_at

    async def drain(self, url: str) -> None:
        """Raises DirectoryError where there is no such worker or no controller."""
        body = Drain(url=url).model_dump_json().encode()
        try:
            await self._ask(DRAIN_PATH, body)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise DirectoryError(503, f"the controller does not answer: {error}") from None

    @contextmanager
    def in_hand(self, worker: Announcement, scope: asyncio.Timeout) -> Iterator[None]:
        """While a worker has a request: `scope` ends as soon as the worker is known to be gone."""
        self.dispatcher.begin(worker)
        self._in_hand[worker.life].add(scope)
        try:
            yield
        finally:
            self.dispatcher.end(worker)
            scopes = self._in_hand[worker.life]
            scopes.discard(scope)
            if not scopes:
                del self._in_hand[worker.life]

    def _let_go(self, lives: list[str]) -> None:
        now = asyncio.get_running_loop().time()
        for life in lives:
            for scope in self._in_hand.get(life, ()):
                scope.reschedule(now)

    async def _ask(self, path: str, body: bytes) -> bytes:
        headers = {HEADER: sign(self._secret, "POST", path, body, time.time())}
        async with self._session.post(
            self._controller + path, data=body, headers=headers, timeout=_TIMEOUT, allow_redirects=False
        ) as reply:
            said = await reply.read()
            if reply.status != 200:
                raise DirectoryError(reply.status, said[:500].decode(errors="replace"))
            return said


class DirectoryError(Exception):
    """The controller refused."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status} {message}")
        self.status = status
