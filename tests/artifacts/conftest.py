"""Stores on real servers, each started once per session; a test gets a prefix of its own in their bucket."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.artifacts import servers
from tests.artifacts.fault_proxy import FaultProxy
from trainer.artifacts.bucket import BucketStore
from trainer.artifacts.patience import Patience

QUICK = Patience(connect_s=2, answer_s=10, tries=30, budget_s=0, first_wait_s=0.001, longest_wait_s=0.01)
"""Waits next to nothing between tries, since the servers of tests recover at once."""

ONCE = Patience(connect_s=2, answer_s=10, tries=1, budget_s=0)
"""No second try: every trouble reaches the caller."""

PART = 100_000
"""Bytes: a file of the tests that is not tiny goes in several parts."""

KEY_ID, SECRET = "AKIAOFTHETESTS000000", "secret+of/the+tests/0123456789abcdefghij"

Bucket = Callable[..., BucketStore]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    with servers.moto() as url:
        yield url


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[str]:
    with servers.fake_gcs() as url:
        yield url


@pytest.fixture
def proxies() -> Iterator[Callable[[str], FaultProxy]]:
    """Starts a proxy before a server."""
    with ExitStack() as stack:
        yield lambda upstream: stack.enter_context(FaultProxy(upstream))


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """s3(patience, endpoint) is a fresh store on the S3 server, or on a proxy before it."""
    from trainer.artifacts.s3 import S3Store

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")

    def fresh(patience: Patience = QUICK, endpoint: str = s3_server, part: int = PART) -> BucketStore:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        return S3Store(f"s3://{servers.BUCKET}/{secrets.token_hex(6)}", patience, part)

    return fresh


@pytest.fixture
def gcs(gcs_server: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """gcs(patience, endpoint): the same on GCS."""
    from trainer.artifacts.gcs import GCSStore

    def fresh(patience: Patience = QUICK, endpoint: str = gcs_server, part: int = PART) -> BucketStore:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
        return GCSStore(f"gs://{servers.BUCKET}/{secrets.token_hex(6)}", patience, part)

    return fresh


@pytest.fixture(params=["s3", "gcs"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    """Either service."""
    fresh: Bucket = request.getfixturevalue(request.param)
    return fresh


@pytest.fixture
def proxy(request: pytest.FixtureRequest, bucket: Bucket, proxies: Callable[[str], FaultProxy]) -> FaultProxy:
    """A proxy before the server of `bucket`: bucket(patience, proxy.url) goes through it."""
    service = request.node.callspec.params["bucket"]
    return proxies(request.getfixturevalue(f"{service}_server"))
