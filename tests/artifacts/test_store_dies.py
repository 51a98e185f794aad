"""A store, or the machine that talks to it, may go away at any moment: what is found afterwards is whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.artifacts.runs import Disk, Observer, checkpoint
from tests.artifacts.stores import InterceptedStore, MemoryStore, Operation
from trainer.artifacts.fencing import claim
from trainer.artifacts.garbage import collect_garbage
from trainer.artifacts.local import LocalStore
from trainer.artifacts.manifest import fetch_verified
from trainer.artifacts.store import Store
from trainer.artifacts.validity import valid_manifests
from trainer.errors import StoreError

STEPS = (10, 20, 30)


@dataclass
class Dying:
    """Lets `lives` operations of a kind happen and refuses every operation after them."""

    counts: Callable[[Operation], bool]
    lives: int
    reply_arrives: bool = True
    seen: int = field(default=0)

    def __call__(self, operation: Operation) -> Any:
        if self.seen >= self.lives:
            raise StoreError(f"{operation.name} {operation.key}: the store is gone")
        self.seen += self.counts(operation)
        result = operation.happen()
        if self.seen == self.lives and not self.reply_arrives:
            raise StoreError(f"{operation.name} {operation.key}: the reply is lost")
        return result


def train(store: Store, disk: Disk, committed: list[int]) -> None:
    """Claim, then save three times and collect; notes every step whose commit returned."""
    lease = claim(store)
    lease.start(0, None)
    for step in STEPS:
        lease.commit(checkpoint(lease, disk, step))
        committed.append(step)
        collect_garbage(store, lease, keep_last=1, keep_every=0, grace_s=-1.0)


@pytest.fixture(params=["memory", "directory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else LocalStore(tmp_path / "store")


@pytest.mark.parametrize("reply_arrives", [True, False], ids=["after-the-reply", "before-the-reply"])
@pytest.mark.parametrize("kind", ["write", "operation"])
def test_after_the_store_died_at_any_point_the_next_attempt_resumes_from_a_whole_checkpoint(
    store: Store, tmp_path: Path, kind: str, reply_arrives: bool
) -> None:
    def counts(operation: Operation) -> bool:
        return operation.writes or kind == "operation"

    disk = Disk(tmp_path)
    lives = 0
    died = True
    while died:
        for entry in [*store.list()]:
            store.delete(entry.key)
        lives += 1
        committed: list[int] = []
        try:
            train(InterceptedStore(store, Dying(counts, lives, reply_arrives)), disk, committed)
            died = False
        except StoreError:
            pass
        _resumes_whole(store, tmp_path / "restored", committed)
    assert committed == list(STEPS)
    assert lives > 12  # it died in every phase: claim 1, start 1, and 2 blobs, 1 manifest, deletions per save


def _resumes_whole(store: Store, folder: Path, committed: list[int]) -> None:
    lease = claim(store)
    listed = [*lease.newest()]
    for manifest in listed:
        for file in manifest.files:
            fetch_verified(store, file, folder)
    newest = listed[0].step if listed else 0
    assert newest >= max(committed, default=0)
    lease.start(newest, listed[0].key if listed else None)
    Observer(store).check()
    assert [m.key for m in valid_manifests(store)] == [m.key for m in listed]
