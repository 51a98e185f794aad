"""Other machines that the same run fits, and that cost less than the asked ones where those fit too. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from launcher.planning.catalog import OWN, Catalog
from launcher.planning.plan import Plan, TrainRequest, make_plan
from launcher.values import Gpus
from trainer.hardware import CARDS

_PROPOSED = 3


class Alternative(NamedTuple):
    """Something to write on the command line instead, and what it brings."""

    options: str
    usd: float
    hours: float


def cheaper_machines(request: TrainRequest, plan: Plan, catalog: Catalog) -> list[Alternative]:
    """At most three kinds of machines, the cheapest first, and the other market where that costs less; all fit.

    Cost: one plan for each kind of machine that is sold, some milliseconds each on a full catalog.
    """
    if request.local or request.gpus is None and not request.recipe.accelerator:
        return []
    now = plan.candidates[0].usd if plan.candidates and not plan.problems else None
    found = [*_other_market(request, plan, now), *_other_machines(request, plan, catalog, now)]
    return sorted(found, key=lambda other: other.usd)[:_PROPOSED]


def _other_market(request: TrainRequest, plan: Plan, now: float | None) -> Iterator[Alternative]:
    spot = plan.usd_spot
    if not request.spot and now is not None and spot is not None and spot < now:
        yield Alternative("--spot", spot, plan.hours)


def _other_machines(
    request: TrainRequest, plan: Plan, catalog: Catalog, now: float | None
) -> Iterator[Alternative]:
    clouds = [infra.cloud for infra in request.infra if infra.cloud not in OWN]
    for name, count in catalog.machines(clouds, CARDS):
        gpus = Gpus(name, count)
        if str(gpus) == plan.accelerator:
            continue
        other = make_plan(replace(request, gpus=gpus), catalog)
        first = other.candidates[0] if other.candidates else None
        if other.problems or other.fits is not True or first is None or first.usd is None:
            continue
        if first.hours is not None and (now is None or first.usd < now):
            yield Alternative(f"--gpus {gpus}", first.usd, first.hours)
