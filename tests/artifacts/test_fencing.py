"""Claims, starts and commits, one situation at a time. (All situations at once: test_protocol_machine.py.)"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.artifacts.runs import Attempt, Disk, Habits, Observer, begin, checkpoint, steps
from tests.artifacts.stores import Fate, MemoryStore, Operation, Writer
from trainer.artifacts.fencing import claim
from trainer.artifacts.garbage import collect_garbage
from trainer.artifacts.layout import epoch_start_key, manifest_key
from trainer.artifacts.manifest import FileEntry, Manifest, put_blob
from trainer.artifacts.store import Store
from trainer.artifacts.validity import is_valid, newest_epoch, start_records, starts, valid_manifests
from trainer.errors import CorruptObject, Fenced, StoreError


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def test_a_manifest_counts_unless_a_later_epoch_resumed_before_it() -> None:
    resumed = {1: 0, 2: 20, 4: 30}
    assert is_valid(20, 1, resumed) and not is_valid(21, 1, resumed)
    assert is_valid(30, 2, resumed) and not is_valid(31, 2, resumed)
    assert is_valid(30, 3, resumed) and is_valid(10**9, 4, resumed) and is_valid(10**9, 7, {})


def test_a_zombie_that_wakes_up_after_its_successor_started_is_fenced_and_does_not_count(
    store: MemoryStore, disk: Disk
) -> None:
    zombie = begin(store)
    for step in (10, 20):
        zombie.commit(checkpoint(zombie, disk, step))
    successor = begin(store)
    with pytest.raises(Fenced, match="epoch 2 has claimed this run, epoch 1 writes no more") as caught:
        zombie.commit(checkpoint(zombie, disk, 30))
    assert caught.value.hint
    late = checkpoint(zombie, disk, 30)
    store.put_new(late.key, late.encode())  # its request was already under way
    assert steps(store) == [20, 10]
    successor.commit(checkpoint(successor, disk, 30))
    assert [m.epoch for m in valid_manifests(store)] == [2, 1, 1]
    assert starts(store) == {1: 0, 2: 20} and newest_epoch(store) == 2


def test_a_claim_that_is_overtaken_before_its_start_is_void(store: MemoryStore) -> None:
    slow, fast = claim(store), claim(store)
    fast.start(0, None)
    with pytest.raises(Fenced):
        slow.start(0, None)
    assert start_records(store).keys() == {2}
    assert fast.held() and not slow.held()


def test_a_start_that_lost_its_reply_can_be_repeated_and_not_changed(store: MemoryStore) -> None:
    lease = claim(store)
    lease.start(0, None)
    lease.start(0, None)
    with pytest.raises(StoreError, match="says otherwise"):
        lease.start(10, manifest_key(10, 1))


def test_two_claims_at_the_same_moment_get_different_epochs(store: MemoryStore) -> None:
    got: list[int] = []
    racers = [Writer(store, lambda s: got.append(claim(s).epoch)) for _ in range(3)]
    for racer in racers:
        racer.run(until=lambda operation: operation.name == "put_new")
    for racer in racers:
        racer.run()
    assert sorted(got) == [1, 2, 3]


def test_a_manifest_that_lands_after_the_claim_is_seen_but_its_writer_does_not_call_it_durable(
    store: MemoryStore, disk: Disk
) -> None:
    observer = Observer(store)
    first = Writer(store, Attempt(disk, observer, Habits()))
    first.run(until=lambda operation: operation.key.startswith("manifest/") and operation.name == "put_new")
    found: list[Manifest] = []
    second = Writer(store, lambda s: found.extend(claim(s).newest()))
    second.run(until=lambda operation: operation.key == "manifest/")
    first.run()
    assert observer.durable == {}
    second.run()
    assert [manifest.step for manifest in found] == [10]


def test_a_fenced_attempt_does_not_even_put_its_manifest(store: MemoryStore, disk: Disk) -> None:
    lease = begin(store)
    manifest = checkpoint(lease, disk, 10)
    claim(store)
    with pytest.raises(Fenced):
        lease.commit(manifest)
    assert [*store.list("manifest/")] == []


def test_older_claims_are_settled_before_the_listing(store: MemoryStore) -> None:
    """Else one could start after the listing, and take back what the newer attempt builds on."""
    overtaken = Writer(store, lambda view: claim(view).start(0, None))
    overtaken.run(until=lambda operation: operation.key == epoch_start_key(1))
    newer = Writer(store, lambda view: claim(view).start(0, None))
    newer.run(until=lambda operation: operation.key == "manifest/")
    with pytest.raises(Fenced):
        overtaken.run()
    newer.run()
    assert start_records(store).keys() == {2}


def test_a_reader_that_is_slow_never_takes_what_a_zombie_wrote_meanwhile(
    store: MemoryStore, disk: Disk
) -> None:
    """The manifests are listed before the starts are: whatever happens in between can only invalidate."""
    zombie = begin(store)
    zombie.commit(checkpoint(zombie, disk, 10))
    late = checkpoint(zombie, disk, 20)
    found: list[Manifest] = []
    reader = Writer(store, lambda view: found.extend(valid_manifests(view)))
    reader.advance()
    reader.run(until=lambda operation: operation.name == "list")
    begin(store)
    store.put_new(late.key, late.encode())
    reader.run()
    assert [manifest.step for manifest in found] == [10] == steps(store)


def test_a_commit_whose_reply_was_lost_is_durable_when_repeated(store: MemoryStore, disk: Disk) -> None:
    lease = begin(store)
    manifest = checkpoint(lease, disk, 10)
    lease.commit(manifest)
    lease.commit(manifest)
    lease.commit(checkpoint(lease, disk, 10))  # made again: another nonce, the same files
    with pytest.raises(StoreError, match="with other files"):
        lease.commit(checkpoint(lease, disk, 10, samples=5))
    assert steps(store) == [10]


def test_a_commit_is_refused_when_a_blob_has_gone_meanwhile(store: MemoryStore, disk: Disk) -> None:
    lease = begin(store)
    manifest = checkpoint(lease, disk, 10)
    store.delete(manifest.files[1].key)
    with pytest.raises(StoreError, match=r"not complete: blob/.* \(state-10\) is gone"):
        lease.commit(manifest)
    assert steps(store) == []
    lease.commit(checkpoint(lease, disk, 10))
    assert steps(store) == [10]


def test_mistakes_of_the_caller_are_refused_before_anything_is_written(
    store: MemoryStore, disk: Disk
) -> None:
    begin(store).commit(checkpoint(begin(MemoryStore()), disk, 10, files=()))
    lease = claim(store)
    with pytest.raises(ValueError, match="before start"):
        lease.commit(checkpoint(lease, disk, 20))
    parent = next(lease.newest())
    lease.start(parent.step, parent.key)
    with pytest.raises(ValueError, match="not of epoch 2 from step 10 on"):
        lease.commit(checkpoint(lease, disk, 5))
    foreign = FileEntry(name="x", blob="0" * 64 + "-e00000001", size=1)
    with pytest.raises(ValueError, match="send it again"):
        lease.commit(checkpoint(lease, disk, 20, files=(foreign,)))
    assert steps(store) == [10]


def test_frozen_weights_are_sent_once_although_attempts_follow_one_another(
    store: MemoryStore, disk: Disk
) -> None:
    for step in (10, 20, 30):
        lease = begin(store)
        lease.commit(checkpoint(lease, disk, step))
    frozen = {manifest.files[0].blob for manifest in valid_manifests(store)}
    assert len(frozen) == 1 and len([*store.list("blob/")]) == 1 + 3


def test_an_attempt_that_fell_back_from_a_damaged_checkpoint_sends_everything_again(
    store: MemoryStore, disk: Disk
) -> None:
    lease = begin(store)
    for step in (10, 20):
        lease.commit(checkpoint(lease, disk, step))
    damaged = valid_manifests(store)[0].files[1]
    store.put(damaged.key, b"X" * damaged.size)
    after = claim(store)
    older = [*after.newest()][1]
    after.start(older.step, older.key)
    assert after.reusable == ()
    again = checkpoint(after, disk, 20)  # training is deterministic: the same bytes as the damaged file had
    after.commit(again)
    assert again.files[1].sha256 == damaged.sha256 and again.files[1].key != damaged.key
    assert valid_manifests(store)[0] == again


def test_damaged_and_incomplete_manifests_are_passed_over_and_named(store: MemoryStore, disk: Disk) -> None:
    lease = begin(store)
    for step in (10, 20, 30):
        lease.commit(checkpoint(lease, disk, step))
    store.put(manifest_key(30, 1), b"{}")
    store.delete(valid_manifests(store)[0].files[1].key)
    after = claim(store)
    assert [manifest.step for manifest in after.newest()] == [10]
    assert [key for key, _ in after.passed_over] == [manifest_key(30, 1), manifest_key(20, 1)]
    assert [m.step for m in valid_manifests(store)] == [10]


def test_an_unreadable_start_record_is_an_error_because_nothing_can_be_judged_without_it(
    store: MemoryStore, disk: Disk
) -> None:
    begin(store)
    store.put(epoch_start_key(1), b"\x00")
    with pytest.raises(CorruptObject, match="epoch/00000001.start is not readable"):
        valid_manifests(store)


def test_a_collector_that_was_suspended_cannot_hurt_its_successor(store: MemoryStore, disk: Disk) -> None:
    """The zombie stands before its deletions while the successor writes the same bytes again."""
    observer = Observer(store)
    collector = _stands_before_deleting(store, disk, observer, Habits())
    successor = begin(store)
    successor.commit(checkpoint(successor, disk, 40))
    collector.run()
    observer.check()
    assert valid_manifests(store)[0].step == 40


def test_under_their_bare_hash_the_same_blobs_would_be_lost(store: MemoryStore, disk: Disk) -> None:
    """Why checkpoint files carry their epoch: the situation above, with shared blobs, tears a checkpoint."""
    observer = Observer(store)
    collector = _stands_before_deleting(store, disk, observer, Habits(share_blobs=True))
    successor = begin(store)
    files = tuple(put_blob(store, path) for path in disk.files(40))
    successor.commit(checkpoint(successor, disk, 40, files=files))
    assert valid_manifests(store)[0].step == 40
    collector.run()
    assert valid_manifests(store)[0].step < 40


def _stands_before_deleting(store: MemoryStore, disk: Disk, observer: Observer, habits: Habits) -> Writer:
    """Epoch 1 died while it saved step 40, epoch 2 collects what is left of that, long after."""
    sent = [put_blob(store, path, epoch=None if habits.share_blobs else 1) for path in disk.files(40)]
    claim(store).start(0, None)
    store.now += habits.grace_s + 1
    collector = Writer(store, Attempt(disk, observer, habits), watch=observer.sees)
    collector.run(until=lambda operation: operation.name == "delete" and operation.key == sent[1].key)
    assert collector.alive
    return collector


def test_a_blob_whose_deletion_got_no_answer_is_never_counted_on_again(
    store: MemoryStore, disk: Disk
) -> None:
    under_way: list[Operation] = []
    problems: list[str] = []

    def program(view: Store) -> None:
        lease = begin(view)
        for step in (10, 20):
            lease.commit(checkpoint(lease, disk, step))
        with pytest.raises(StoreError):
            collect_garbage(lease.store, lease, 1, 0, -1.0)
        with pytest.raises(StoreError) as caught:
            lease.commit(
                checkpoint(lease, disk, 30, files=[put_blob(lease.store, disk.files(10)[1], epoch=1)])
            )
        problems.append(caught.value.message)

    writer = Writer(store, program, under_way)
    writer.run(until=lambda operation: operation.name == "delete" and operation.key.startswith("blob/"))
    writer.advance(Fate.IS_DELAYED)
    writer.run()
    assert "is being deleted" in problems[0] and len(under_way) == 1


class OneBitOnce(MemoryStore):
    """A service without checksums for replies: one bit of the first read is wrong."""

    def __init__(self, objects: dict[str, tuple[bytes, float]], bit: int) -> None:
        super().__init__()
        self.objects, self._bit = objects, bit

    def get(self, key: str) -> bytes:
        data = bytearray(super().get(key))
        if self._bit >= 0:
            data[self._bit // 8] ^= 1 << self._bit % 8
            self._bit = -1
        return bytes(data)


def test_no_bit_that_flips_while_a_start_is_read_changes_what_counts(store: MemoryStore, disk: Disk) -> None:
    lease = begin(store)
    lease.commit(checkpoint(lease, disk, 20))
    lease = begin(store)
    store.delete(epoch_start_key(1))  # so the first read is of the second start
    bits = 8 * len(store.get(epoch_start_key(2)))

    assert starts(store) == {2: 20}
    for bit in range(bits):
        assert starts(OneBitOnce(store.objects, bit)) == {2: 20}
