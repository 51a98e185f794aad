"""A run that moves reads its checkpoint from the nearest store that has it whole, and counts what it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.artifacts.runs import Disk, begin, checkpoint
from tests.artifacts.stores import MemoryStore
from tests.trainer.killing import LONGEST_LIFE_S, Death, begin_box, live
from tests.trainer.runs import create_run, write_corpus
from tests.trainer.test_exact_resume import numbers
from trainer.artifacts.garbage import collect_copies, collect_garbage
from trainer.artifacts.journal import RunEvent, read_journal
from trainer.artifacts.local import LocalStore
from trainer.artifacts.manifest import put_blob
from trainer.artifacts.sources import Sources, distance
from trainer.artifacts.store import open_store
from trainer.artifacts.validity import valid_manifests
from trainer.config import Replica, StoreSection
from trainer.errors import CorruptObject, MissingKey, UsageError

HERE, ELSEWHERE = "aws/us-east-1", "aws/eu-west-1"


def sources(folder: Path, here: str) -> tuple[LocalStore, LocalStore, Sources]:
    """A run's own store in the US, its replica in Europe."""
    own, copy = LocalStore(folder / "own/runs/r"), LocalStore(folder / "copy/runs/r")
    replica = Replica(uri=str(folder / "copy"), region=ELSEWHERE)
    return own, copy, Sources(own, StoreSection(region=HERE, replicas=(replica,)), here)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "shard"
    path.write_bytes(b"weights" * 1000)
    return path


def told(found: Sources) -> dict[str, int]:
    return {read["region"]: read["bytes"] for read in found.read()}


@pytest.mark.parametrize(
    ("here", "near"), [("us-east-1", HERE), ("eu-west-1", ELSEWHERE), ("eu-north-1", ELSEWHERE)]
)
def test_a_file_is_read_from_the_nearest_store(tmp_path: Path, file: Path, here: str, near: str) -> None:
    own, copy, found = sources(tmp_path, here)
    entry = put_blob(own, file, epoch=1)
    put_blob(copy, file, epoch=1)
    assert found.fetch(entry, tmp_path / "restored").read_bytes() == file.read_bytes()
    assert told(found) == {near: 7000}


@pytest.mark.parametrize("damage", ["missing", "damaged", "unreachable"])
def test_what_a_replica_has_not_whole_comes_from_the_runs_own_store(
    tmp_path: Path, file: Path, damage: str
) -> None:
    own, copy, found = sources(tmp_path, "eu-west-1")
    entry = put_blob(own, file, epoch=1)
    if damage == "damaged":
        copy.put(entry.key, b"x" * 7000)
    if damage == "unreachable":
        (tmp_path / "copy").write_text("a file where a folder should be")
    assert found.fetch(entry, tmp_path / "restored").read_bytes() == file.read_bytes()
    assert told(found)[HERE] == 7000


def test_only_the_word_of_the_runs_own_store_makes_a_checkpoint_unusable(tmp_path: Path, file: Path) -> None:
    own, copy, found = sources(tmp_path, "us-east-1")
    entry = put_blob(own, file, epoch=1)
    own.put(entry.key, b"damaged" * 1000)
    with pytest.raises(CorruptObject):
        found.fetch(entry, tmp_path / "restored")
    own.delete(entry.key)
    with pytest.raises(MissingKey):
        found.fetch(entry, tmp_path / "restored")
    put_blob(copy, file, epoch=1)
    assert found.fetch(entry, tmp_path / "restored").read_bytes() == file.read_bytes()


def test_a_store_cannot_be_its_own_replica(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="its own replica"):
        Sources(LocalStore(tmp_path / "runs/r"), StoreSection(replicas=(Replica(uri=str(tmp_path)),)), "")


@given(st.sampled_from(["", "us-east-1", "aws/us-east-1", "gcp/us-east1", "eu-west-1"]), st.text(max_size=12))
def test_distance_knows_near_from_far_whoever_names_the_region(here: str, there: str) -> None:
    assert distance(here, there) in (0, 1, 2)
    assert distance(here, here) == (0 if here else 2)
    assert distance("us-east-1", "aws/us-east-1") == 0 < distance("us-east-1", "aws/us-west-2") == 1
    assert distance("us-east-1", "") == distance("", there) == 2


def test_a_replica_loses_what_its_run_has_lost_and_nothing_that_it_needs(tmp_path: Path) -> None:
    store, copy, disk = MemoryStore(), MemoryStore("memory://copy"), Disk(tmp_path)
    lease = begin(store)
    for step in (10, 20, 30):
        lease.commit(checkpoint(lease, disk, step))
    copy.objects = dict(store.objects)
    late = put_blob(copy, disk.files(40)[1], epoch=2)  # a later attempt is at work
    kept = collect_garbage(store, lease, 2, 0, 0.0).kept
    collect_copies(copy, kept, epoch=1)
    for prefix in ("manifest/", "blob/"):
        left = {entry.key for entry in copy.list(prefix)} - {late.key}
        assert left == {entry.key for entry in store.list(prefix)}
    assert copy.size(late.key)


def events(run: str, kind: str) -> list[RunEvent]:
    return [event for event in read_journal(open_store(run)) if event.kind == kind]


def read(started: RunEvent) -> dict[str, int]:
    return {place["region"]: place["bytes"] for place in cast(list[dict[str, Any]], started.data["read"])}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "train.jsonl", 60)


def create(folder: Path, corpus: Path, **settings: object) -> tuple[str, Path]:
    """A run of two processes whose every checkpoint is copied."""
    copies = folder / "eu/runs/moving"
    replica = {"uri": str(folder / "eu"), "region": ELSEWHERE}
    run = str(folder / "us/runs/moving")
    create_run(
        run, corpus, parallel__processes=2, train__max_steps=24, store__region=HERE, store__replicas=[replica],
        **settings,
    )  # fmt: skip
    return run, copies


def goes_on(run: str, workdir: Path, region: str) -> None:
    box = begin_box(run, workdir, {"VLAUNCH_REGION": region, "VLAUNCH_CLOUD": "none"})
    box.join(LONGEST_LIFE_S)
    assert box.exitcode == 0, workdir.with_suffix(".log").read_text()[-3000:]


def test_a_run_that_moves_reads_its_checkpoint_in_the_new_region_and_equals_one_that_stayed(
    tmp_path: Path, corpus: Path
) -> None:
    stayed, _ = create(tmp_path / "stayed", corpus)
    assert not live(stayed, tmp_path / "work-stayed", Death("never"))
    assert not events(stayed, "replicated"), "of all weights only on request"

    run, copies = create(tmp_path, corpus, store__replicate_full_every=1)
    assert live(run, tmp_path / "work-1", Death("before", "manifest/", 4))
    newest = valid_manifests(open_store(run))[0]
    copied = {event.data["step"] for event in events(run, "replicated")}
    assert newest.step in copied and newest.region == HERE and newest.store.endswith("us/runs/moving")
    # The last copy is damaged in one file: that one alone comes from afar.
    damaged = newest.files[0]
    (copies / damaged.key).write_bytes(b"\0" * damaged.size)
    goes_on(run, tmp_path / "work-2", "eu-west-1")

    second = events(run, "started")[1]
    assert second.data["resumed_from"] == newest.step
    assert second.data["store_region"] == HERE
    # Twice: what is damaged is asked for again, since a bit may have flipped on the way.
    assert read(second)[ELSEWHERE] == newest.size + damaged.size
    inputs = read(second)[HERE] - damaged.size
    assert 0 < inputs < newest.size, "of what is no checkpoint only the prepared inputs"
    assert numbers(run) == numbers(stayed)
    left = {path.name for path in (copies / "manifest").iterdir()}
    assert {manifest.key.rpartition("/")[2] for manifest in valid_manifests(open_store(run))} == left


def test_a_replica_that_cannot_be_written_costs_a_run_nothing(tmp_path: Path, corpus: Path) -> None:
    run, copies = create(tmp_path, corpus, store__replicate_full_every=2)
    copies.parents[1].write_text("a file where a folder should be")
    assert not live(run, tmp_path / "work", Death("never"))
    failed, saved = events(run, "replica_failed"), events(run, "checkpoint")
    assert len(failed) == len(saved) // 2 and failed[0].data["region"] == ELSEWHERE
    assert not events(run, "save_failed") and events(run, "finished")
