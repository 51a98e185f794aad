"""Who is there: the controller's knowledge, pure. Time comes in as an argument, nothing goes out but values.

By example, with an expiry of 5 s:
    0.0 A announces ready         the table has A                    version 1
    1.0 A announces, 3 running    the same, with its load            version 1
    2.0 an operator drains A      A's next announcement is answered "drain"
    2.1 A announces draining      the table says so: no new requests version 2
    2.9 A announces gone          the table is empty                 version 3
    3.0 B announces, is killed    the table has B                    version 4
    8.0 B was silent for 5 s      the table is empty                 version 5
"""

from __future__ import annotations

from dataclasses import dataclass

from serving.protocol import EXPIRY_S, Announcement, Orders, Table

# An API that did not ask for so long has lost more than this news.
_TOLD_S = 60.0


@dataclass(slots=True)
class _Seen:
    said: Announcement
    at: float


class Registry:
    """The live workers of a service."""

    def __init__(self, controller: str, expiry_s: float = EXPIRY_S) -> None:
        self.controller = controller
        self._expiry_s = expiry_s
        self._workers: dict[str, _Seen] = {}
        self._left: dict[
            str, float
        ] = {}  # birth of the youngest life that said "gone", by url: none older comes back
        self._drained: set[tuple[str, str]] = set()
        self._silent: dict[str, float] = {}
        self._version = 0

    @property
    def version(self) -> int:
        return self._version

    def announce(self, said: Announcement, now: float) -> Orders:
        """Believe what a worker says of itself, unless a younger life at the same url has spoken."""
        known = self._workers.get(said.url)
        if known and known.said.life != said.life and known.said.born >= said.born:
            return Orders(drain=True)  # somebody else has its address: it cannot be reached there any more
        if said.born <= self._left.get(said.url, -1.0):
            return Orders(drain=True)
        if said.state == "gone":
            self._left[said.url] = said.born
            self._forget(said.url)
            return Orders(drain=True)
        if known is None or _standing(known.said) != _standing(said):
            self._version += 1
        self._workers[said.url] = _Seen(said, now)
        return Orders(drain=(said.url, said.life) in self._drained)

    def drain(self, url: str) -> bool:
        """From its next announcement on, tell the worker at `url` to take no new requests. False: there is none."""
        known = self._workers.get(url)
        if known is not None:
            self._drained.add((url, known.said.life))
        return known is not None

    def expire(self, now: float) -> list[str]:
        """Forget workers that were silent for too long; their urls."""
        silent = [url for url, seen in self._workers.items() if now - seen.at > self._expiry_s]
        for url in silent:
            self._silent[self._workers[url].said.life] = now
            self._forget(url)
        self._silent = {life: at for life, at in self._silent.items() if now - at <= _TOLD_S}
        return silent

    def table(self) -> Table:
        workers = tuple(seen.said for _, seen in sorted(self._workers.items()))
        return Table(
            controller=self.controller,
            version=self._version,
            workers=workers,
            silent=tuple(life for life in self._silent if life not in {said.life for said in workers}),
        )

    def _forget(self, url: str) -> None:
        seen = self._workers.pop(url, None)
        if seen is not None:
            self._drained.discard((url, seen.said.life))
            self._version += 1


def _standing(said: Announcement) -> tuple[object, ...]:
    """What of an announcement changes the table's version: not the load."""
    return said.life, said.models, said.context, said.abilities, said.capacity, said.state
