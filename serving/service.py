"""A service on one machine, as it lies in its folder: what to run, and what has become of it.

DIR/service.json   what to run, written once by who starts it
DIR/secret, keys   readable by their owner alone
DIR/state.json     what has become of it, replaced whenever that changes
DIR/logs/          what each process prints
DIR/lock           held while the supervisor (serving/supervisor.py) lives
"""

from __future__ import annotations

import fcntl
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

DESCRIPTION, STATE, LOCK, SECRET, KEYS, LOGS = "service.json", "state.json", "lock", "secret", "keys", "logs"


class Service(BaseModel):
    """What to run on this machine.

    Attributes:
        model: as clients call it. worker: the words of a worker's command line.
        join: the controller of a service elsewhere; then only workers run here.
        api: the words of the API's command line.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    model: str
    worker: tuple[str, ...]
    workers: int = 1
    num_gpus: int = 1
    host: str = "127.0.0.1"
    port: int = 0
    controller_port: int = 0
    api: tuple[str, ...] = ()
    join: str | None = None


@dataclass
class State:
    """What has become of it."""

    pid: int
    state: Literal["starting", "ready", "stopping", "stopped", "failed"] = "starting"
    url: str | None = None
    controller: str | None = None
    problem: str | None = None
    restarts: int = 0
    processes: dict[str, int | None] = field(default_factory=dict)


def read_service(home: Path) -> Service:
    return Service.model_validate_json((home / DESCRIPTION).read_bytes())


def is_alive(home: Path) -> bool:
    """Whether a supervisor holds the lock of this home."""
    try:
        with (home / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except BlockingIOError:
        return True
    return False


def read_state(home: Path) -> dict[str, Any] | None:
    """The newest state; None before there is one."""
    try:
        return dict(json.loads((home / STATE).read_text()))
    except (OSError, ValueError):
        return None


def api_key(home: Path) -> str | None:
    """The first key of the service; None where it needs none."""
    service = read_service(home)
    if "--api-key-file" not in service.api:
        return None
    return first_key(Path(service.api[service.api.index("--api-key-file") + 1]))


def first_key(file: Path) -> str | None:
    """Of a file of keys, as serving/api/keys.py reads it."""
    lines = (line.partition("#")[0].split() for line in file.read_text().splitlines())
    return next((words[0] for words in lines if words), None)
