"""What a run in a bucket must survive: kills, faults on the way, and a forerunner that wakes up too late."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.artifacts.fault_proxy import FaultProxy, Plan
from tests.trainer.killing import LONGEST_LIFE_S, Death, begin, kill_group, live, thaw, wait_until_frozen
from tests.trainer.on_servers import Server, exported_hashes
from tests.trainer.runs import create_run
from tests.trainer.test_exact_resume import numbers
from trainer.artifacts.journal import read_journal
from trainer.artifacts.local import LocalStore
from trainer.artifacts.store import open_store
from trainer.artifacts.validity import valid_manifests


class Whole:
    """The run that nobody disturbs, in a folder; others are compared with it."""

    def __init__(self, folder: Path, corpus: tuple[Path, Path], processes: int) -> None:
        self.corpus, self.processes = corpus, processes
        uri = folder / f"runs/whole-{processes}"
        create_run(str(uri), *corpus, parallel__processes=processes)
        assert not live(str(uri), folder / f"work-{processes}", Death("never"))
        self.numbers, self.exported = numbers(str(uri)), exported_hashes(LocalStore(uri))

    def in_bucket(self, server: Server, patch: pytest.MonkeyPatch) -> str:
        """The same run in a bucket, not begun."""
        for name, value in server.environment.items():
            patch.setenv(name, value)
        run = server.new_run()
        create_run(run, *self.corpus, parallel__processes=self.processes)
        return run

    def equals(self, run: str) -> None:
        assert numbers(run) == self.numbers
        assert exported_hashes(open_store(run)) == self.exported


def is_killed_and_equals(
    whole: Whole, server: Server, deaths: Sequence[Death], folder: Path, patch: pytest.MonkeyPatch
) -> None:
    run = whole.in_bucket(server, patch)
    killed = sum(
        live(run, folder / f"work-{number}", death, environment=server.environment)
        for number, death in enumerate([*deaths, Death("never")])
    )
    assert killed == len(deaths)
    whole.equals(run)


def meets_faults_and_equals(
    whole: Whole, server: Server, proxy: FaultProxy, plan: Plan, folder: Path, patch: pytest.MonkeyPatch
) -> None:
    """All of its requests go through the proxy; the machine is lost once in between."""
    run = whole.in_bucket(server, patch)
    behind = server.behind(proxy.url)
    proxy.plan = plan
    assert live(run, folder / "work-1", Death("after", "manifest/", 2), environment=behind.environment)
    assert not live(run, folder / "work-2", Death("never"), environment=behind.environment)
    whole.equals(run)


def a_zombie_never_wins(whole: Whole, server: Server, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """An attempt is stopped between its check of the claim and the PUT of its manifest. Its successor commits
    beyond that step; then it wakes up and puts its manifest."""
    run = whole.in_bucket(server, patch)
    zombie = begin(run, folder / "zombie", Death("frozen", "manifest/", 2), environment=server.environment)
    try:
        wait_until_frozen(zombie, folder / "zombie")
        assert live(run, folder / "heir", Death("after", "manifest/"), environment=server.environment)
        before = {manifest.key for manifest in valid_manifests(open_store(run))}
        thaw(zombie)
        zombie.join(LONGEST_LIFE_S)
        assert zombie.exitcode == 1, "it was fenced"
    finally:
        kill_group(zombie.pid)
    after = valid_manifests(open_store(run))
    assert {manifest.key for manifest in after} == before
    assert after[0].epoch == 2
    assert [event.attempt for event in read_journal(open_store(run)) if event.kind == "fenced"] == [1]
    assert not live(run, folder / "last", Death("never"), environment=server.environment)
    whole.equals(run)
