"""Every test starts in an empty home, without our environment variables, and cannot reach the network."""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("tests.artifacts.conformance")  # claims that other files import

REPOSITORY = Path(__file__).resolve().parent.parent

# What a developer's shell may hold and a test must not see; credentials too, so that no test can spend.
FOREIGN_PREFIXES = tuple(
    f"{name}_" for name in "VLAUNCH XDG AWS GOOGLE CLOUDSDK AZURE WANDB SKYPILOT HF OPENAI".split()
)
FOREIGN = "NO_COLOR FORCE_COLOR COLUMNS STORAGE_EMULATOR_HOST RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR".split()


def _no_network(event: str, args: tuple[Any, ...]) -> None:
    """An audit hook: connections from this process stay on this machine. (Children have HF_HUB_OFFLINE.)"""
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        host = args[1][0] if isinstance(args[1], tuple) else ""  # a Unix socket's address is a path
    elif event == "socket.getaddrinfo":
        host = args[0] or ""
    else:
        return
    host = host.decode() if isinstance(host, bytes) else str(host)
    if not _is_here(host):
        raise RuntimeError(f"a test tried to reach {host}; tests stay on this machine")


def _is_here(host: str) -> bool:
    if host in ("", "localhost", "0.0.0.0", "::", os.uname().nodename):
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


sys.addaudithook(_no_network)

# A shell that starts this in the background has it ignore Ctrl-C, and every program that a test starts would too.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def isolated(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home as HOME, XDG_* and working directory; returned for those who look into it."""
    home = tmp_path_factory.mktemp("home")
    for name in list(os.environ):
        if name.startswith(FOREIGN_PREFIXES) or name in FOREIGN:
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    for variable, folder in {"CONFIG": "config", "STATE": "state", "CACHE": "cache", "DATA": "data"}.items():
        monkeypatch.setenv(f"XDG_{variable}_HOME", str(home / folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("WANDB_MODE", "offline")
    # Else whoever has no credentials asks the machine for its role, over the network.
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    # Programs that tests start find the checkout, installed or not, from any working directory.
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    work = home / "work"
    work.mkdir()
    monkeypatch.chdir(work)  # or a vlaunch.toml in the checkout would have a say
    yield home


@dataclass(frozen=True)
class Ran:
    """What a command line did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout as the one JSON document that it must be."""
        return json.loads(self.out)


@pytest.fixture
def vlaunch(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs a vlaunch command line in this process: vlaunch("runs", "--json").json"""

    def run(*args: object) -> Ran:
        from launcher.cli import main

        capsys.readouterr()
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def vlaunch_process() -> Callable[..., Ran]:
    """Runs a vlaunch command line as a program of its own."""

    def run(*args: object, **options: Any) -> Ran:
        command = [sys.executable, "-m", "launcher", *(str(arg) for arg in args)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, **options)
        return Ran(done.returncode, done.stdout, done.stderr)

    return run
