"""A cloud of this computer: each machine is a process group that runs its task's own setup and run in an empty home."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.clouds.base import Seen
from launcher.wheel import write_wheel
from tests.conftest import REPOSITORY


@dataclass
class Machine:
    task: Mapping[str, Any]
    process: subprocess.Popen[bytes]
    home: Path


class LocalMachines:
    """launcher.clouds.base.Machines. `launched`: every name that was launched, in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.launched: list[str] = []
        self.machines: dict[str, Machine] = {}
        self.lose_next = False
        """The next launch does its work, and its answer is lost."""

    def launch_machine(self, name: str, task: Mapping[str, Any], secrets: Mapping[str, str]) -> None:
        assert None not in task["envs"].values() and set(secrets) == set(task["secrets"])
        home = self.folder / f"{len(self.launched)}-{name}"
        (home / ".vlaunch").mkdir(parents=True)
        shutil.copy(write_wheel(), home / ".vlaunch")
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        env = {"HOME": str(home), "PATH": path, "PYTHONPATH": str(REPOSITORY), **task["envs"], **secrets}
        (home / "work").mkdir()
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                ["bash", "-c", f"({task['setup']}\n) && {{\n{task['run']}\n}}"],
                stdout=log,
                stderr=log,
                env=env,
                cwd=home / "work",
                start_new_session=True,
            )
        self.launched.append(name)
        self.machines[name] = Machine(task, process, home)
        if self.lose_next:
            self.lose_next = False
            raise ConnectionError("the answer is lost")

    launch_job = launch_machine

    def machine(self, name: str) -> Seen | None:
        return self._seen(self.machines[name]) if name in self.machines else None

    def address(self, name: str, port: int) -> str | None:
        return f"127.0.0.1:{port}" if name in self.machines else None

    def jobs(self, names: Sequence[str]) -> dict[str, Seen]:
        return {name: self._seen(machine) for name, machine in self.machines.items() if name in names}

    def end_machine(self, name: str) -> None:
        self.take(name)
        del self.machines[name]

    def end_jobs(self, names: Sequence[str]) -> None:
        for name in names:
            os.killpg(self.machines[name].process.pid, signal.SIGTERM)
            self.machines[name].process.wait()

    def machine_logs(self, name: str) -> Iterator[str]:
        yield from (self.machines[name].home / "log").read_text().splitlines()

    job_logs = machine_logs

    def take(self, name: str) -> None:
        """As a cloud takes a machine: all of it at once."""
        process = self.machines[name].process
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        for name in self.machines:
            self.take(name)

    def _seen(self, machine: Machine) -> Seen:
        code = machine.process.poll()
        if code is None:
            return Seen("RUNNING", live=True)
        failed = code not in (0, 75, -signal.SIGTERM)
        return Seen(
            "FAILED" if failed else "SUCCEEDED", live=False, problem=f"exit code {code}" if failed else None
        )
