"""One machine of the local cloud: a process group with an empty disk, that can be taken away.

It runs a task's setup and run as SkyPilot does on a node, with the same environment variables. What a real spot
machine loses with its disk is lost here too: the folder is removed when the machine is.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# setup and run are separate shells, as on a node: a variable set in one is not seen in the other.
_BOOT = 'bash "$1/setup.sh" && exec bash "$1/run.sh"'

# A killed process is gone within milliseconds; longer only where a disk holds it.
_DEATH_S = 5.0


class Machine:
    """A running machine. Everything it starts belongs to one process group, which dies as one."""

    def __init__(self, process: subprocess.Popen[bytes], disk: Path, record: Path) -> None:
        self._process = process
        self._disk = disk
        self._record = record

    @classmethod
    def start(
        cls, task: Mapping[str, Any], disk: Path, log: Path, record: Path, environment: Mapping[str, str]
    ) -> Machine:
        """Boot: write the scripts to an empty disk and run them. `record` survives the caller's death."""
        shutil.rmtree(disk, ignore_errors=True)
        (disk / "tmp").mkdir(parents=True)
        (disk / "setup.sh").write_text(task.get("setup") or "")
        (disk / "run.sh").write_text(task["run"])
        _write(record, {"disk": str(disk)})  # before it lives: whoever finds this finds its processes
        with log.open("ab") as out:
            process = subprocess.Popen(
                ["bash", "-c", _BOOT, "machine", str(disk)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=disk,
                env=_environment(task, disk, environment),
                start_new_session=True,
            )
        _write(record, {"disk": str(disk), "pid": process.pid, "started": process_start(process.pid)})
        return cls(process, disk, record)

    def wait(self, timeout_s: float) -> int | None:
        """The exit code, or None if it is still up after `timeout_s`."""
        try:
            return self._process.wait(max(0.0, timeout_s))
        except subprocess.TimeoutExpired:
            return None

    def notify(self) -> None:
        """Tell everything on it that it is taken away soon."""
        _signal_group(self._process.pid, signal.SIGTERM)

    def ask_to_stop(self) -> None:
        """Tell everything on it to save and end; it stays until that is done."""
        _signal_group(self._process.pid, signal.SIGINT)

    def destroy(self) -> int:
        """Take it away at once, with its disk. Returns the exit code."""
        _signal_group(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        self._record.unlink(missing_ok=True)
        shutil.rmtree(self._disk, ignore_errors=True)
        return code


def destroy_orphan(record: Path) -> bool:
    """Take away a machine whose keeper died. Returns whether it was still running."""
    try:
        disk = Path(json.loads(record.read_text())["disk"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    groups = _groups_working_on(disk)
    for group in groups:
        _signal_group(group, signal.SIGKILL)
    deadline = time.monotonic() + _DEATH_S
    while _groups_working_on(disk) and time.monotonic() < deadline:
        time.sleep(0.01)  # nothing of it may speak after it has been declared gone
    record.unlink(missing_ok=True)
    shutil.rmtree(disk, ignore_errors=True)
    return bool(groups)


def process_start(pid: int) -> int | None:
    """When a live process was started, in clock ticks since boot: with the pid, its identity. None if it is gone;
    one that nobody has reaped yet is gone too."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return None if fields[0] in "ZX" else int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


def _environment(task: Mapping[str, Any], disk: Path, extra: Mapping[str, str]) -> dict[str, str]:
    declared = {key: str(value) for key, value in (task.get("envs") or {}).items()}
    # The interpreter of this checkout, as a node's own one: no activation needed.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {
        **os.environ,
        "SKYPILOT_NODE_RANK": "0",
        "SKYPILOT_NUM_NODES": "1",
        "SKYPILOT_NODE_IPS": "127.0.0.1",
        **declared,
        **extra,
        "PATH": path,
        "TMPDIR": str(disk / "tmp"),
    }


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        pass


def _groups_working_on(disk: Path) -> set[int]:
    """Process groups with a live process on this disk; no pid is trusted, as it may be another's by now."""
    groups = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cwd").readlink().is_relative_to(disk) and process_start(
                    int(entry.name)
                ) is not None:
                    groups.add(os.getpgid(int(entry.name)))
            except OSError:
                continue
    return groups


def _write(path: Path, made: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    arriving = path.with_suffix(".part")
    arriving.write_text(json.dumps(made))
    arriving.replace(path)
