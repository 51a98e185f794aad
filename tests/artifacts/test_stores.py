"""Every kind of store keeps one contract: a directory, the tests' own, S3 and GCS, also over a bad network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.artifacts.conformance import *  # noqa: F403  (each of its tests is one of this file's)
from tests.artifacts.conformance import keys, together
from tests.artifacts.conftest import Bucket
from tests.artifacts.fault_proxy import FaultProxy, Sometimes, Trouble
from tests.artifacts.stores import MemoryStore
from trainer.artifacts.local import LocalStore
from trainer.artifacts.store import Store

# No flipped bits: in one part of an object only our own hash of the whole finds them, see test_store_faults.py.
BAD_WEATHER = [
    Trouble.BUSY,
    Trouble.TOO_MANY,
    Trouble.RESET_BEFORE,
    Trouble.LOST_REPLY,
    Trouble.CUT_REPLY,
    Trouble.DELAYED,
]


@pytest.fixture(params=["directory", "memory", "s3", "gcs", "s3 in bad weather", "gcs in bad weather"])
def store(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    proxies: Callable[[str], FaultProxy],
) -> Store:
    if request.param == "directory":
        return LocalStore(tmp_path_factory.mktemp("store"))
    if request.param == "memory":
        return MemoryStore()
    service, _, weather = request.param.partition(" in ")
    fresh: Bucket = request.getfixturevalue(service)
    if not weather:
        return fresh()
    proxy = proxies(request.getfixturevalue(f"{service}_server"))
    proxy.plan = Sometimes(seed=4, share=0.2, troubles=BAD_WEATHER)
    return fresh(endpoint=proxy.url)


@pytest.mark.parametrize("kind", ["s3", "gcs", "directory"])
def test_a_listing_goes_on_after_a_key_and_over_many_pages(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    """A page of S3 and of GCS has a thousand keys."""
    store = LocalStore(tmp_path) if kind == "directory" else request.getfixturevalue(kind)()
    made = [f"many/{number:04d}" for number in range(1005)]
    pending = iter(made)

    def put() -> None:
        for key in pending:
            store.put(key, b"")

    together([put] * 4)
    assert keys(store, "many/") == made
    assert keys(store, start_after="many/1002") == ["many/1003", "many/1004"]
    assert keys(store, start_after="many/1002x") == ["many/1003", "many/1004"]
    assert keys(store, "many/100", "many/0999") == [f"many/100{n}" for n in range(5)]
    assert keys(store, "many/", "n") == [] and len(keys(store, "many/", "m")) == 1005
    assert len(store.children("many/")) == 1005
