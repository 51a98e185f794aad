"""Services on this computer: what is known of each, from a folder of its own under the state folder.

A service is a supervisor (serving/supervisor.py) with its processes. Everything is in its folder; a lock that the
kernel frees says whether it lives.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from launcher.errors import NotReady, UsageError, VlaunchError
from launcher.settings import state_dir
from serving.service import (
    DESCRIPTION,
    KEYS,
    LOGS,
    SECRET,
    STATE,
    Service,
    api_key,
    is_alive,
    read_service,
    read_state,
)
from serving.signing import new_key, new_secret, write_private
from trainer.artifacts.layout import valid_run_id

# What describes a service on rented machines: launcher/services/rented.py.
RENTED = "rented.json"
_LOOK_S = 0.1
# A drain's longest, and what the supervisor adds to it.
_STOP_S = 150.0


@dataclass(frozen=True, slots=True)
class ServiceView:
    """A service as `status` shows it."""

    name: str
    state: str
    model: str
    url: str | None
    controller: str | None
    workers: int
    restarts: int
    problem: str | None
    processes: dict[str, int | str | None]
    """Process ids here; on rented machines what the cloud says of each."""

    def as_dict(self) -> dict[str, Any]:
        return {"service": self.name, **{key: getattr(self, key) for key in self.__slots__[1:]}}


def folder() -> Path:
    return state_dir() / "services"


def home(name: str) -> Path:
    """Where a service's files are. Raises UsageError for what is no name."""
    if not valid_run_id(name):
        raise UsageError(f"{name!r} is no name", hint="a-z, 0-9 and dashes, at most 40")
    return folder() / name


def names() -> list[str]:
    return sorted(path.parent.name for what in (DESCRIPTION, RENTED) for path in folder().glob(f"*/{what}"))


def find(name: str | None) -> str | None:
    """The service of that name or unique beginning; None where it is not one."""
    if name is None:
        return None
    known = names()
    begun = [one for one in known if one.startswith(name)]
    return name if name in known else begun[0] if len(begun) == 1 else None


def view(name: str) -> ServiceView:
    where = home(name)
    service = read_service(where)
    seen = read_state(where) or {}
    state = seen.get("state", "starting")
    if not is_alive(where) and state not in ("stopped", "failed"):
        state = "killed"
    live = {
        part: pid for part, pid in seen.get("processes", {}).items() if state not in ("stopped", "killed")
    }
    return ServiceView(
        name=name,
        state=state,
        model=service.model,
        url=seen.get("url"),
        controller=seen.get("controller") or service.join,
        workers=service.workers,
        restarts=seen.get("restarts", 0),
        problem=seen.get("problem"),
        processes=live,
    )


def create(service: Service, *, keys_needed: bool, secret: str | None) -> Path:
    """Write down what to run; an ended service of the same name makes room.

    Raises:
        NotReady: a service of that name is running.
    """
    where = home(service.name)
    if is_alive(where) or ((where / RENTED).exists() and (read_state(where) or {}).get("state") != "stopped"):
        raise NotReady(
            f"the service {service.name} is running", hint=f"vlaunch stop {service.name}, or another --name"
        )
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir(parents=True, mode=0o700)
    write_private(where / SECRET, secret or new_secret())
    if keys_needed:
        write_private(where / KEYS, f"{new_key()} inference,admin\n")
        service = service.model_copy(update={"api": (*service.api, "--api-key-file", str(where / KEYS))})
    (where / DESCRIPTION).write_text(service.model_dump_json())
    return where


def start(where: Path, *, leashed: bool) -> IO[bytes] | None:
    """Start the supervisor. With a leash it ends when the returned pipe is closed, or with this process."""
    with (where / "supervisor.log").open("ab") as out:
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "serving.supervisor", "--home", str(where)),
                *(["--leash"] if leashed else []),
            ],
            stdin=subprocess.PIPE if leashed else subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in this terminal is ours to answer
        )
    return process.stdin


def wait_until_ready(name: str) -> ServiceView:
    """Returns when its model has answered. Raises VlaunchError with what went wrong, and where to read more."""
    where = home(name)
    while True:
        alive = is_alive(where)  # asked first: the last state is written before the end
        seen = view(name)
        if seen.state == "ready":
            return seen
        if seen.state in ("failed", "stopped") or (not alive and (where / STATE).exists()):
            raise VlaunchError(
                f"the service did not start: {seen.problem or seen.state}", hint=f"vlaunch logs {name}"
            )
        time.sleep(_LOOK_S)


def stop(name: str) -> bool:
    """Let it finish what it has, and end it. False: it was not running."""
    where = home(name)
    seen = read_state(where)
    if not is_alive(where) or seen is None:
        return False
    try:
        os.kill(int(seen["pid"]), signal.SIGTERM)
    except ProcessLookupError:
        return False
    deadline = time.monotonic() + _STOP_S
    while is_alive(where):
        if time.monotonic() > deadline:
            raise VlaunchError(
                f"{name} does not end", hint=f"kill -9 {seen['pid']} ends it with all its processes"
            )
        time.sleep(_LOOK_S)
    return True


def key(name: str) -> str | None:
    return api_key(home(name))


def logs(name: str, *, follow: bool) -> Iterator[str]:
    """Lines of all its processes, each with the process's name; new ones as they come while it lives."""
    where = home(name)
    shown: dict[Path, int] = {}
    while True:
        alive = is_alive(where)
        for path in [where / "supervisor.log", *sorted((where / LOGS).glob("*.log"))]:
            yield from _new_lines(path, shown)
        if not follow or not alive:
            return
        time.sleep(_LOOK_S)


def _new_lines(path: Path, shown: dict[Path, int]) -> Iterator[str]:
    if not path.exists():
        return
    with path.open("rb") as log:
        log.seek(shown.get(path, 0))
        data = log.read()
    end = data.rfind(b"\n") + 1
    shown[path] = shown.get(path, 0) + end
    for line in data[:end].decode(errors="replace").splitlines():
        yield f"{path.stem:<11} {line}"


def new_name(model: str) -> str:
    """A name that no other service has: of the model's, and some letters."""
    stem = "".join(sign if sign.isalnum() and sign.isascii() else "-" for sign in model.lower()).strip("-")
    return f"{stem[:30].strip('-') or 'model'}-{secrets.token_hex(2)}"
