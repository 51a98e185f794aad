"""What a collection deletes, and what it must leave alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.artifacts.runs import Disk, begin, checkpoint, steps
from tests.artifacts.stores import InterceptedStore, MemoryStore, Operation
from trainer.artifacts.fencing import Lease, claim
from trainer.artifacts.garbage import collect_garbage
from trainer.artifacts.layout import CONFIG, EXPORT_MANIFEST, cache_key, manifest_key
from trainer.artifacts.local import LocalStore
from trainer.artifacts.manifest import put_blob
from trainer.artifacts.validity import valid_manifests
from trainer.errors import Fenced


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def saved(store: MemoryStore, disk: Disk, *wanted: int) -> Lease:
    lease = begin(store)
    for step in wanted:
        lease.commit(checkpoint(lease, disk, step))
    return lease


def test_the_newest_and_every_kth_checkpoint_stay_with_all_their_blobs(
    store: MemoryStore, disk: Disk
) -> None:
    lease = saved(store, disk, *range(10, 80, 10))
    report = collect_garbage(store, lease, keep_last=2, keep_every=30, grace_s=-1.0)
    assert steps(store) == [70, 60, 30]
    assert report.kept == (manifest_key(70, 1), manifest_key(60, 1), manifest_key(30, 1))
    assert report.manifests == tuple(manifest_key(step, 1) for step in (10, 20, 40, 50))
    assert report.blobs == 4 and report.bytes == 4 * 10
    named = {file.key for manifest in valid_manifests(store) for file in manifest.files}
    assert {entry.key for entry in store.list("blob/")} == named


def test_all_checkpoints_go_where_none_is_to_be_kept(store: MemoryStore, disk: Disk) -> None:
    lease = saved(store, disk, 10, 20, 30)
    assert collect_garbage(store, lease, keep_last=0, keep_every=20, grace_s=-1.0).blobs == 2
    assert steps(store) == [20]
    assert collect_garbage(store, lease, keep_last=0, keep_every=0, grace_s=-1.0).manifests
    assert steps(store) == [] and not [*store.list("blob/")]


def test_the_best_checkpoint_stays_however_old_it_is(store: MemoryStore, disk: Disk) -> None:
    lease = saved(store, disk, 10, 20, 30, 40)
    report = collect_garbage(store, lease, keep_last=1, keep_every=0, grace_s=-1.0, best=20)
    assert steps(store) == [40, 20] and report.blobs == 2


def test_manifests_go_before_their_blobs(store: MemoryStore, disk: Disk) -> None:
    lease = saved(store, disk, 10, 20, 30)
    deleted = []

    def note(operation: Operation) -> object:
        if operation.name == "delete":
            deleted.append(operation.key.partition("/")[0])
        return operation.happen()

    collect_garbage(InterceptedStore(store, note), lease, 1, 0, -1.0)
    assert deleted == ["manifest"] * 2 + ["blob"] * 2


def test_what_zombies_wrote_beyond_their_successor_goes_too(store: MemoryStore, disk: Disk) -> None:
    saved(store, disk, 10)
    zombie, lease = begin(store), begin(store)
    late = checkpoint(zombie, disk, 20)
    store.put_new(late.key, late.encode())
    report = collect_garbage(store, lease, 5, 0, -1.0)
    assert report.manifests == (late.key,) and steps(store) == [10]


def test_a_shared_blob_that_nothing_names_yet_stays_for_the_grace_by_the_clock_of_the_store(
    store: MemoryStore, disk: Disk
) -> None:
    lease = begin(store)
    store.now = 5.0  # whatever this machine's clock says
    put_blob(store, disk.files(10)[0])
    store.now += 60
    put_blob(store, disk.files(10)[1])
    assert collect_garbage(store, lease, 1, 0, grace_s=100).blobs == 0
    store.now += 60
    put_blob(store, disk.files(20)[1])
    assert collect_garbage(store, lease, 1, 0, grace_s=100).blobs == 1


def test_files_of_a_save_that_failed_go_at_once(store: MemoryStore, disk: Disk) -> None:
    """Or a store that is full would never have space again."""
    lease = saved(store, disk, 10)
    put_blob(store, disk.files(20)[1], epoch=1)
    assert collect_garbage(store, lease, 1, 0, grace_s=3600).blobs == 1
    assert steps(store) == [10]


def test_blobs_that_the_config_a_cache_or_the_export_names_are_never_collected(
    store: MemoryStore, disk: Disk
) -> None:
    lease = begin(store)
    blobs = [put_blob(store, disk.files(step)[1]) for step in (10, 20, 30, 40)]
    store.put_new(CONFIG, b'{"data": [{"name": "a.jsonl", "blob": "%s"}]}' % blobs[0].blob.encode())
    store.put_new(cache_key("tokens"), b'{"files": ["%s"]}' % blobs[1].blob.encode())
    store.put(EXPORT_MANIFEST, b'{"model.safetensors": "%s"}' % blobs[2].sha256.encode())
    assert collect_garbage(store, lease, 1, 0, -1.0).blobs == 1
    assert [store.size(file.key) for file in blobs] == [10, 10, 10, None]


def test_only_the_holder_of_the_run_may_collect(store: MemoryStore, disk: Disk) -> None:
    lease = saved(store, disk, 10, 20)
    claim(store)
    with pytest.raises(Fenced):
        collect_garbage(store, lease, 1, 0, -1.0)
    assert steps(store) == [20, 10]
    with pytest.raises(ValueError, match="keep_last=-1"):
        collect_garbage(store, lease, -1, 0, -1.0)


def test_a_newest_checkpoint_that_cannot_be_read_is_not_taken_for_garbage(
    store: MemoryStore, disk: Disk
) -> None:
    """One bit that flipped on the way must not cost the newest checkpoint and its blobs."""
    lease = saved(store, disk, 10, 20, 30)
    sound = store.get(manifest_key(30, 1))
    store.put(manifest_key(30, 1), sound.replace(b'"step": 30', b'"step": 31'))
    report = collect_garbage(store, lease, 1, 0, -1.0)
    assert report.manifests == (manifest_key(10, 1),) and report.blobs == 0
    store.put(manifest_key(30, 1), sound)
    assert steps(store) == [30, 20]


def test_unfinished_writes_of_killed_writers_are_swept_after_the_grace(tmp_path: Path, disk: Disk) -> None:
    store = LocalStore(tmp_path / "store")
    lease = claim(store)
    lease.start(0, None)
    left = tmp_path / "store" / ".tmp" / "4711-dead"
    left.write_bytes(b"half of a blob")
    assert collect_garbage(store, lease, 1, 0, grace_s=3600).traces == 0
    assert collect_garbage(store, lease, 1, 0, grace_s=-1).traces == 1
    assert not left.exists()
