"""One fault at the k-th request of an attempt that claims, restores, saves, commits and collects garbage.

What must hold afterwards, looked at without faults: every checkpoint that counts is whole, nothing that was called
durable is lost, and the run goes on from it. Two kinds of clients: one asks again until the store answers, so that
nothing may fail at all; the other never asks again, so that every trouble reaches the protocol itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tests.artifacts.fault_proxy import FaultProxy, Nth, Trouble, all_well
from tests.artifacts.runs import Attempt, Disk, Habits, Observer, begin, checkpoint
from tests.artifacts.stores import InterceptedStore, Operation
from trainer.artifacts.bucket import BucketStore
from trainer.artifacts.fencing import claim
from trainer.artifacts.patience import Patience
from trainer.artifacts.store import Store
from trainer.errors import Fenced, StoreError

PART = 8
"""Bytes: each file of these checkpoints goes in two parts."""

SILENT = (Trouble.BLACK_HOLE, Trouble.LATE_REPLY)


@dataclass
class Case:
    """The k-th request, counted from 1, of one attempt meets one trouble."""

    number: int
    trouble: Trouble
    persistent: bool
    happened: bool = field(default=False, init=False)
    durable: bool = field(default=False, init=False)

    @property
    def patience(self) -> Patience:
        # More than any answer of these servers takes; only where no answer ever comes.
        answer_s = 0.5 if self.trouble in SILENT else 10.0
        tries = 30 if self.persistent else 1
        return Patience(2.0, answer_s, tries, budget_s=0.0, first_wait_s=0.001, longest_wait_s=0.01)


def run(case: Case, store: BucketStore, proxy: FaultProxy, folder: Path) -> None:
    """`store` is an empty prefix behind the proxy, with the case's patience and small parts."""
    clean = without_faults(store, proxy)
    disk, observer = Disk(folder), Observer(clean)
    lease = begin(clean)
    for step in (10, 20):
        manifest = checkpoint(lease, disk, step)
        lease.commit(manifest)
        observer.believes_durable(manifest)
    attempt = Attempt(disk, observer, Habits(tries=1))

    proxy.plan = plan = Nth(case.number, case.trouble)
    life(attempt, watched(store, observer), 30)
    proxy.plan = all_well
    case.happened = len(plan.seen) >= case.number
    case.durable = any(manifest.step == 30 for manifest in observer.durable.values())
    observer.check()
    if case.persistent:
        assert case.durable, f"{case}: a client that asks again must not feel it"

    life(attempt, watched(store, observer), 40)
    assert any(manifest.step == 40 for manifest in observer.durable.values()), (
        f"{case}: the run did not go on"
    )
    observer.check()


def life(attempt: Attempt, store: Store, step: int) -> None:
    """Claim, restore the newest checkpoint, save once, collect. What fails is over, as when a machine dies."""
    try:
        lease = claim(store)
        parent = attempt.restore(store, lease.newest())
        lease.start(parent.step if parent else 0, parent.key if parent else None)
        attempt.save(store, lease, step, parent)
    except (Fenced, StoreError):
        return


def watched(store: Store, observer: Observer) -> Store:
    """The observer hears of every operation just before it happens."""

    def see(operation: Operation) -> object:
        observer.sees(operation)
        return operation.happen()

    return InterceptedStore(store, see)


def without_faults(store: Store, proxy: FaultProxy) -> Store:
    """The same store for a look in between: its requests are not counted and meet no trouble."""

    def calm(operation: Operation) -> object:
        planned, proxy.plan = proxy.plan, all_well
        try:
            return operation.happen()
        finally:
            proxy.plan = planned

    return InterceptedStore(store, calm)
