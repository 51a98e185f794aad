"""Which worker takes the next request: the API's half of the controller, pure.

The API has the controller's table and knows exactly what it has sent where, so choosing costs no call. The shortest
queue is the fewest requests per place: ours, plus those that the worker said it has from elsewhere. Between equals
the conversation decides (rendezvous hashing of its beginning), so that later turns find their keys and values reused.

When the controller is away, the last table goes on to count. When it is back after a restart, it does not know
everybody yet: whom it does not name is kept for as long as a worker may be silent.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from serving.protocol import EXPIRY_S, Announcement, Table

Policy = Literal["shortest-queue", "lottery"]

# A worker that could not be reached is passed over for so long, while another one can do the work.
_REST_S = 2.0


@dataclass(slots=True)
class Place:
    """One worker as the API sees it."""

    said: Announcement
    sent: int = 0
    """Requests of ours that are there now."""
    others: int = 0
    """Requests that it had from elsewhere when it last spoke."""
    rests_until: float = 0.0
    kept_until: float | None = None
    """Not confirmed by a restarted controller yet: out at this time."""

    @property
    def pressure(self) -> float:
        """Requests per place."""
        return (self.sent + self.others) / self.said.capacity


class Dispatcher:
    """The workers, and what was sent to each."""

    def __init__(
        self, policy: Policy = "shortest-queue", draw: random.Random | None = None, expiry_s: float = EXPIRY_S
    ) -> None:
        self._policy = policy
        self._draw = draw or random.Random()
        self._expiry_s = expiry_s
        self._places: dict[str, Place] = {}
        self._controller = ""
        self.version = -1

    def update(self, table: Table, now: float) -> list[str]:
        """Take over a table. Returns the lives that are lost with all they have in hand."""
        same = table.controller == self._controller
        named = {said.url for said in table.workers}
        out = [
            url for url, place in self._places.items() if url not in named and self._is_out(place, same, now)
        ]
        gone = [self._places.pop(url) for url in out]
        lost = [*table.silent, *(place.said.life for place in gone if place.kept_until is not None)]
        for said in table.workers:
            place = self._places.get(said.url)
            if place is None or place.said.life != said.life:
                self._places[said.url] = place = Place(said)
            place.said = said
            place.others = max(0, said.running + said.waiting - place.sent)
            place.kept_until = None
        self._controller, self.version = table.controller, table.version
        return lost

    def _is_out(self, place: Place, same_controller: bool, now: float) -> bool:
        if place.kept_until is not None:
            return now >= place.kept_until
        if same_controller:
            return True
        place.kept_until = now + self._expiry_s
        return False

    def choose(
        self, model: str, now: float, *, conversation: int = 0, tried: Collection[str] = ()
    ) -> Announcement | None:
        """The worker for a request, or None where nobody serves the model now. `tried`: lives that failed at it."""
        fit = [
            place
            for place in self._places.values()
            if place.said.state == "ready" and model in place.said.models and place.said.life not in tried
        ]
        fit = [place for place in fit if place.rests_until <= now] or fit
        if not fit:
            return None
        if self._policy == "lottery":
            (chosen,) = self._draw.choices(fit, [place.said.capacity for place in fit])
            return chosen.said
        least = min(place.pressure for place in fit)
        equals = [place for place in fit if place.pressure == least]
        return max(equals, key=lambda place: _affinity(conversation, place.said.url)).said

    def begin(self, worker: Announcement) -> None:
        """A request goes there. Every begin has exactly one end."""
        if place := self._place(worker):
            place.sent += 1

    def end(self, worker: Announcement) -> None:
        if place := self._place(worker):
            place.sent -= 1

    def rest(self, worker: Announcement, now: float) -> None:
        """It could not be reached: others first, for a while."""
        if place := self._place(worker):
            place.rests_until = now + _REST_S

    def models(self) -> dict[str, Announcement]:
        """Every model that somebody serves, with one of those who do."""
        return {name: place.said for place in self._places.values() for name in place.said.models}

    def places(self) -> Iterable[Place]:
        return self._places.values()

    def _place(self, worker: Announcement) -> Place | None:
        """None where another life has the worker's url by now."""
        place = self._places.get(worker.url)
        return place if place is not None and place.said.life == worker.life else None


def _affinity(conversation: int, url: str) -> int:
    return zlib.crc32(url.encode(), conversation)
