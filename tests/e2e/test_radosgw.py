"""The contract of all stores on a real S3 server: Ceph's, which checks signatures, dates and MD5. `make e2e`."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from tests.artifacts.conformance import *  # noqa: F403
from tests.artifacts.conftest import ONCE, QUICK
from tests.artifacts.fault_proxy import FaultProxy, Sometimes, Trouble
from tests.e2e import radosgw
from trainer.artifacts import probe
from trainer.artifacts.s3 import S3Store
from trainer.artifacts.store import open_store
from trainer.errors import StoreRefused

pytestmark = pytest.mark.skipif(
    bool(radosgw.missing()), reason="needs apt-get install radosgw ceph-osd ceph-mon ceph-base ceph-common"
)

BUCKET = "bucket-of-tests"
WEATHER = [Trouble.BUSY, Trouble.RESET_BEFORE, Trouble.LOST_REPLY, Trouble.CUT_REPLY]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with radosgw.radosgw(tmp_path_factory.mktemp("ceph")) as url:
        made = boto3.client(
            "s3",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id=radosgw.KEY_ID,
            aws_secret_access_key=radosgw.SECRET,
        )
        made.create_bucket(Bucket=BUCKET)
        made.close()
        yield url


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", radosgw.KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", radosgw.SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture(params=["calm", "bad weather"])
def store(
    request: pytest.FixtureRequest, server: str, credentials: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[S3Store]:
    uri = f"s3://{BUCKET}/{secrets.token_hex(6)}"
    with FaultProxy(server) as proxy:
        if request.param == "bad weather":
            proxy.plan = Sometimes(seed=4, share=0.2, troubles=WEATHER)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url if request.param == "bad weather" else server)
        yield S3Store(uri, QUICK)


@pytest.mark.usefixtures("credentials")
class TestWhatOnlyARealServerRefuses:
    def test_a_file_in_parts_comes_back(
        self, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server)
        store = S3Store(f"s3://{BUCKET}/parts", ONCE, part=5 << 20)
        (tmp_path / "source").write_bytes(secrets.token_bytes((11 << 20) + 3))
        store.put_file("a", tmp_path / "source")
        store.get_file("a", tmp_path / "target")
        assert (tmp_path / "source").read_bytes() == (tmp_path / "target").read_bytes()

    def test_it_keeps_what_was_created_first(self, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server)
        assert probe.answer_s(open_store(f"s3://{BUCKET}/x")) > 0

    @pytest.mark.parametrize(
        ("name", "value", "says"),
        [
            ("AWS_SECRET_ACCESS_KEY", "wrong", "the secret key does not belong to the access key"),
            ("AWS_ACCESS_KEY_ID", "unknown", "these credentials are not known there"),
        ],
    )
    def test_wrong_credentials_are_one_sentence(
        self, server: str, monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server)
        monkeypatch.setenv(name, value)
        for act in (lambda s: s.put_new("a", b"x"), lambda s: s.get("a"), lambda s: s.size("a")):
            with pytest.raises(StoreRefused, match=says):
                act(S3Store(f"s3://{BUCKET}/x", ONCE))

    def test_a_bucket_that_is_not_there(self, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server)
        with pytest.raises(StoreRefused, match="there is no bucket another at http://127"):
            S3Store("s3://another/x", ONCE).put_new("a", b"x")
