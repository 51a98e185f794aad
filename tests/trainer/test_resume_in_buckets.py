"""Runs in S3 and GCS servers, killed, with faults on the way, and with a zombie. More of each in `make e2e`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.artifacts.conftest import gcs_server, proxies, s3_server
from tests.artifacts.fault_proxy import FaultProxy, Sometimes, Trouble
from tests.trainer.killing import Death
from tests.trainer.on_servers import Server
from tests.trainer.resuming import Whole, a_zombie_never_wins, is_killed_and_equals, meets_faults_and_equals
from tests.trainer.runs import write_corpus

__all__ = ["gcs_server", "proxies", "s3_server"]

# The first of each kind in a life: how many there are more depends on how fast the server is.
DEATHS = (
    Death("after", "epoch/"),
    Death("before", "blob/"),
    Death("before", "manifest/"),
    Death("after", "manifest/"),
    Death("after", "blob/"),
    Death("later", seconds=0.1),
    Death("after", "export/", 2),
)
QUICK_TROUBLES = (Trouble.BUSY, Trouble.TOO_MANY, Trouble.RESET_BEFORE, Trouble.LOST_REPLY, Trouble.CUT_REPLY)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    folder = tmp_path_factory.mktemp("whole")
    train = write_corpus(folder / "train.jsonl", 150)
    yield Whole(folder, (train, write_corpus(folder / "held-out.jsonl", 20, seed=1)), processes=2)


def test_a_run_in_s3_that_is_killed_equals_the_undisturbed_one(
    tmp_path: Path, whole: Whole, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_killed_and_equals(whole, Server.s3(s3_server), DEATHS, tmp_path, monkeypatch)


def test_a_run_in_gcs_that_is_killed_equals_the_undisturbed_one(
    tmp_path: Path, whole: Whole, gcs_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_killed_and_equals(whole, Server.gcs(gcs_server), DEATHS, tmp_path, monkeypatch)


def test_a_run_of_whose_requests_one_in_ten_fails_equals_the_undisturbed_one(
    tmp_path: Path,
    whole: Whole,
    s3_server: str,
    proxies: Callable[[str], FaultProxy],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proxy = proxies(s3_server)
    troubles = Sometimes(seed=1, share=0.1, troubles=QUICK_TROUBLES)
    meets_faults_and_equals(whole, Server.s3(s3_server), proxy, troubles, tmp_path, monkeypatch)
    assert proxy.troubles > 20


def test_a_zombie_that_wakes_up_after_its_successor_has_committed_never_wins(
    tmp_path: Path, whole: Whole, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_zombie_never_wins(whole, Server.s3(s3_server), tmp_path, monkeypatch)
