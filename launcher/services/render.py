"""A service on rented machines as SkyPilot tasks: the templates' text as dicts, changed where the request says so.

Pure. What --dry-run prints, what lies in the service's folder and what is launched is this one text; values of secrets
are filled in when a task is handed over, and never written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import task_templates
from launcher.errors import UsageError
from launcher.planning.places import Candidate
from launcher.render import WHEELS, dump, infra, use_spot
from serving.protocol import WORKER_PORT

# Of these SkyPilot cannot open ports: machines there reach each other anyhow, and are shared, so that a worker takes a
# port that is free.
UNGUARDED = ("slurm", "ssh")


@dataclass(frozen=True, slots=True)
class Cargo:
    """What goes with each task: our wheel, what must be there beside it, names of secrets, addresses of stores."""

    wheel: Path | None
    extras: tuple[str, ...]
    modules: tuple[str, ...]
    secrets: tuple[str, ...]
    envs: Mapping[str, str] = field(default_factory=dict)


def render_controller(
    name: str, place: str, port: int, controller_port: int, api_options: Sequence[str], cargo: Cargo
) -> str:
    """The YAML of the machine that stays. `place`: CLOUD[/REGION[/ZONE]]."""
    task = _filled("controller", name, cargo)
    task["resources"]["infra"] = place
    task["resources"]["ports"] = [controller_port, port]
    if place.partition("/")[0] in UNGUARDED:
        del task["resources"]["ports"]
    task["envs"] |= {
        "CONTROLLER_PORT": str(controller_port),
        "API_PORT": str(port),
        "API_OPTIONS": _line(api_options),
    }
    return dump(task)


def render_worker(
    name: str,
    model: str,
    model_name: str,
    options: Sequence[str],
    places: Sequence[Candidate],
    controller: str | None,
    cargo: Cargo,
) -> str:
    """The YAML of one worker. `controller`: HOST:PORT; None where that is found out only when it runs.

    Raises:
        UsageError: places that need two kinds of workers; an option that is no plain word.
    """
    task = _filled("worker", name, cargo)
    shared = [place for place in places if place.cloud in UNGUARDED]
    if shared and len(shared) < len(places):
        raise UsageError(
            f"{shared[0].cloud} and clouds need workers of their own",
            hint="start those of one, then those of the other with --controller-ip",
        )
    resources = task["resources"]
    for key in ("accelerators", "use_spot", "ports"):
        del resources[key]
    resources["ordered"] = []
    for place in places:
        entry = {"infra": infra(place), "use_spot": use_spot(place), **_machine(place)}
        if not shared:
            entry["ports"] = [WORKER_PORT]
        if entry not in resources["ordered"]:
            resources["ordered"].append(entry)
    del task["envs"]["MODEL_SIZE"]  # for who starts the template by itself
    task["envs"] |= {
        "MODEL": model,
        "MODEL_NAME": model_name,
        "WORKER_PORT": "0" if shared else str(WORKER_PORT),
        "WORKER_LABEL": name,
        "WORKER_OPTIONS": _line(options),
    }
    return dump(with_controller(task, controller) if controller else task)


def with_controller(task: Mapping[str, Any], address: str) -> dict[str, Any]:
    """A worker's task that knows its controller. `address`: HOST:PORT."""
    host, _, port = address.rpartition(":")
    where = {"CONTROLLER_IP": host, "CONTROLLER_PORT": port}
    return {**task, "envs": {**task["envs"], **where}}


def _filled(template: str, name: str, cargo: Cargo) -> dict[str, Any]:
    task: dict[str, Any] = yaml.safe_load(task_templates.load(template))
    task["name"] = name
    task["envs"] |= {
        "VLAUNCH_EXTRAS": ",".join(cargo.extras),
        "VLAUNCH_MODULES": " ".join(cargo.modules),
        **cargo.envs,
    }
    if cargo.wheel is not None:
        there = f"{WHEELS}/{cargo.wheel.name}"
        task["file_mounts"] = {there: str(cargo.wheel)}
        task["envs"]["VLAUNCH_WHEEL"] = there
    task["secrets"] |= dict.fromkeys(cargo.secrets)
    return task


def _line(words: Sequence[str]) -> str:
    """Words that the template's shell parts again: it interprets no quotes there."""
    for word in words:
        if not re.fullmatch(r"[\w./:@=,+-]+", word):
            raise UsageError(f"{word!r} cannot be handed to a rented machine", hint="plain words only")
    return " ".join(words)


def _machine(place: Candidate) -> dict[str, str]:
    return {"accelerators": place.accelerator} if place.accelerator else {"cpus": "4+", "memory": "8+"}
