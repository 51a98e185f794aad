"""Machines of one attempt, each a process group of its own with an address of its own on the loopback network.

They are forked from a server that has imported torch; everything after the import is the real box program.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

_MACHINES = multiprocessing.get_context("forkserver")
_MACHINES.set_forkserver_preload(["trainer.rank", "transformers.models.llama.modeling_llama"])
_CLONE_NEWNET = 0x40000000  # <sched.h>

ADDRESSES = ("127.0.0.1", "127.0.0.2")
# Whoever has not ended by then hangs: a tenth of the time-out of torch's collectives, and room for a busy computer.
PATIENCE_S = 60.0


class Machine:
    """One node: `python -m trainer --run RUN`, beside the test. Its output goes to `workdir`.log."""

    def __init__(self, run: Path, workdir: Path, environment: dict[str, str], namespace: str = "") -> None:
        self._log = workdir.with_suffix(".log")
        arguments = (str(run), workdir, self._log, environment, namespace)
        self._process: BaseProcess = _MACHINES.Process(target=_live, args=arguments)
        self._process.start()

    @property
    def output(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def end(self) -> int:
        """Its exit code; fails where it hangs."""
        self._process.join(PATIENCE_S)
        if self._process.exitcode is None:
            self.signal(signal.SIGKILL)
            raise AssertionError(f"it hung: {self.output[-3000:]}")
        return self._process.exitcode

    def notify(self) -> None:
        """What is done before a machine is taken: SIGTERM to the box program."""
        os.kill(self._pid, signal.SIGTERM)

    def signal(self, number: signal.Signals) -> None:
        """To everything on the machine."""
        os.killpg(self._pid, number)

    def kill_a_rank(self) -> None:
        children = Path(f"/proc/{self._pid}/task/{self._pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)

    @property
    def _pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid


def start(
    run: Path,
    folder: Path,
    *,
    addresses: Sequence[str] = ADDRESSES,
    ranks: Sequence[int] = (0, 1),
    namespaces: Sequence[str] = ("", ""),
    patience_s: float = PATIENCE_S,
) -> list[Machine]:
    """Machines that begin an attempt together, those of `ranks`; the others do not appear."""
    shared = {
        "SKYPILOT_NUM_NODES": str(len(addresses)),
        "SKYPILOT_NODE_IPS": "\n".join(addresses),
        "VLAUNCH_RENDEZVOUS_PORT": str(free_port()),
        "VLAUNCH_RENDEZVOUS_TIMEOUT_S": str(patience_s),
    }
    folder.mkdir(exist_ok=True)
    return [
        Machine(run, folder / f"node-{rank}", shared | {"SKYPILOT_NODE_RANK": str(rank)}, namespaces[rank])
        for rank in ranks
    ]


def free_port() -> int:
    """A port of which the next one is free too, on every address."""
    for port in range(20000 + os.getpid() % 8000, 32000, 2):
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("0.0.0.0", port))
                second.bind(("0.0.0.0", port + 1))
                return port
            except OSError:
                continue
    raise AssertionError("no two ports are free")


def until(true: Callable[[], bool], machines: list[Machine]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, "\n".join(machine.output[-3000:] for machine in machines)
        time.sleep(0.005)


def _live(run: str, workdir: Path, log: Path, environment: dict[str, str], namespace: str) -> None:
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update({"VLAUNCH_CLOUD": "none"} | environment)
    if namespace:
        with open(f"/run/netns/{namespace}") as network:
            if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
    from trainer.__main__ import main

    os._exit(main(["--run", run, "--workdir", str(workdir)]))
