"""One fault at every single request of every operation: the operation succeeds, and what it says is true."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.artifacts.conftest import PART, QUICK, Bucket
from tests.artifacts.fault_proxy import FaultProxy, Nth, Trouble, all_well
from trainer.artifacts.bucket import BucketStore
from trainer.artifacts.patience import Patience
from trainer.errors import MissingKey

LARGE = os.urandom(3 * PART + 17)
SMALL = os.urandom(PART - 1)

HASTY = Patience(connect_s=2, answer_s=0.4, tries=30, budget_s=0, first_wait_s=0.001, longest_wait_s=0.01)
"""For requests that never get an answer: more than any answer here takes."""

TROUBLES = [
    trouble for trouble in Trouble if trouble is not Trouble.TOO_MANY
]  # which is BUSY in another number
SILENT = (Trouble.BLACK_HOLE, Trouble.LATE_REPLY)
DEAF = (*SILENT, Trouble.LOST_REPLY, Trouble.CUT_REPLY)


@dataclass(frozen=True)
class Operation:
    """What is done to a store, after `before` has been, and what must hold afterwards."""

    run: Callable[[BucketStore, Path], object]
    says: object = None
    before: Callable[[BucketStore], object] = lambda store: None
    leaves: bytes | None = None  # under "a/key"


def _put_file(data: bytes) -> Callable[[BucketStore, Path], object]:
    def run(store: BucketStore, folder: Path) -> object:
        (folder / "source").write_bytes(data)
        return store.put_file("a/key", folder / "source")

    return run


def _get_file(store: BucketStore, folder: Path) -> object:
    store.get_file("a/key", folder / "target")
    return (folder / "target").read_bytes()


def _put(data: bytes) -> Callable[[BucketStore], object]:
    return lambda store: store.put("a/key", data)


def _put_in_parts(store: BucketStore) -> None:
    path = Path("parts")
    path.write_bytes(LARGE)
    store.put_file("a/key", path)


OPERATIONS = {
    "put_new of a new key": Operation(lambda s, _: s.put_new("a/key", b"mine"), True, leaves=b"mine"),
    "put_new of a key that is taken": Operation(
        lambda s, _: s.put_new("a/key", b"mine"), False, _put(b"theirs"), leaves=b"theirs"
    ),
    "put": Operation(lambda s, _: s.put("a/key", b"new"), None, _put(b"old"), leaves=b"new"),
    "put_file of an empty file": Operation(_put_file(b""), None, _put(b"old"), leaves=b""),
    "put_file": Operation(_put_file(SMALL), None, _put(b"old"), leaves=SMALL),
    "put_file in parts": Operation(_put_file(LARGE), None, _put(b"old"), leaves=LARGE),
    "get": Operation(lambda s, _: s.get("a/key"), SMALL, _put(SMALL), leaves=SMALL),
    "get_file": Operation(_get_file, SMALL, _put(SMALL), leaves=SMALL),
    "get_file in parts": Operation(_get_file, LARGE, _put_in_parts, leaves=LARGE),
    "size": Operation(lambda s, _: s.size("a/key"), 3, _put(b"old"), leaves=b"old"),
    "size of nothing": Operation(lambda s, _: s.size("a/key")),
    "list": Operation(lambda s, _: [e.key for e in s.list()], ["a/key"], _put(b"old"), leaves=b"old"),
    "children": Operation(lambda s, _: s.children("a/"), ["key"], _put(b"old"), leaves=b"old"),
    "delete": Operation(lambda s, _: s.delete("a/key"), None, _put(b"old")),
    "delete of nothing": Operation(lambda s, _: s.delete("a/key")),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.name.lower())
def test_one_fault_at_any_request_changes_nothing(
    bucket: Bucket, proxy: FaultProxy, tmp_path: Path, operation: Operation, trouble: Trouble
) -> None:
    number = 0
    while True:
        number += 1
        store = bucket(HASTY if trouble in SILENT else QUICK, proxy.url)
        operation.before(store)
        proxy.plan = plan = Nth(number, trouble)
        said = operation.run(store, tmp_path)
        proxy.plan = all_well
        if len(plan.seen) < number:
            break  # the operation has fewer requests
        assert said == operation.says or damaged(operation, trouble)
        assert content(store) == operation.leaves
        # Who never hears that an upload was begun cannot abort it; `sweep` does.
        assert store.sweep(older_than_s=-3600) == 0 or trouble in DEAF
        assert store.sweep(older_than_s=-3600) == 0
    assert number > 1


def damaged(operation: Operation, trouble: Trouble) -> bool:
    """A part of an object has no checksum of its own: our hash of the whole finds a bit that flipped in one."""
    return trouble is Trouble.FLIPPED_BIT and operation is OPERATIONS["get_file in parts"]


def content(store: BucketStore) -> bytes | None:
    try:
        return store.get("a/key")
    except MissingKey:
        return None
