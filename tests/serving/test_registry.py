"""The controller's knowledge and the API's choice: pure, so every moment can be tried."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from pydantic import ValidationError

from serving.dispatch import Dispatcher
from serving.protocol import EXPIRY_S, Announcement, Table
from serving.registry import Registry


def said(number: int = 0, *, life: int = 0, **more: object) -> Announcement:
    given = {"born": float(life), "models": ("m",), "context": 100, "capacity": 4, **more}
    return Announcement.model_validate(
        {"url": f"http://10.0.0.{number}:21002", "life": f"{number:08x}{life:08x}", **given}
    )


def urls(registry: Registry) -> list[str]:
    return [worker.url for worker in registry.table().workers]


def test_the_example_of_the_docstring_is_what_happens() -> None:
    registry = Registry("c")
    versions = []
    for now, what in (
        (0.0, said(1)),
        (1.0, said(1, running=3)),
        (2.1, said(1, state="draining")),
        (2.9, said(1, state="gone")),
        (3.0, said(2)),
    ):
        registry.announce(what, now)
        versions.append(registry.version)
    assert versions == [1, 1, 2, 3, 4]
    assert registry.expire(8.0) == []
    assert registry.expire(8.1) == [said(2).url]
    assert registry.table().workers == () and registry.table().silent == (said(2).life,)


def test_a_drain_reaches_the_worker_with_its_next_announcement_and_no_other_worker() -> None:
    registry = Registry("c")
    assert not registry.drain(said(1).url)
    registry.announce(said(1), 0)
    registry.announce(said(2), 0)
    assert registry.drain(said(1).url)
    assert registry.announce(said(1), 1).drain
    assert not registry.announce(said(2), 1).drain
    assert not registry.announce(said(1, life=1), 2).drain, "a new life at the same address was not meant"


def test_the_younger_of_two_lives_at_one_address_is_believed() -> None:
    registry = Registry("c")
    registry.announce(said(1, life=1), 0)
    registry.announce(said(1, life=2), 1)
    assert registry.announce(said(1, life=1), 2).drain
    assert [worker.born for worker in registry.table().workers] == [2.0]


def test_a_worker_that_said_goodbye_does_not_come_back_by_an_old_message() -> None:
    registry = Registry("c")
    registry.announce(said(1, life=1), 0)
    registry.announce(said(1, life=1, state="gone"), 1)
    registry.announce(said(1, life=1), 1.1)
    assert urls(registry) == []
    registry.announce(said(1, life=2), 2)
    assert urls(registry) == [said(1).url]


@pytest.mark.parametrize(
    "url",
    [
        "http://h:1/path",
        "http://h:1?x",
        "http://user@h:1",
        "http://h",
        "file:///etc/passwd",
        "gopher://h:1",
        "http://h:1#x",
        "http://h h:1",
        "http://[::1:1",
        "http://h:99999",
        "//h:1",
        "",
    ],
)
def test_an_address_is_a_host_and_a_port_and_nothing_else(url: str) -> None:
    with pytest.raises(ValidationError):
        Announcement.model_validate({**said(1).model_dump(), "url": url})


def table(*workers: Announcement, controller: str = "c", version: int = 1) -> Table:
    return Table(controller=controller, version=version, workers=workers)


def test_the_shortest_queue_counts_what_was_sent_and_what_others_sent_per_place() -> None:
    dispatcher = Dispatcher()
    dispatcher.update(table(said(1, capacity=4), said(2, capacity=1), said(3, capacity=8, running=6)), 0)
    took = []
    for _ in range(7):
        worker = dispatcher.choose("m", 0)
        assert worker is not None
        dispatcher.begin(worker)
        took.append(worker.capacity)
    # 4 places, 1 place, and 2 of 8 that others left: all full after 7.
    assert sorted(took) == [1, 4, 4, 4, 4, 8, 8]


def test_a_conversation_stays_where_it_began_while_queues_are_equal() -> None:
    dispatcher = Dispatcher()
    dispatcher.update(table(*(said(n) for n in range(8))), 0)
    chosen = {turn: [dispatcher.choose("m", 0, conversation=turn) for _ in range(3)] for turn in range(50)}
    assert all(len(set(same)) == 1 for same in chosen.values())
    assert len({same[0] for same in chosen.values()}) > 4, "and different ones are spread"


def test_the_lottery_draws_by_places() -> None:
    dispatcher = Dispatcher("lottery", random.Random(0))
    dispatcher.update(table(said(1, capacity=1), said(2, capacity=9)), 0)
    drawn = [worker.capacity for _ in range(1000) if (worker := dispatcher.choose("m", 0))]
    assert 850 < drawn.count(9) < 950


def test_what_cannot_take_a_request_is_not_chosen() -> None:
    dispatcher = Dispatcher()
    dispatcher.update(table(said(1, state="draining"), said(2, models=("other",)), said(3)), 0)
    assert dispatcher.choose("m", 0) == said(3)
    assert dispatcher.choose("m", 0, tried={said(3).life}) is None
    assert dispatcher.choose("none", 0) is None


def test_a_worker_that_could_not_be_reached_rests_while_there_is_another() -> None:
    dispatcher = Dispatcher()
    dispatcher.update(table(said(1), said(2)), 0)
    dispatcher.rest(said(1), 0)
    assert {dispatcher.choose("m", 1, conversation=turn) for turn in range(20)} == {said(2)}
    assert dispatcher.choose("m", 1, tried={said(2).life}) == said(1)
    assert {dispatcher.choose("m", 3, conversation=turn) for turn in range(20)} == {said(1), said(2)}


def test_a_restarted_controller_takes_nobody_away_before_a_worker_may_be_silent() -> None:
    dispatcher = Dispatcher()
    dispatcher.update(table(said(1), said(2)), 0)
    assert dispatcher.update(table(said(2), controller="new"), 10) == []
    assert len(list(dispatcher.places())) == 2
    assert dispatcher.update(table(said(2), controller="new"), 10 + EXPIRY_S) == [said(1).life]
    assert len(list(dispatcher.places())) == 1


@dataclass
class Life:
    """A worker as it really is."""

    said: Announcement
    state: str = "ready"
    last_word: float = 0.0
    in_hand: list[Announcement] = field(default_factory=list)


class Service(RuleBasedStateMachine):
    """Workers, a controller that is killed and restarted, and two APIs; the clock moves by whole announcements."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.controllers = 0
        self.registry = Registry("c0")
        self.registry_up = True
        self.up_since = 0.0
        self.workers: dict[int, Life] = {}
        self.lives = 0
        self.apis = [Dispatcher(), Dispatcher("lottery", random.Random(1))]
        self.in_hand: list[tuple[Dispatcher, Announcement]] = []

    def tell(self, number: int, life: Life) -> None:
        life.said = life.said.model_copy(update={"state": life.state})
        if self.registry_up:
            orders = self.registry.announce(life.said, self.now)
            life.last_word = self.now
            if orders.drain and life.state == "ready":
                life.state = "draining"

    @rule(number=st.integers(0, 3))
    def start_or_restart(self, number: int) -> None:
        self.lives += 1
        self.workers[number] = Life(said(number, life=self.lives))
        self.tell(number, self.workers[number])

    @rule(number=st.integers(0, 3))
    def kill(self, number: int) -> None:
        self.workers.pop(number, None)

    @rule(number=st.integers(0, 3))
    def leave(self, number: int) -> None:
        if life := self.workers.pop(number, None):
            life.state = "gone"
            self.tell(number, life)

    @rule(number=st.integers(0, 3))
    def drain(self, number: int) -> None:
        if number in self.workers and self.registry_up:
            self.registry.drain(self.workers[number].said.url)

    @rule()
    def kill_controller(self) -> None:
        self.registry_up = False

    @rule()
    def restart_controller(self) -> None:
        if not self.registry_up:
            self.controllers += 1
            self.registry = Registry(f"c{self.controllers}")
            self.registry_up = True
            self.up_since = self.now

    @rule(seconds=st.integers(1, 7))
    def time_passes(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1.0
            for number, life in self.workers.items():
                self.tell(number, life)
            if self.registry_up:
                self.registry.expire(self.now)
            self.ask()

    @rule()
    def ask(self) -> None:
        if self.registry_up:
            for api in self.apis:
                api.update(self.registry.table(), self.now)

    @rule(which=st.integers(0, 1))
    def request(self, which: int) -> None:
        api = self.apis[which]
        if worker := api.choose("m", self.now):
            api.begin(worker)
            self.in_hand.append((api, worker))

    @rule(which=st.integers(0, 100))
    def answer(self, which: int) -> None:
        if self.in_hand:
            api, worker = self.in_hand.pop(which % len(self.in_hand))
            api.end(worker)

    @invariant()
    def an_api_never_chooses_who_was_known_to_drain(self) -> None:
        for api in self.apis:
            for place in api.places():
                chosen = api.choose("m", self.now)
                assert chosen is None or chosen.state == "ready"
                assert place.sent >= 0

    @invariant()
    def the_count_of_each_place_is_what_is_in_hand_there(self) -> None:
        for api in self.apis:
            for place in api.places():
                mine = [w for a, w in self.in_hand if a is api and w.life == place.said.life]
                assert place.sent == len(mine)

    @invariant()
    def a_steady_controller_knows_exactly_the_living(self) -> None:
        if self.registry_up and self.now - self.up_since > EXPIRY_S + 1:
            self.registry.expire(self.now)
            living = {life.said.life for life in self.workers.values()}
            known = {worker.life for worker in self.registry.table().workers}
            assert living <= known
            ghosts = [w for w in self.registry.table().workers if w.life not in living]
            for ghost in ghosts:  # they died within the last seconds
                assert self.registry._workers[ghost.url].at >= self.now - EXPIRY_S


TestService = Service.TestCase
TestService.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
