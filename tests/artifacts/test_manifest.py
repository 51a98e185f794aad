"""Manifests and blobs: what is read back is right, or it is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.artifacts.stores import InterceptedStore, MemoryStore, Operation
from trainer.artifacts.manifest import FileEntry, Manifest, fetch_verified, hash_file, put_blob
from trainer.errors import CorruptObject, MissingKey, StoreError

ENTRY = FileEntry(name="shard-00001.safetensors", blob="ab" * 32 + "-e00000003", size=7)


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = dict(
        step=1200, epoch=3, parent=None, world_size=8, samples=153600, tokens=9 * 10**9, files=(ENTRY,)
    )
    return Manifest.model_validate(fields | changes)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"0123456789" * 1000)
    return path


def counted(store: MemoryStore, calls: list[str]) -> InterceptedStore:
    def note(operation: Operation) -> Any:
        calls.append(operation.name)
        return operation.happen()

    return InterceptedStore(store, note)


def test_a_manifest_reads_back_as_it_was_written_under_its_own_key() -> None:
    written = manifest(parent="manifest/000000001100-e00000002.json", region="us-east-1", store="s3://b/x")
    assert Manifest.decode(written.encode()) == written
    assert written.key == "manifest/000000001200-e00000003.json" and written.size == 7
    assert manifest().encode() != manifest().encode(), "a nonce tells two writers apart"


def test_a_manifest_with_any_bit_flipped_is_corrupt_or_says_the_same() -> None:
    original = manifest()
    data = original.encode()
    survived = 0
    for position in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            try:
                assert Manifest.decode(bytes(flipped)) == original
                survived += 1
            except CorruptObject:
                pass
    assert survived == 0


@pytest.mark.parametrize(
    "data", [b"", b"null", b"[]", b"{}", b"7", b"\xff\xfe", b'{"digest": "x", "version": 1}']
)
def test_what_is_not_a_manifest_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptObject):
        Manifest.decode(data)


def test_a_manifest_of_a_later_version_asks_for_a_newer_program_and_is_not_taken_for_damage() -> None:
    with pytest.raises(StoreError, match="version 2, this program reads 1") as caught:
        Manifest.decode(manifest(version=2).encode())
    assert not isinstance(caught.value, CorruptObject) and caught.value.hint


@pytest.mark.parametrize(
    "wrong",
    [{"name": "../../etc/passwd"}, {"name": "/etc/passwd"}, {"name": ""}, {"blob": "ab"}, {"size": -1}]
    + [{"blob": "AB" * 32}, {"blob": "ab" * 32 + "/../x"}, {"blob": "ab" * 32 + "\n"}, {"mode": 7}],
)
def test_a_file_entry_that_could_lead_astray_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FileEntry.model_validate(ENTRY.model_dump() | wrong)


def test_a_blob_is_sent_once_per_epoch_and_shared_blobs_once(store: MemoryStore, file: Path) -> None:
    calls: list[str] = []
    view = counted(store, calls)
    first = put_blob(view, file, epoch=1)
    assert first == put_blob(view, file, epoch=1)
    assert (first.name, first.sha256, first.epoch) == ("weights.bin", hash_file(file), 1)
    assert first == put_blob(view, file, epoch=2, known=[ENTRY, first])
    assert calls.count("put_file") == 1
    assert put_blob(view, file, epoch=2).epoch == 2
    shared = put_blob(view, file, name="data/corpus.jsonl")
    assert shared == put_blob(view, file, name="data/corpus.jsonl") and shared.epoch is None
    assert (shared.blob, shared.name) == (hash_file(file), "data/corpus.jsonl")
    assert calls.count("put_file") == 3


def test_a_known_blob_that_is_gone_or_cut_short_is_sent_again(store: MemoryStore, file: Path) -> None:
    known = put_blob(store, file, epoch=1)
    store.put(known.key, b"cut short")
    assert put_blob(store, file, epoch=2, known=[known]).epoch == 2
    store.delete(known.key)
    assert put_blob(store, file, epoch=3, known=[known]).epoch == 3


def test_a_file_that_changes_while_it_is_sent_is_an_error(store: MemoryStore, file: Path) -> None:
    def disturb(operation: Operation) -> Any:
        if operation.name == "put_file":
            file.write_bytes(b"still being written")
        return operation.happen()

    with pytest.raises(StoreError, match=r"weights\.bin changed while it was being sent"):
        put_blob(InterceptedStore(store, disturb), file)


def test_a_flipped_bit_in_a_blob_is_corrupt_and_no_file_appears(
    store: MemoryStore, file: Path, tmp_path: Path
) -> None:
    entry = put_blob(store, file)
    for position in (0, 5000, 9999):
        damaged = bytearray(file.read_bytes())
        damaged[position] ^= 4
        store.put(entry.key, bytes(damaged))
        with pytest.raises(CorruptObject, match=rf"{entry.key} \(weights\.bin\)"):
            fetch_verified(store, entry, tmp_path / "restored")
    for data in (file.read_bytes()[:-1], b""):
        store.put(entry.key, data)
        with pytest.raises(CorruptObject):
            fetch_verified(store, entry, tmp_path / "restored")
    store.delete(entry.key)
    with pytest.raises(MissingKey):
        fetch_verified(store, entry, tmp_path / "restored")
    assert [*(tmp_path / "restored").iterdir()] == []


def test_a_bit_that_flips_on_the_way_is_fetched_once_more(
    store: MemoryStore, file: Path, tmp_path: Path
) -> None:
    entry = put_blob(store, file, name="shards/1.bin")
    calls = []

    def flip_the_first(operation: Operation) -> Any:
        calls.append(operation.name)
        operation.happen()
        if operation.name == "get_file" and calls.count("get_file") == 1:
            (arrived,) = (tmp_path / "restored" / "shards").iterdir()
            arrived.write_bytes(b"X" + arrived.read_bytes()[1:])

    path = fetch_verified(InterceptedStore(store, flip_the_first), entry, tmp_path / "restored")
    assert path == tmp_path / "restored" / "shards" / "1.bin"
    assert path.read_bytes() == file.read_bytes() and calls == ["get_file"] * 2
    assert [*path.parent.iterdir()] == [path]
