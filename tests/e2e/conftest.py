"""What end-to-end tests need: S3 and GCS servers, radosgw where it is installed, SkyPilot on two Slurm clusters."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest

from tests.artifacts import servers
from tests.artifacts.conftest import QUICK, gcs, gcs_server, proxies, s3, s3_server
from tests.artifacts.fault_proxy import FaultProxy
from tests.e2e import radosgw
from tests.e2e.slurm.rig import Rig, rig_up, why_not
from tests.trainer.on_servers import Server
from trainer.artifacts.bucket import BucketStore
from trainer.artifacts.patience import Patience

__all__ = ["gcs", "gcs_server", "proxies", "s3", "s3_server"]

NAMES = ("s3", "gcs", "rgw")


@pytest.fixture(scope="session")
def rgw_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if absent := radosgw.missing():
        pytest.skip(f"needs apt-get install radosgw ceph-osd ceph-mon ceph-base ceph-common: no {absent[0]}")
    with radosgw.radosgw(tmp_path_factory.mktemp("ceph")) as url:
        client = boto3.client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id=radosgw.KEY_ID,
            aws_secret_access_key=radosgw.SECRET,
        )  # fmt: skip
        client.create_bucket(Bucket=servers.BUCKET)
        client.close()
        yield url


@pytest.fixture
def rgw(rgw_server: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., BucketStore]:
    """rgw(patience, endpoint, part): a fresh store; parts below 5 MiB are refused there, so files go whole."""
    from trainer.artifacts.s3 import S3Store

    for name, value in Server.s3(rgw_server, radosgw.KEY_ID, radosgw.SECRET).environment.items():
        monkeypatch.setenv(name, value)

    def fresh(patience: Patience = QUICK, endpoint: str = rgw_server, part: int = 0) -> BucketStore:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        return S3Store(f"s3://{servers.BUCKET}/{secrets.token_hex(6)}", patience)

    return fresh


@pytest.fixture(params=NAMES)
def bucket(request: pytest.FixtureRequest) -> Callable[..., BucketStore]:
    """Each service."""
    fresh: Callable[..., BucketStore] = request.getfixturevalue(request.param)
    return fresh


@pytest.fixture
def proxy(request: pytest.FixtureRequest, proxies: Callable[[str], FaultProxy]) -> FaultProxy:
    """A proxy before the server of `bucket`."""
    service = request.node.callspec.params["bucket"]
    return proxies(request.getfixturevalue(f"{service}_server"))


@pytest.fixture(params=NAMES)
def server(request: pytest.FixtureRequest) -> Server:
    """Each service, for whole runs."""
    url = request.getfixturevalue(f"{request.param}_server")
    if request.param == "rgw":
        return Server.s3(url, radosgw.KEY_ID, radosgw.SECRET)
    return Server.s3(url) if request.param == "s3" else Server.gcs(url)


@pytest.fixture(scope="session")
def rig() -> Iterator[Rig]:
    """SkyPilot on two Slurm clusters, up once for all tests, and gone after the last."""
    reason = why_not()
    if reason:
        pytest.skip(f"SkyPilot on two Slurm clusters: {reason}")
    # Not pytest's own folders: machines run as other users, who may not enter those.
    with rig_up(Path("/tmp/vlaunch-rig")) as up:
        yield up
