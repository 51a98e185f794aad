"""Ceph's S3 server from Debian's packages: one monitor, one disk in memory, one gateway; loopback only, own folder.

Unlike the servers that come with pip it checks credentials and MD5, and refuses small parts. Needs root.
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import boto3

from tests.artifacts.servers import BUCKET, free_port

KEY_ID, SECRET = "test", "testtest"
NEEDED = ("ceph-mon", "ceph-osd", "ceph", "ceph-authtool", "monmaptool", "radosgw", "radosgw-admin")
_DAEMONS = ("mon.a", "osd.0", "client.rgw")
_PATIENCE_S = 120.0

_CONF = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon}/0,v1:127.0.0.1:{mon_v1}/0]
public addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
osd pool default size = 1
osd pool default min size = 1
osd crush chooseleaf type = 0
osd pool default pg num = 4
osd pool default pgp num = 4
mon allow pool size one = true
mon warn on pool no redundancy = false
osd pool default pg autoscale mode = off
mon max pg per osd = 1000
ms bind ipv6 = false
run dir = {folder}/run
log file = {folder}/log/$name.log
admin socket = {folder}/run/$name.asok
pid file = {folder}/run/$name.pid
keyring = {folder}/keyring
[mon.a]
mon data = {folder}/mon
[osd.0]
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 4294967296
osd class load list = *
osd class default list = *
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw dns name = localhost
rgw thread pool size = 16
"""


def missing() -> str | None:
    """Why it cannot be started here."""
    absent = [program for program in NEEDED if shutil.which(program) is None]
    if absent:
        return "apt-get install radosgw ceph-mon ceph-osd ceph-base ceph-common"
    return None if os.geteuid() == 0 else "radosgw needs root"


@contextmanager
def radosgw(folder: Path) -> Iterator[str]:
    """The URL of a server with one bucket, for KEY_ID and SECRET."""
    port = free_port()
    for name in ("mon", "osd", "run", "log"):
        (folder / name).mkdir()
    conf = _CONF.format(fsid=uuid.uuid4(), mon=free_port(), mon_v1=free_port(), port=port, folder=folder)
    (folder / "ceph.conf").write_text(conf)
    try:
        _start(folder)
        url = f"http://127.0.0.1:{port}"
        _wait(port)
        client = boto3.client(
            "s3", endpoint_url=url, aws_access_key_id=KEY_ID, aws_secret_access_key=SECRET, region_name="us-east-1"
        )
        client.create_bucket(Bucket=BUCKET)
        yield url
    finally:
        for name in _DAEMONS:
            with suppress(OSError, ValueError):
                os.kill(int((folder / f"run/{name}.pid").read_text()), signal.SIGKILL)


def _start(folder: Path) -> None:
    """Found by trying: without cephx the gateway loops; the disk's key must be in the keyring before it is made."""
    ring = folder / "keyring"

    def ceph(*words: object) -> str:
        done = subprocess.run(
            [str(word) for word in words], env=os.environ | {"CEPH_CONF": str(folder / "ceph.conf")},
            capture_output=True, text=True, timeout=_PATIENCE_S,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{words[0]}: {done.stderr[-2000:]}")
        return done.stdout

    fsid = (folder / "ceph.conf").read_text().split("fsid = ")[1].split()[0]
    addresses = (folder / "ceph.conf").read_text().split("mon host = ")[1].split("\n")[0]
    ceph("ceph-authtool", "--create-keyring", ring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
    caps = [word for daemon in ("mon", "osd", "mgr") for word in ("--cap", daemon, "allow *")]
    ceph("ceph-authtool", ring, "--gen-key", "-n", "client.admin", *caps)
    ceph("monmaptool", "--create", "--addv", "a", addresses, "--fsid", fsid, folder / "monmap")
    ceph("ceph-mon", "--mkfs", "-i", "a", "--monmap", folder / "monmap", "--keyring", ring)
    ceph("ceph-mon", "-i", "a")
    disk = str(uuid.uuid4())
    ceph("ceph", "osd", "new", disk)
    for name, allowed in (("osd.0", "allow profile osd"), ("client.rgw", "allow *")):
        key = ceph("ceph", "auth", "get-or-create", name, "mon", allowed, "osd", "allow *")
        ring.write_text(ring.read_text() + key)
        if name == "osd.0":
            ceph("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
            ceph("ceph-osd", "-i", "0")
    ceph("radosgw", "-n", "client.rgw")
    ceph(
        "radosgw-admin", "user", "create", "--uid=t", "--display-name=t", f"--access-key={KEY_ID}",
        f"--secret-key={SECRET}",
    )  # fmt: skip


def _wait(port: int) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
                connection.request("GET", "/")
                connection.getresponse().read()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
