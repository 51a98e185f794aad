"""Options of `serve` on rented machines: which cards, where, for how much, and the tasks that say so."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.errors import NotReady, UsageError, require_extra
from launcher.planning.catalog import OWN, Catalog
from launcher.planning.fit import Model as Sizes
from launcher.planning.fit import model_of
from launcher.planning.places import Candidate
from launcher.planning.serving import ServePlan, ServeRequest, cheapest_cards, make_serve_plan
from launcher.render import infra
from launcher.services.here import new_name
from launcher.services.model import Model
from launcher.services.render import Cargo, render_controller, render_worker
from launcher.services.rented import KEYS_VARIABLE, Rented
from launcher.services.request import api_words, controller_address, engine_words, own_keys
from launcher.shipment import ADDRESSES, SECRETS, STORES
from launcher.values import Gpus, Infra
from launcher.wheel import wheel_path
from serving.memory import Bits
from serving.protocol import API_PORT, CONTROLLER_PORT
from serving.signing import SECRET_VARIABLE, read_secret
from trainer.artifacts.layout import CONFIG, export_key
from trainer.artifacts.store import open_store
from trainer.config import decode_config
from trainer.recipes import get_recipe

# Of all conversations that a worker answers at a time, where nothing else is known: four of the documents' length.
_TOKENS = 4 * 2048
_CPU = "cpu"
# Of an export: the model's configuration, or that of an adapter's base.
_SHAPES = ("config.json", "base/config.json")


@dataclass(frozen=True, slots=True)
class RentedRequest:
    """A service to rent; `plan` is None where workers have no GPUs. Secrets are kept apart from what is written."""

    rented: Rented
    plan: ServePlan | None
    secret: str | None
    keys: str | None
    usd_per_hour: float | None
    """Of all workers; None where no price is known."""


def rent(model: Model, given: Mapping[str, Any]) -> RentedRequest:
    """Raises UsageError, NotReady."""
    require_extra("serve", "aiohttp", needed_for="vlaunch serve")
    _refuse_local(model, given)
    join = controller_address(given["controller_ip"])
    if join is None and given["secret_file"]:
        raise UsageError("--secret-file is for --controller-ip", hint="a new service makes its own secret")
    secret = (
        read_secret(Path(given["secret_file"]) if given["secret_file"] else None).decode() if join else None
    )
    catalog = Catalog(Path(given["catalog"]) if given["catalog"] else None)
    plan = _plan(model, given, catalog)
    price = plan.candidates[0].usd_per_hour if plan and plan.candidates else None
    return RentedRequest(
        rented=_rented(model, given, plan, join),
        plan=plan,
        secret=secret,
        keys=own_keys(given),
        usd_per_hour=None if price is None else price * given["workers"],
    )


def _rented(model: Model, given: Mapping[str, Any], plan: ServePlan | None, join: str | None) -> Rented:
    """The tasks of the service."""
    name, client_name = given["name"] or new_name(model.name), given["model_name"] or model.name
    port, controller_port = given["port"] or API_PORT, given["controller_port"] or CONTROLLER_PORT
    places = plan.candidates if plan else _cpu_places(given["infra"])
    options = engine_words(given if plan is None else {**given, "num_gpus": _count(plan)})
    cargo = _worker_cargo(model, given["engine"])
    workers = tuple(
        render_worker(f"{name}-worker-{number}", model.source, client_name, options, places, join, cargo)
        for number in range(given["workers"])
    )
    controller = None
    if join is None:
        where = _place(given["infra"], plan)
        controller = render_controller(
            f"{name}-controller", where, port, controller_port, api_words(given), _controller_cargo()
        )
    return Rented(
        name=name,
        model=client_name,
        controller=controller,
        workers=workers,
        port=port,
        controller_port=controller_port,
        join=join,
    )


def _refuse_local(model: Model, given: Mapping[str, Any]) -> None:
    """What only this machine has."""
    if any(place.cloud == "local" for place in given["infra"]):
        raise UsageError("this machine and rented ones are two services", hint="--infra local, or without it")
    if model.source.startswith(("/", "file:")):
        raise UsageError(
            f"rented machines cannot read {model.source}",
            hint="a run in a store in a bucket (--store s3://...), or a Hugging Face id",
        )
    if given["adapter"]:
        raise UsageError(
            "--adapter names folders of this machine", hint="serve the run of the adapter by itself"
        )


def _plan(model: Model, given: Mapping[str, Any], catalog: Catalog) -> ServePlan | None:
    """Which cards, by memory; None for workers without any.

    Raises:
        UsageError: no card is named where there is no list of them.
        NotReady: it fits nothing that is sold there.
    """
    if given["device"] == _CPU:
        return None
    places: Sequence[Infra] = given["infra"]
    request = ServeRequest(
        model=_sizes(model),
        name=model.name,
        bits=_bits(given),
        gpus=given["gpus"] or Gpus("", 1),
        tokens=_TOKENS,
        infra=tuple(places),
        spot=given["spot"],
    )
    if given["gpus"] is None:
        if any(place.cloud in OWN for place in places):
            raise UsageError(
                f"which GPUs does {places[0]} have?", hint="--gpus NAME[:COUNT], or --device cpu for none"
            )
        request = replace(request, gpus=cheapest_cards(request, catalog))
    plan = make_serve_plan(request, catalog)
    if plan.problems:
        raise NotReady(
            "; ".join(problem.what for problem in plan.problems),
            hint=" or ".join(problem.fix for problem in plan.problems),
        )
    return plan


def _sizes(model: Model) -> Sizes:
    """Of a run by its configuration, of an id by its name."""
    if "://" in model.source:
        store = open_store(model.source)
        config = decode_config(store.get(CONFIG), f"{model.source}/{CONFIG}")
        exported = [key for key in map(export_key, _SHAPES) if store.size(key) is not None]
        return model_of(config, json.loads(store.get(exported[0])) if exported else None)
    config = get_recipe("7").config
    named = config.model.model_copy(update={"base": model.source})
    return model_of(config.model_copy(update={"model": named}), None)


def _bits(given: Mapping[str, Any]) -> Bits:
    if given["load_8bit"] and given["load_4bit"]:
        raise UsageError("--load-8bit and --load-4bit exclude each other", hint="give one of them")
    return 8 if given["load_8bit"] else 4 if given["load_4bit"] else 16


def _count(plan: ServePlan) -> int:
    return Gpus.parse(plan.accelerator).number


def _place(places: Sequence[Infra], plan: ServePlan | None) -> str:
    """Of the controller: where its first worker comes to be, to be near it."""
    if plan is None or places[0].region or places[0].cloud in OWN:
        return str(places[0])
    first = replace(plan.candidates[0], zone="")
    return infra(first)


def _cpu_places(places: Sequence[Infra]) -> list[Candidate]:
    """Places without a card, in the order given; SkyPilot finds the machine."""
    return [
        Candidate(
            place.cloud, place.region or "", place.zone or "", "", "on-demand", None, None, None, "none"
        )
        for place in places
    ]


def _controller_cargo() -> Cargo:
    modules = ("serving", "starlette", "uvicorn", "aiohttp")
    return Cargo(wheel_path(), ("serve",), modules, (SECRET_VARIABLE, KEYS_VARIABLE))


def _worker_cargo(model: Model, engine: str) -> Cargo:
    modules = [
        "serving",
        "uvicorn",
        "aiohttp",
        *(("vllm",) if engine == "vllm" else ("torch", "transformers")),
    ]
    if needed := STORES.get(model.source.partition("://")[0]):
        modules.append(needed)
    secrets = [name for name in SECRETS if os.environ.get(name) and name != "WANDB_API_KEY"]
    return Cargo(
        wheel=wheel_path(),
        extras=("serve", "vllm" if engine == "vllm" else "train"),
        modules=tuple(modules),
        secrets=(SECRET_VARIABLE, *secrets),
        envs={name: os.environ[name] for name in ADDRESSES if os.environ.get(name)},
    )
