"""docker-compose.yml as compose understands it, and its services as processes of this machine.

What stands in for docker: a container's folders are the mounted ones, names and ports of its network are free ports of
the loopback, its programs are the checkout's. Everything else, above all the command lines and the environment, is
what the file says. test_compose.py compares this reading with docker's own where that is installed.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import REPOSITORY

_VARIABLE = re.compile(r"\$(?:\$|\{(\w+)(?::([-?])((?:[^{}]|\{[^{}]*\})*))?\})")
_PORTS = (21001, 21002, 8000)


@dataclass(frozen=True)
class Service:
    """One entry of `services`. `command`: as docker gets it. `volumes`: folder of the container -> folder here."""

    command: list[str]
    environment: dict[str, str]
    volumes: dict[str, Path]
    health: list[str]
    given: dict[str, Any]


def read_env(file: Path) -> dict[str, str]:
    lines = (re.match(r"(\w+)=(.*)", line) for line in file.read_text().splitlines())
    return {found[1]: found[2].strip("'") for found in lines if found}


def filled_in(value: Any, variables: dict[str, str]) -> Any:
    """A value of the file with its variables."""
    if isinstance(value, dict):
        return {key: filled_in(inner, variables) for key, inner in value.items()}
    if isinstance(value, list):
        return [filled_in(inner, variables) for inner in value]
    if not isinstance(value, str):
        return value

    def put(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        if there := variables.get(found[1]):
            return there
        if found[2] == "?":
            raise ValueError(f"required variable {found[1]} is missing: {found[3]}")
        return str(filled_in(found[3] or "", variables))

    return _VARIABLE.sub(put, value)


def read_services(folder: Path) -> dict[str, Service]:
    variables = read_env(folder / ".env")
    document = filled_in(yaml.safe_load((folder / "docker-compose.yml").read_text()), variables)
    secrets = {f"/run/secrets/{name}": folder / at["file"] for name, at in document["secrets"].items()}
    services = {}
    for name, given in document["services"].items():
        volumes = dict(secrets)
        for volume in given.get("volumes", ()):
            here, there, *_ = volume.split(":")
            volumes[there] = (folder / here).resolve()
        command = given["command"]
        environment = given.get("environment", {})
        services[name] = Service(
            shlex.split(command) if isinstance(command, str) else command,
            {key: str(variables.get(key) if value is None else value) for key, value in environment.items()
             if value is not None or key in variables},
            volumes,
            given.get("healthcheck", {}).get("test", []),
            given,
        )  # fmt: skip
    return services


class Machine:
    """Where the services run. `folder`: of the deployment; `scratch`: of this machine alone."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder = folder
        self.scratch = scratch
        self.ports = {str(port): str(_free_port()) for port in _PORTS}
        self.started: list[subprocess.Popen[bytes]] = []
        program = scratch / "bin/vlaunch"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m launcher "$@"\n')
        program.chmod(0o755)

    @property
    def services(self) -> dict[str, Service]:
        return read_services(self.folder)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['8000']}"

    def start(self, name: str) -> subprocess.Popen[bytes]:
        service = self.services[name]
        with self.log(name).open("wb") as log:
            process = subprocess.Popen(
                [self._here(word, service) for word in service.command],
                stdout=log,
                stderr=log,
                env=self._environment(service),
                cwd=self.scratch,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def healthy(self, name: str) -> bool:
        """What the container's own check says."""
        service = self.services[name]
        kind, *words = [self._here(word, service) for word in service.health]
        command = ["sh", "-c", *words] if kind == "CMD-SHELL" else words
        return subprocess.run(command, env=self._environment(service), capture_output=True).returncode == 0

    def log(self, name: str) -> Path:
        return self.scratch / f"{name}.log"

    def stop(self) -> None:
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _environment(self, service: Service) -> dict[str, str]:
        path = os.pathsep.join(
            [str(self.scratch / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
        )
        given = {key: self._here(value, service) for key, value in service.environment.items()}
        ours = {
            "PATH": path,
            "PYTHONPATH": str(REPOSITORY),
            "HF_HUB_OFFLINE": "1",
            "TMPDIR": str(self.scratch),
        }
        return {"HOME": str(self.scratch), **given, **ours}

    def _here(self, text: str, service: Service) -> str:
        """What a container would find under these names and ports."""
        for there, here in {**service.volumes, "/tmp/ready": self.scratch / "ready"}.items():
            text = re.sub(rf"(?<![\w./]){there}(?![\w-])", str(here), text)
        text = text.replace("http://controller:", "http://127.0.0.1:")
        return re.sub(r"\b(21001|21002|8000)\b", lambda found: self.ports[found[1]], text)


def _free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])
