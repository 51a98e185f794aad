"""Ceph's S3 gateway with one monitor and one disk in memory: a real server, which checks signatures and MD5.

    apt-get install --no-install-recommends radosgw ceph-osd ceph-mon ceph-base ceph-common

Everything lies below one folder and listens on this machine alone; it takes some 15 seconds to come up.
"""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.artifacts.servers import free_port

PROGRAMS = ("radosgw", "radosgw-admin", "ceph", "ceph-mon", "ceph-osd", "ceph-authtool", "monmaptool")
KEY_ID, SECRET = "AKIAOFRADOSGW0000000", "secretOfRadosgw0123456789"

# What is not obvious: cephx, since radosgw does not start with `auth = none`; sizes of 1, for there is one disk.
CONF = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon_v2}/0,v1:127.0.0.1:{mon_v1}/0]
public addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
osd pool default size = 1
osd pool default min size = 1
osd crush chooseleaf type = 0
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon max pg per osd = 1000
ms bind ipv6 = false
run dir = {folder}/run
log file = {folder}/log/$name.log
admin socket = {folder}/run/$name.asok
keyring = {folder}/keyring
[mon.a]
mon data = {folder}/mon
[osd.0]
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 2147483648
osd class load list = *
osd class default list = *
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw dns name = localhost
"""


@dataclass(frozen=True)
class Ceph:
    """A folder with the configuration of a cluster, and what runs commands in it."""

    folder: Path

    def run(self, *command: object) -> str:
        words = [str(word) for word in command]
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return done.stdout

    def daemon(self, *command: str) -> subprocess.Popen[bytes]:
        quiet = subprocess.DEVNULL
        return subprocess.Popen([*command, "-f"], env=self.environment, stdout=quiet, stderr=quiet)

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"CEPH_CONF": str(self.folder / "ceph.conf")}


def missing() -> list[str]:
    """Programs that have to be installed first."""
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return [program for program in PROGRAMS if shutil.which(program, path=places) is None]


@contextmanager
def radosgw(folder: Path) -> Iterator[str]:
    """The URL of an S3 server with one user, KEY_ID, and no bucket."""
    port = free_port()
    ceph = Ceph(folder)
    for name in ("mon", "osd", "run", "log"):
        (folder / name).mkdir(parents=True)
    conf = CONF.format(folder=folder, port=port, fsid=uuid.uuid4(), mon_v1=free_port(), mon_v2=free_port())
    (folder / "ceph.conf").write_text(conf)
    with ExitStack() as daemons:

        def start(*command: str) -> None:
            process = ceph.daemon(*command)
            daemons.callback(process.wait)
            daemons.callback(process.kill)

        _monitor(ceph, conf)
        start("ceph-mon", "-i", "a")
        _disk(ceph)
        start("ceph-osd", "-i", "0")
        _keep_key(ceph, "client.rgw", "mon", "allow *", "osd", "allow *")
        start("radosgw", "-n", "client.rgw")
        user = ("--uid=t", "--display-name=t", f"--access-key={KEY_ID}", f"--secret-key={SECRET}")
        ceph.run("radosgw-admin", "user", "create", *user)
        _wait_for_answer(port)
        yield f"http://127.0.0.1:{port}"


def _monitor(ceph: Ceph, conf: str) -> None:
    fsid = conf.partition("fsid = ")[2].partition("\n")[0]
    address = conf.partition("mon host = ")[2].partition("\n")[0]
    keys, map_ = ceph.folder / "keyring", ceph.folder / "monmap"
    all_of_it = [word for part in ("mon", "osd", "mgr") for word in ("--cap", part, "allow *")]
    ceph.run("ceph-authtool", "--create-keyring", keys, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
    ceph.run("ceph-authtool", keys, "--gen-key", "-n", "client.admin", *all_of_it)
    ceph.run("monmaptool", "--create", "--addv", "a", address, "--fsid", fsid, map_)
    ceph.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", map_, "--keyring", keys)


def _disk(ceph: Ceph) -> None:
    disk = uuid.uuid4()  # the monitor and the disk must agree on it
    ceph.run("ceph", "osd", "new", disk)
    _keep_key(ceph, "osd.0", "mon", "allow profile osd", "osd", "allow *")
    ceph.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)


def _keep_key(ceph: Ceph, name: str, *caps: str) -> None:
    made = ceph.run("ceph", "auth", "get-or-create", name, *caps)
    with (ceph.folder / "keyring").open("a") as keys:
        keys.write(made)


def _wait_for_answer(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
                connection.request("GET", "/")
                connection.getresponse().read()
            return
        except OSError:
            assert time.monotonic() < deadline, "radosgw does not answer"
            time.sleep(0.1)
