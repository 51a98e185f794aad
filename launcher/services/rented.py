"""Services on rented machines: a controller with its API on one that stays, workers as jobs that go on elsewhere.

What a service is lies in a folder of its own beside those of this computer (here.py): description, secret and keys,
the last two readable by their owner alone. What has become of it is asked of the cloud, by names that follow from the
service's. Killed anywhere, the same command goes on: what is there is not launched again.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from launcher.clouds.base import Machines, Seen
from launcher.errors import NotReady, RemoteJobFailed, UsageError
from launcher.output import say
from launcher.services.here import RENTED, ServiceView, home
from launcher.services.render import with_controller
from serving.client import answers, workers_known
from serving.service import KEYS, SECRET, STATE, first_key, is_alive, read_state
from serving.signing import (
    SECRET_VARIABLE,
    new_key,
    new_secret,
    read_private,
    read_secret,
    write_private,
)

KEYS_VARIABLE = "VLAUNCH_API_KEYS"
_LOOK_S = 3.0
# One token of the biggest model on the slowest machine.
_PROBE_S = 60.0
_CALL_S = 5.0
# A cloud opens its ports within a minute or two.
_ADDRESS_S = 300.0


class Rented(BaseModel):
    """What was asked for. `controller`, `workers`: their tasks as YAML; with `join` there is no controller of ours.

    `model`: as clients call it. `join`: HOST:PORT of the controller of a service elsewhere.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    model: str
    controller: str | None
    workers: tuple[str, ...]
    port: int
    controller_port: int
    join: str | None = None

    @property
    def text(self) -> str:
        """All that is launched, as one YAML stream."""
        return "---\n".join([*([self.controller] if self.controller else []), *self.workers])

    @property
    def machine(self) -> str | None:
        return None if self.controller is None else str(yaml.safe_load(self.controller)["name"])

    @property
    def jobs(self) -> dict[str, dict[str, Any]]:
        """The workers' tasks by their names."""
        tasks = [yaml.safe_load(text) for text in self.workers]
        return {str(task["name"]): task for task in tasks}


def create(rented: Rented, *, secret: str | None, keys: str | None) -> Path:
    """Write down what to rent; given again, the same goes on.

    Raises:
        NotReady: another service has the name.
    """
    where = home(rented.name)
    if where.exists():
        if is_rented(rented.name) and read(rented.name) == rented:
            return where
        there = (
            (read_state(where) or {}).get("state") != "stopped" if is_rented(rented.name) else is_alive(where)
        )
        if there:
            raise NotReady(
                f"there is another service {rented.name}",
                hint=f"vlaunch stop {rented.name}, or another --name",
            )
        shutil.rmtree(where)
    where.mkdir(parents=True, mode=0o700)
    write_private(where / SECRET, secret or new_secret())
    if rented.join is None:
        write_private(where / KEYS, keys or f"{new_key()} inference,admin\n")
    write_private(where / RENTED, rented.model_dump_json())  # last: with it, all is there
    return where


def is_rented(name: str) -> bool:
    return (home(name) / RENTED).is_file()


def read(name: str) -> Rented:
    return Rented.model_validate_json((home(name) / RENTED).read_bytes())


def bring_up(name: str, cloud: Machines) -> ServiceView:
    """Launch what is not there, and return when a model answers.

    Raises:
        RemoteJobFailed: a part of it ended. NotReady: there is no machine, or no way to it.
    """
    where, rented = home(name), read(name)
    _save(where, "starting", None, rented.join)
    address = rented.join
    if rented.machine is not None:
        address = _controller(rented, where, cloud)
    assert address is not None
    there = cloud.jobs(list(rented.jobs))
    for job, task in rented.jobs.items():
        if job not in there or not there[job].live:
            say(f"launching {job}")
            task = task if rented.join else with_controller(task, address)
            cloud.launch_job(job, task, _secrets(where, task))
    host = address.rpartition(":")[0]
    url = None if rented.join else f"http://{host}:{rented.port}"
    _wait(rented, where, cloud, address, url)
    _save(where, "ready", url, address)
    return view(name, cloud)


def view(name: str, cloud: Machines) -> ServiceView:
    """As `status` shows it: asks the cloud."""
    where, rented = home(name), read(name)
    state = read_state(where) or {"state": "starting"}
    parts = _parts(rented, cloud)
    problems = [f"{part}: {seen.problem}" for part, seen in parts.items() if seen.problem]
    living = any(seen.live for seen in parts.values())
    return ServiceView(
        name=name,
        state=state["state"] if living or state["state"] == "stopped" else "failed" if problems else "gone",
        model=rented.model,
        url=state.get("url"),
        controller=state.get("controller"),
        workers=len(rented.workers),
        restarts=sum(seen.recoveries for seen in parts.values()),
        problem="; ".join(problems) or None,
        processes={part: seen.status for part, seen in parts.items()},
    )


def stop(name: str, cloud: Machines) -> bool:
    """Workers are told to go, for which a cloud may give them little time, and everything is given back.

    False: there was nothing.
    """
    where, rented = home(name), read(name)
    parts = _parts(rented, cloud)
    live = [job for job in rented.jobs if job in parts and parts[job].live]
    if live:
        cloud.end_jobs(live)
    if rented.machine is not None and rented.machine in parts:
        cloud.end_machine(rented.machine)
    _save(where, "stopped", None, None)
    return bool(live) or rented.machine in parts


def logs(name: str, cloud: Machines, *, follow: bool) -> Iterator[str]:
    """Lines of all machines, each with its part's name; new ones as they come while one lives."""
    rented = read(name)
    shown: dict[str, int] = {}
    while True:
        parts = _parts(rented, cloud)
        sources: dict[str, Iterator[str]] = {}
        if rented.machine is not None and rented.machine in parts:
            sources["controller"] = cloud.machine_logs(rented.machine)
        for number, job in enumerate(rented.jobs):
            # SkyPilot does not answer for a job that has no machine now.
            if job in parts and (parts[job].status == "RUNNING" or not parts[job].live):
                sources[f"worker-{number}"] = cloud.job_logs(job)
        for part, lines in sources.items():
            whole = list(lines)
            yield from (f"{part:<11} {line}" for line in whole[shown.get(part, 0) :])
            shown[part] = len(whole)
        if not follow or not any(seen.live for seen in parts.values()):
            return
        time.sleep(_LOOK_S)


def _controller(rented: Rented, where: Path, cloud: Machines) -> str:
    """The address of the controller's machine, which is launched if it is not there."""
    name, task = rented.machine, yaml.safe_load(rented.controller or "")
    assert name is not None
    seen = cloud.machine(name)
    if seen is None or not seen.live:
        say(f"launching {name}")
        cloud.launch_machine(name, task, _secrets(where, task))
    patience = time.monotonic() + _ADDRESS_S
    while (address := cloud.address(name, rented.controller_port)) is None:
        _refuse_dead(name, cloud.machine(name))
        if time.monotonic() > patience:
            raise NotReady(
                f"{name} has no address at port {rented.controller_port}", hint="vlaunch logs shows why"
            )
        time.sleep(_LOOK_S)
    return address


def _wait(rented: Rented, where: Path, cloud: Machines, address: str, url: str | None) -> None:
    """Until the API's model answers, or as many workers as were launched are known to the controller elsewhere."""
    secret, key, told = read_secret(where / SECRET), api_key(where), dict[str, str]()
    while True:
        parts = _parts(rented, cloud)
        for part, seen in parts.items():
            if told.get(part) != seen.status:
                told[part] = seen.status
                say(f"{part} is {seen.status}")
            _refuse_dead(part, seen)
        known = workers_known(address, secret, _CALL_S)
        ready = {said.label for said in known or () if said.state == "ready"}
        if ready >= set(rented.jobs) and (url is None or answers(url, rented.model, key, _PROBE_S)):
            return
        if (
            known is None
            and told.get(address) is None
            and all(seen.status == "RUNNING" for seen in parts.values())
        ):
            told[address] = "unreachable"
            say(f"the controller at {address} does not answer yet; is the port open for this computer?")
        time.sleep(_LOOK_S)


def _parts(rented: Rented, cloud: Machines) -> dict[str, Seen]:
    """What there is of it, the workers first."""
    parts = cloud.jobs(list(rented.jobs))
    if rented.machine is not None and (machine := cloud.machine(rented.machine)) is not None:
        parts[rented.machine] = machine
    return parts


def _refuse_dead(part: str, seen: Seen | None) -> None:
    if seen is not None and not seen.live:
        why = seen.problem or "somebody ended it"
        raise RemoteJobFailed(f"{part} is {seen.status}: {why}", hint="vlaunch logs shows its last words")


def api_key(where: Path) -> str | None:
    """The first key of a rented service; None for workers alone."""
    return first_key(where / KEYS) if (where / KEYS).is_file() else None


def _secrets(where: Path, task: Mapping[str, Any]) -> dict[str, str]:
    """The values of a task's secrets: ours from the folder, others from this computer's environment."""
    ours = {SECRET_VARIABLE: SECRET, KEYS_VARIABLE: KEYS}
    values = {}
    for name in task["secrets"]:
        value = read_private(where / ours[name]) if name in ours else os.environ.get(name)
        if value is None:
            raise UsageError(
                f"{name} is not set any more", hint=f"export {name}, or vlaunch stop and start anew"
            )
        values[name] = value.strip()
    return values


def _save(where: Path, state: str, url: str | None, controller: str | None) -> None:
    """For those who ask without the cloud: `vlaunch chat` finds the API by it."""
    write_private(where / STATE, json.dumps({"state": state, "url": url, "controller": controller}))
