"""A plan becomes a SkyPilot task: the template's text as a dict, changed where the request says so.

Pure. What is printed by --dry-run, stored as task.yaml and launched is this one text.
"""

from __future__ import annotations

from typing import Any

import yaml

import task_templates
from launcher.plan import Candidate, Plan, TrainRequest
from trainer.artifacts.layout import run_prefix
from trainer.artifacts.store import join_uri
from trainer.errors import NotReady

# The parts of a task that a machine executes.
_EXECUTED = ("setup", "run", "envs")


def run_uri(store: str, name: str) -> str:
    """Where a run lives in a store."""
    return join_uri(store, run_prefix(name))


def render_train(plan: Plan, request: TrainRequest) -> str:
    """The YAML of a training task. No secret is ever in it."""
    task: dict[str, Any] = yaml.safe_load(task_templates.load("train"))
    task["name"] = plan.name
    task["num_nodes"] = request.num_nodes
    task["envs"]["VLAUNCH_RUN"] = run_uri(request.store, plan.name)
    resources = task["resources"]
    resources["use_spot"] = request.spot
    if plan.notional:
        # This machine: no accelerator is asked for, and no disk is bought.
        task["resources"] = {"cpus": f"{request.cores}+", "use_spot": request.spot}
    else:
        machine = {"accelerators": plan.accelerator} if plan.has_accelerator else {"cpus": "2+"}
        places = [{"infra": f"{place.cloud}/{place.region}", **machine} for place in _one_per_region(plan)]
        del resources["accelerators"]
        resources["ordered"] = places
    return _dump(task)


def trusted_task(stored: bytes, run_uri: str) -> dict[str, Any]:
    """The task that a run was created with, if this program would write the same commands.

    Whoever can write to the store must not be able to run commands on this computer.

    Raises:
        NotReady: setup, run or environment are not those of this version's template.
    """
    task: dict[str, Any] = yaml.safe_load(stored)
    ours: dict[str, Any] = yaml.safe_load(task_templates.load("train"))
    ours["envs"]["VLAUNCH_RUN"] = run_uri
    if [task.get(part) for part in _EXECUTED] != [ours[part] for part in _EXECUTED]:
        raise NotReady(
            f"{run_uri}/task.yaml would run other commands than this version of vlaunch",
            hint="if an older version created the run, delete task.yaml there and give the same train command again",
        )
    return task


def _one_per_region(plan: Plan) -> list[Candidate]:
    return list({(c.cloud, c.region): c for c in reversed(plan.candidates)}.values())[::-1]


class _Dumper(yaml.SafeDumper):
    """Scripts as literal blocks, so that a person can read what will be run."""


def _literal(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _literal)


def _dump(task: dict[str, Any]) -> str:
    return yaml.dump(task, Dumper=_Dumper, sort_keys=False, width=110)
