"""The commit protocol under every adversity at once, explored by hypothesis.

Several attempts of one run write to one store. Each stands still before every store operation; the machine
chooses who goes on, whose request is lost, delayed, repeated or delivered long after, who is killed, which
blob rots, and when time passes. After every choice the promises of trainer/artifacts/fencing.py are checked
on the bare store. The same machine, run over protocols with one rule broken, must find the break: else it
would be blind.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.artifacts.runs import LAST, Attempt, Disk, Habits, Observer, Violation
from tests.artifacts.stores import Fate, MemoryStore, Operation, Writer
from trainer.artifacts.fencing import Lease, claim
from trainer.artifacts.layout import BLOBS
from trainer.artifacts.local import LocalStore
from trainer.artifacts.manifest import Manifest
from trainer.artifacts.store import Store
from trainer.artifacts.validity import newest_epoch, valid_manifests

EXPLORE = settings(
    derandomize=True,  # the same choices every time: a failure in CI is a failure here
    database=None,
    deadline=None,
    max_examples=150,
    stateful_step_count=40,
    phases=[Phase.generate],  # add Phase.shrink by hand to have a failure made smaller: it takes minutes
    suppress_health_check=list(HealthCheck),
)
FIND = settings(EXPLORE, max_examples=3000)  # stops at the first violation

FAULTS = [fate for fate in Fate if fate not in (Fate.HAPPENS, Fate.IS_THE_END)]
# Just before a claim or a start, a commit, the look at the claims, a deletion: where an attempt that stands
# still for long does the most harm.
PLACES = ["put_new epoch/", "put_new manifest/", "list epoch/", "delete manifest/", "delete blob/"]
AT_ONCE = 3  # attempts alive at the same time; a fourth adds choices, not kinds of conflict

some = st.integers(0, 11)  # one of a list, whatever its length


class Protocol(RuleBasedStateMachine):
    """Attempts that keep the protocol, over the in-memory store."""

    habits = Habits()
    rots = True

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.disk = Disk(Path(self.folder.name))
        self.store = self.make_store()
        self.observer = Observer(self.store)
        self.network: list[Operation] = []
        self.writers: list[Writer] = []

    def make_store(self) -> Store:
        return MemoryStore()

    @property
    def alive(self) -> list[Writer]:
        return [writer for writer in self.writers if writer.alive]

    @precondition(lambda self: len(self.alive) < AT_ONCE)
    @rule()
    def an_attempt_begins(self) -> None:
        self.writers.append(self.begin(self.habits))

    @precondition(lambda self: self.alive)
    @rule(which=some, operations=st.integers(1, 60))
    def one_goes_on(self, which: int, operations: int) -> None:
        writer = self.pick(which)
        for _ in range(operations):
            if writer.pending:
                writer.advance()

    @precondition(lambda self: self.alive)
    @rule(which=some, place=st.sampled_from(PLACES))
    def one_goes_on_to_a_decisive_place(self, which: int, place: str) -> None:
        writer = self.pick(which)
        writer.advance()
        writer.run(until=lambda operation: f"{operation.name} {operation.key}".startswith(place))

    @precondition(lambda self: self.alive)
    @rule(which=some, fate=st.sampled_from(FAULTS))
    def a_write_meets_a_fault(self, which: int, fate: Fate) -> None:
        writer = self.pick(which)
        while writer.pending and not writer.pending.writes:
            writer.advance()
        if writer.pending:
            writer.advance(fate)

    @precondition(lambda self: self.alive)
    @rule(which=some)
    def a_read_fails(self, which: int) -> None:
        self.pick(which).advance(Fate.IS_LOST)

    @precondition(lambda self: self.alive)
    @rule(which=some)
    def one_is_killed(self, which: int) -> None:
        self.pick(which).kill()

    @precondition(lambda self: self.network)
    @rule(which=some)
    def a_late_request_arrives(self, which: int) -> None:
        self.network.pop(which % len(self.network)).happen()

    @rule(seconds=st.sampled_from([10.0, 1000.0]))
    def time_passes(self, seconds: float) -> None:
        if isinstance(self.store, MemoryStore):
            self.store.now += seconds

    @precondition(lambda self: self.rots and self.sound_blobs())
    @rule(which=some)
    def a_blob_rots(self, which: int) -> None:
        blobs = self.sound_blobs()
        key = blobs[which % len(blobs)]
        data = self.store.get(key)
        self.store.put(key, bytes([data[0] ^ 1]) + data[1:])
        self.observer.damaged[key] = newest_epoch(self.store)

    def sound_blobs(self) -> list[str]:
        return [entry.key for entry in self.store.list(BLOBS) if entry.key not in self.observer.damaged]

    @invariant()
    def every_promise_holds(self) -> None:
        self.observer.check()

    def teardown(self) -> None:
        try:
            for writer in self.writers:
                writer.kill()
            self.every_promise_holds()
            self.the_run_can_still_be_finished()
        finally:
            self.folder.cleanup()

    def the_run_can_still_be_finished(self) -> None:
        self.begin(Habits()).run()
        self.every_promise_holds()
        newest = valid_manifests(self.store)[0]
        if newest.step != LAST:
            raise Violation(f"an undisturbed attempt got no further than {newest.key}")

    def pick(self, which: int) -> Writer:
        return self.alive[which % len(self.alive)]

    def begin(self, habits: Habits) -> Writer:
        attempt = Attempt(self.disk, self.observer, habits)
        return Writer(self.store, attempt, self.network, self.observer.sees)


class WithoutRot(Protocol):
    """Nothing rots, so nothing durable may be lost for any reason; more checkpoints are kept."""

    habits = Habits(keep_last=2, keep_every=20)
    rots = False


class OnDisk(Protocol):
    """The same over the directory store; its clock is the file system's, so nothing outlives the grace."""

    habits = Habits(grace_s=-1.0)

    def make_store(self) -> Store:
        return LocalStore(Path(self.folder.name) / "store")


def test_the_protocol_keeps_its_promises_under_crashes_zombies_lost_replies_late_requests_and_rot() -> None:
    run_state_machine_as_test(Protocol, settings=EXPLORE)


def test_without_rot_nothing_durable_is_ever_lost() -> None:
    run_state_machine_as_test(WithoutRot, settings=EXPLORE)


def test_the_protocol_keeps_its_promises_on_a_directory() -> None:
    run_state_machine_as_test(OnDisk, settings=settings(EXPLORE, max_examples=25))


def claims_after_listing(store: Store) -> tuple[Lease, list[Manifest] | None]:
    """The gap: a checkpoint that becomes durable between the listing and the claim is overlooked."""
    listed = valid_manifests(store)
    return claim(store), listed


def commits_without_a_second_look(lease: Lease, manifest: Manifest) -> None:
    """The claim is checked before the manifest is put, and not after it."""
    lease.refuse_if_lost()
    lease.store.put_new(manifest.key, manifest.encode())


def commits_without_looking(lease: Lease, manifest: Manifest) -> None:
    """A zombie that never asks who owns the run."""
    lease.store.put_new(manifest.key, manifest.encode())


BROKEN = {
    "listing before the claim": (Habits(take_over=claims_after_listing), False, "not valid any more"),
    "no check after the manifest": (
        Habits(commit=commits_without_a_second_look),
        False,
        "after a newer claim",
    ),
    "no check at all": (Habits(commit=commits_without_looking), False, "after a newer claim"),
    "blobs under their bare hash": (Habits(share_blobs=True), True, "which was damaged before"),
}


@pytest.mark.parametrize("flaw", BROKEN)
def test_the_machine_finds_what_is_wrong_with_a_broken_protocol(flaw: str) -> None:
    broken, rot, said = BROKEN[flaw]

    class Broken(Protocol):
        habits = broken
        rots = rot

    with pytest.raises(Violation, match=said):
        run_state_machine_as_test(Broken, settings=FIND)
