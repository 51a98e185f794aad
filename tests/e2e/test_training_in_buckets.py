"""The kill tests of tests/trainer/test_exact_resume.py against all three servers, with faults, and with zombies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.artifacts.fault_proxy import FaultProxy, Sometimes, Trouble
from tests.trainer.killing import Death
from tests.trainer.on_servers import Server
from tests.trainer.resuming import Whole, a_zombie_never_wins, is_killed_and_equals, meets_faults_and_equals
from tests.trainer.runs import write_corpus
from tests.trainer.test_exact_resume import deaths

# Bits flipped in a reply are found by our hash, and a reply that never comes by the time-out of a request.
TROUBLES = [trouble for trouble in Trouble if trouble not in (Trouble.BLACK_HOLE, Trouble.LATE_REPLY)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("corpus")
    return write_corpus(folder / "train.jsonl", 150), write_corpus(folder / "held-out.jsonl", 20, seed=1)


@pytest.fixture(scope="module", params=[1, 2], ids=["alone", "pair"])
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, corpus: tuple[Path, Path]
) -> Iterator[Whole]:
    yield Whole(tmp_path_factory.mktemp("whole"), corpus, request.param)


def first_of_each(seed: int) -> list[Death]:
    """As drawn, but each at its first time in a life: how many there are more depends on how fast a server is."""
    return [Death(death.when, death.key, 1, death.seconds) for death in deaths(seed)]


def test_a_run_that_is_killed_equals_the_undisturbed_one(
    tmp_path: Path, whole: Whole, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_killed_and_equals(whole, server, first_of_each(whole.processes), tmp_path, monkeypatch)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_of_whose_requests_one_in_eight_fails_equals_the_undisturbed_one(
    tmp_path: Path,
    whole: Whole,
    server: Server,
    proxies: Callable[[str], FaultProxy],
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    variable = "AWS_ENDPOINT_URL" if server.name == "s3" else "STORAGE_EMULATOR_HOST"
    proxy = proxies(server.environment[variable])
    plan = Sometimes(seed, 0.125, TROUBLES)
    meets_faults_and_equals(whole, server, proxy, plan, tmp_path, monkeypatch)
    print(f"{proxy.troubles} troubles in {len(proxy.requests)} requests")
    assert proxy.troubles > 20


def test_a_zombie_that_wakes_up_after_its_successor_has_committed_never_wins(
    tmp_path: Path, whole: Whole, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_zombie_never_wins(whole, server, tmp_path, monkeypatch)
