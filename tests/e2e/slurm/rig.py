"""Two Slurm clusters, SkyPilot's server and an S3 server on this machine, as a test sees them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.artifacts.servers import BUCKET, moto

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[2]
REGIONS = ("us-east", "us-west")


def why_not() -> str | None:
    """What this machine lacks for the rig; None where it can be brought up."""
    if os.geteuid() != 0:
        return "it needs root: users, device nodes and Debian packages"
    if not shutil.which("apt-get"):
        return "it needs Debian packages"
    for module in ("sky", "moto", "hostlist"):
        if subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True).returncode:
            return f"{module} is not installed: make e2e installs it"
    return None


@dataclass
class Rig:
    """`folder` holds everything that belongs to it."""

    folder: Path
    env: dict[str, str]

    @property
    def store(self) -> str:
        return f"s3://{BUCKET}/store"

    def vlaunch(
        self, *args: object, check: bool = True, timeout: float = 600
    ) -> subprocess.CompletedProcess[str]:
        """The command line as a user of the rig's home types it."""
        return self.run(sys.executable, "-m", "launcher", *args, check=check, timeout=timeout)

    def sky(self, *args: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return self.run(Path(sys.executable).parent / "sky", *args, check=True, timeout=timeout)

    def run(self, *args: object, check: bool, timeout: float) -> subprocess.CompletedProcess[str]:
        words = [str(arg) for arg in args]
        done = subprocess.run(
            words, env=self.env, cwd=self.folder / "home", capture_output=True, text=True, timeout=timeout
        )
        if check and done.returncode:
            raise AssertionError(
                f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
            )
        return done

    def slurm(self, region: str, *command: str) -> str:
        conf = {**os.environ, "SLURM_CONF": str(self.folder / region / "etc/slurm.conf")}
        return subprocess.run(command, env=conf, check=True, capture_output=True, text=True).stdout

    def machines(self, name: str) -> list[tuple[str, str, str]]:
        """(region, zone, Slurm's number) of the allocations of a managed job."""
        found = []
        for region in REGIONS:
            for line in self.slurm(region, "squeue", "-h", "-o", "%i %P %j %t").splitlines():
                number, zone, job, state = line.split()
                if job.startswith(name) and state == "R":
                    found.append((region, zone, number))
        return found

    def take(self, name: str) -> str:
        """Take a run's machine away, as its owner would. Returns the region."""
        region, _, number = self.machines(name)[0]
        self.slurm(region, "scancel", number)
        return region

    def set_zone(self, region: str, zone: str, state: str) -> None:
        self.slurm(region, "scontrol", "update", f"partitionname={zone}", f"state={state}")

    def kill_server(self, *, with_all: bool) -> None:
        """SIGKILL to SkyPilot's server; `with_all` also to its children and the controllers: a power cut."""
        import psutil

        wanted = {f"--port={self.env['API_PORT']}", *(["-msky.jobs.controller"] if with_all else [])}
        found = []
        for process in psutil.process_iter(["cmdline", "environ"]):
            words, around = process.info["cmdline"] or [], process.info["environ"] or {}
            if around.get("HOME") == self.env["HOME"] and wanted.intersection(words):
                found += [process, *(process.children(recursive=True) if with_all else [])]
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(found)

    def journal(self, run: str) -> list[Any]:
        from launcher.render import run_uri
        from trainer.artifacts.journal import read_journal
        from trainer.artifacts.store import open_store

        with self.credentials():
            return read_journal(open_store(run_uri(self.store, run)))

    @contextmanager
    def credentials(self) -> Iterator[None]:
        """Those of the rig's S3, for this process."""
        with pytest.MonkeyPatch.context() as here:
            for name in self.env:
                if name.startswith("AWS_"):
                    here.setenv(name, self.env[name])
            yield


def until(holds: Callable[[], Any], what: str, patience_s: float = 300.0) -> Any:
    """What `holds` returns when it first is true. Another process's progress cannot be waited for otherwise."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if found := holds():
            return found
        time.sleep(0.5)
    raise AssertionError(f"not within {patience_s:.0f} s: {what}")


@contextmanager
def rig_up(folder: Path) -> Iterator[Rig]:
    """The whole rig; whatever happens, all of it is gone afterwards."""
    port = _free_port()
    with moto() as s3:
        yield from _rig_up(folder, port, s3)


def _rig_up(folder: Path, port: int, s3: str) -> Iterator[Rig]:
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("VLAUNCH_", "XDG_"))},
        "HOME": str(folder / "home"),
        "RIG": str(folder),
        "IMAGE": sys.prefix,
        "RIG_CONSTRAINTS": str(REPOSITORY / "constraints.txt"),
        "API_PORT": str(port),
        "PYTHONPATH": str(REPOSITORY),
        "SKYPILOT_API_SERVER_LOCAL_PORT": str(port),
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        "AWS_ACCESS_KEY_ID": "rig",
        "AWS_SECRET_ACCESS_KEY": "rig",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3,
    }
    rig = Rig(folder, env)
    try:
        subprocess.run(["bash", str(HERE / "up.sh")], env=env, check=True, stdin=subprocess.DEVNULL)
        rig.vlaunch("doctor", "--install-plugin", "--store", rig.store)
        rig.sky("check", "slurm")
        rig.vlaunch("doctor", "--infra", "slurm", "--store", rig.store)
        yield rig
    except BaseException:
        print(_last_words(folder))  # before all of it is removed
        raise
    finally:
        subprocess.run(["bash", str(HERE / "down.sh")], env=env, check=False, stdin=subprocess.DEVNULL)


def _free_port() -> int:
    """Below those that Linux gives to clients: one of those may be taken before the server has it."""
    for port in range(28000, 32000):
        with socket.socket() as asked:
            try:
                asked.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


def _last_words(folder: Path) -> str:
    log = folder / "home/.sky/api_server/server.log"
    return log.read_text(errors="replace")[-3000:] if log.is_file() else "no log of the server"
