"""Bytes on their way into a store are counted, held to a rate and called off, whatever the store is."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.artifacts.conftest import PART, Bucket
from trainer.artifacts.local import LocalStore
from trainer.artifacts.pace import GivenUp, Pace, carried, current
from trainer.artifacts.store import Store

SIZE = 3 * PART + 17


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"x" * SIZE)
    return path


@pytest.fixture(params=["s3", "gcs", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return LocalStore(tmp_path / "store")
    bucket: Bucket = request.getfixturevalue(request.param)
    return bucket()


def test_bytes_go_no_faster_than_the_limit_and_are_counted_once(store: Store, file: Path) -> None:
    pace = Pace(1e6)
    began = time.monotonic()
    with carried(pace):
        store.put_file("blob/a", file)
    assert time.monotonic() - began >= SIZE / 1e6 - 0.25  # a quarter of a second at full speed is allowed
    assert pace.sent == store.size("blob/a") == SIZE


def test_a_transfer_that_is_called_off_ends_at_its_next_bytes_and_the_object_is_not_there(
    store: Store, file: Path
) -> None:
    pace = Pace()
    pace.stop("nobody wants it")
    with carried(pace), pytest.raises(GivenUp, match="nobody wants it"):
        store.put_file("blob/a", file)
    assert store.size("blob/a") is None and not [*store.list()]


def test_outside_of_a_pace_nothing_is_held_back(store: Store, file: Path) -> None:
    assert current() is None
    store.put_file("blob/a", file)
    assert store.size("blob/a") == SIZE
