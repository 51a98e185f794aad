"""A plan becomes a SkyPilot task: the template's text as a dict, changed where the request says so.

Pure. What is printed by --dry-run, stored as task.yaml and launched is this one text; only the values of secrets are
filled in by clouds/sky.py, and never written anywhere here.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import yaml

import task_templates
from launcher.catalog import NO_SPOT
from launcher.plan import Candidate, Plan, TrainRequest
from launcher.shipment import Shipment
from trainer.artifacts.layout import run_prefix
from trainer.artifacts.store import join_uri
from trainer.errors import NotReady

# An id of an AWS zone, as SkyPilot's catalog has it; machines are asked for by the account's own name of it.
_ZONE_ID = re.compile(r".*-az\d+")
# What may come from a stored task: how large a machine and where. All else is this program's own.
_SIZES = ("accelerators", "cpus", "disk_size", "instance_type", "memory")
_PLACE = ("infra", "use_spot", *_SIZES)
# What a machine needs only where it makes the run; here the run is in its store already.
_TO_MAKE_A_RUN = ("MODEL_SIZE", "TRAIN_DATA", "VLAUNCH_STORE", "TRAIN_OPTIONS")
# Where our wheel lies on a machine.
_WHEELS = "~/.vlaunch"


def run_uri(store: str, name: str) -> str:
    """Where a run lives in a store."""
    return join_uri(store, run_prefix(name))


def job_name(run_uri: str) -> str:
    """The managed job of a run, found again by this name alone: two stores may have a run of one name."""
    run = run_uri.rstrip("/").rpartition("/")[2]
    return f"{run}-{hashlib.sha256(run_uri.encode()).hexdigest()[:8]}"


def render_train(plan: Plan, request: TrainRequest, shipment: Shipment) -> str:
    """The YAML of a training task. No secret is ever in it."""
    uri = run_uri(request.store, plan.name)
    task: dict[str, Any] = _ours(uri, shipment)
    task["num_nodes"] = request.num_nodes
    if plan.notional:
        # This machine: no accelerator is asked for, and no disk is bought.
        task["resources"] = {"cpus": f"{request.cores}+", "use_spot": request.spot}
    else:
        resources = task["resources"]
        del resources["accelerators"], resources["use_spot"]
        resources["ordered"] = _places(plan)
    return _dump(task)


def trusted_task(stored: bytes, run_uri: str, shipment: Shipment) -> dict[str, Any]:
    """The task that a run was created with: its sizes and places, and nothing else that this program did not write.

    Whoever can write to the store must not be able to run commands here, or on the user's machines, or to learn a
    secret by naming an address of theirs.

    Raises:
        NotReady: setup and run are not those of this version's template, or the resources ask for other things.
    """
    task: dict[str, Any] = yaml.safe_load(stored)
    ours = _ours(run_uri, shipment)
    resources = task.get("resources", {})
    foreign = set(resources) - {"ordered", "job_recovery", *_PLACE}
    for place in resources.get("ordered", []):
        foreign |= set(place) - set(_PLACE)
    if foreign or any(task.get(part) != ours[part] for part in ("setup", "run")):
        raise NotReady(
            f"{run_uri}/task.yaml would run other commands than this version of vlaunch",
            hint="if an older version created the run, delete task.yaml there and give the same train command again",
        )
    recovery = ours["resources"]["job_recovery"] if "job_recovery" in resources else None
    ours["num_nodes"] = int(task.get("num_nodes", 1))
    ours["resources"] = {**resources, **({"job_recovery": recovery} if recovery else {})}
    return ours


def _ours(run_uri: str, shipment: Shipment) -> dict[str, Any]:
    """The template for one run, with what this computer sends along."""
    task: dict[str, Any] = yaml.safe_load(task_templates.load("train"))
    task["name"] = job_name(run_uri)
    for made_there in _TO_MAKE_A_RUN:
        del task["envs"][made_there]
    task["envs"] |= {"VLAUNCH_RUN": run_uri, **shipment.envs}
    task["resources"]["job_recovery"]["strategy"] = shipment.strategy
    if shipment.wheel is not None:
        there = f"{_WHEELS}/{shipment.wheel.name}"
        task["file_mounts"] = {there: str(shipment.wheel)}
        task["envs"] |= {
            "VLAUNCH_WHEEL": there,
            "VLAUNCH_EXTRAS": ",".join(shipment.extras),
            "VLAUNCH_MODULES": " ".join(shipment.modules),
        }
    if shipment.secrets:
        task["secrets"] = dict.fromkeys(shipment.secrets)
    return task


def _places(plan: Plan) -> list[dict[str, Any]]:
    """The candidates as SkyPilot's `ordered`, each place and market once."""
    places: list[dict[str, Any]] = []
    for candidate in plan.candidates:
        place = {"infra": infra(candidate), "use_spot": use_spot(candidate), **_machine(candidate, plan)}
        if place not in places:
            places.append(place)
    return places


def infra(candidate: Candidate) -> str:
    """Where a candidate is, as SkyPilot writes it: aws/us-east-1/us-east-1a, slurm/CLUSTER/PARTITION."""
    zone = None if _ZONE_ID.fullmatch(candidate.zone) else candidate.zone
    return "/".join(part for part in (candidate.cloud, candidate.region, zone) if part)


def use_spot(candidate: Candidate) -> bool:
    return candidate.market == "spot" and candidate.cloud not in NO_SPOT


def _machine(candidate: Candidate, plan: Plan) -> dict[str, str]:
    accelerator = candidate.accelerator or (plan.accelerator if plan.has_accelerator else "")
    return {"accelerators": accelerator} if accelerator else {"cpus": "2+"}


class _Dumper(yaml.SafeDumper):
    """Scripts as literal blocks, so that a person can read what will be run."""


def _literal(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _literal)


def _dump(task: dict[str, Any]) -> str:
    return yaml.dump(task, Dumper=_Dumper, sort_keys=False, width=110)
