"""Watching a run whose store is away for a while: the run goes on, and so does the watching."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from launcher.clouds.local import LocalCloud
from launcher.clouds.local_keeper import LOCK
from launcher.render import run_uri
from launcher.runs.follow import follow
from tests.artifacts import servers
from tests.artifacts.conftest import KEY_ID, SECRET, proxies, s3_server
from tests.artifacts.fault_proxy import Answer, FaultProxy, Request
from trainer.artifacts.journal import Journal
from trainer.artifacts.store import open_store
from trainer.errors import StoreError, StoreRefused

__all__ = ["proxies", "s3_server"]

STORE, RUN = f"s3://{servers.BUCKET}/watched", "tiny"
BROKEN = Answer(418, "<Error><Code>Teapot</Code></Error>")  # no code that is asked again
EXPIRED = Answer(400, "<Error><Code>ExpiredToken</Code></Error>")


@pytest.fixture
def proxy(
    s3_server: str, proxies: Callable[[str], FaultProxy], monkeypatch: pytest.MonkeyPatch
) -> FaultProxy:
    """Before a store with a run in it."""
    found = proxies(s3_server)
    for name, value in {
        "AWS_ENDPOINT_URL": found.url,
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    store = open_store(run_uri(STORE, RUN))
    Journal(store, 1, "box").record("started", epoch=1, resumed_from=0)
    return found


@pytest.fixture
def keeper() -> Iterator[ExitStack]:
    """As long as it is open, the run is looked after."""
    home = LocalCloud().home(run_uri(STORE, RUN))
    home.mkdir(parents=True)
    with ExitStack() as held:
        lock = held.enter_context((home / LOCK).open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield held


class Outage:
    """`answer` to the requests `first` to `last`; soon after, or with the first of them, the run ends."""

    def __init__(self, answer: Answer, first: int, last: int, ends: int, keeper: ExitStack) -> None:
        self._answer, self._first, self._last, self._ends, self._keeper = answer, first, last, ends, keeper
        self._seen = 0

    def __call__(self, request: Request) -> Answer | None:
        self._seen += 1
        if self._seen == self._ends:
            self._keeper.close()
        return self._answer if self._first <= self._seen <= self._last else None


def test_an_outage_is_told_once_and_its_end_too(
    proxy: FaultProxy, keeper: ExitStack, capsys: pytest.CaptureFixture[str]
) -> None:
    proxy.plan = Outage(BROKEN, 12, 14, 30, keeper)
    follow(STORE, RUN)

    told = [line for line in capsys.readouterr().err.splitlines() if "store" in line or "cannot" in line]
    assert len(told) == 2
    assert told[0].startswith("the run goes on, but cannot be seen: ") and "418 Teapot" in told[0]
    assert told[1] == "the store answers again"


def test_credentials_that_end_while_a_run_is_watched_are_told_with_how_to_watch_on(
    proxy: FaultProxy, keeper: ExitStack
) -> None:
    proxy.plan = Outage(EXPIRED, 12, 1000, 2000, keeper)
    with pytest.raises(StoreRefused, match="the credentials have expired") as raised:
        follow(STORE, RUN)
    assert raised.value.hint is not None
    assert raised.value.hint.endswith(f"; the run goes on, and vlaunch logs -f {RUN} follows it")


def test_where_nobody_looks_after_the_run_an_outage_is_an_error(proxy: FaultProxy, keeper: ExitStack) -> None:
    proxy.plan = Outage(BROKEN, 12, 1000, 12, keeper)
    with pytest.raises(StoreError, match="418 Teapot"):
        follow(STORE, RUN)
