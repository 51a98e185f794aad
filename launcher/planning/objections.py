"""What keeps a plan from running, and what could go wrong with one that runs: in words, for people. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from launcher.errors import Problem
from launcher.planning.catalog import OWN
from launcher.planning.fit import Fit, Model
from launcher.planning.lives import SOURCE
from launcher.planning.places import EGRESS_USD_PER_GB, LEAST_USEFUL, Bill, Candidate, Workload
from launcher.values import Duration, Gpus
from trainer.hardware import CARDS

if TYPE_CHECKING:
    from launcher.planning.plan import TrainRequest


def problems(request: TrainRequest, fit: Fit | None, chosen: Sequence[Candidate]) -> Iterator[Problem]:
    """Why it cannot run as asked. A plan of this machine has none: its limits stop it at a checkpoint."""
    if fit:
        yield from fit.problems
    if request.local:
        return
    if not chosen:
        yield _nowhere(request)
        return
    yield from _limits(request, chosen)


def risks(
    request: TrainRequest,
    model: Model,
    fit: Fit | None,
    chosen: Sequence[Candidate],
    bill: Bill | None,
    work: Workload,
) -> Iterator[str]:
    """What to know before one agrees."""
    if model.assumed:
        yield model.assumed
    if fit:
        yield from fit.notes
        if fit.fits is None and fit.card not in CARDS:
            yield f"the speed of {fit.card} is not known here either: the hours are a guess"
    if not chosen:
        return
    yield from _of_machines(request, chosen)
    if chosen[0].market == "spot" and bill:
        yield from _of_spot(request, chosen, bill, work)
    if request.max_cost_usd is not None and chosen[0].usd is None:
        yield "no price is known there: --max-cost is not watched"
    if not request.local and request.store.startswith("file:") and chosen[0].cloud in OWN:
        yield f"{request.store} has to be on a disk that all machines share"


def launch_problems(request: TrainRequest) -> list[Problem]:
    """What `train` will ask for besides, and a plan alone does not need."""
    bought = any(infra.cloud not in (*OWN, "local") for infra in request.infra)
    if bought and request.store.startswith("file:"):
        return [Problem(f"the store {request.store} is on this machine", "give --store s3://... or gs://...")]
    return []


def _nowhere(request: TrainRequest) -> Problem:
    places = ", ".join(str(infra) for infra in request.infra)
    wanted = str(request.gpus) if request.gpus else "a CPU machine"
    market = " on spot" if request.spot else ""
    return Problem(
        f"no known place in {places} has {wanted}{market}",
        "another --infra or --gpus; `vlaunch plan` without --infra looks everywhere",
    )


def _limits(request: TrainRequest, chosen: Sequence[Candidate]) -> Iterator[Problem]:
    cheapest = min((place.usd for place in chosen if place.usd is not None), default=None)
    unpriced = any(place.usd is None for place in chosen)
    if request.max_cost_usd is not None and cheapest and not unpriced and cheapest > request.max_cost_usd:
        yield Problem(
            f"the plan costs ${cheapest:,.0f}, more than --max-cost {request.max_cost_usd:g}",
            _cheaper_advice(request),
        )
    if request.deadline_s is None:
        return
    quickest = min((place.hours for place in chosen if place.hours is not None), default=0.0)
    if quickest * 3600 > request.deadline_s:
        deadline = Duration(request.deadline_s)
        yield Problem(
            f"it takes {quickest:.1f} h at the quickest place, longer than --deadline {deadline}",
            "more or faster cards (--gpus, --num-nodes), or fewer --epochs",
        )


def _cheaper_advice(request: TrainRequest) -> str:
    market = "" if request.spot else "--spot, "
    return f"{market}fewer --epochs, --method lora or qlora, or a higher --max-cost"


def _of_machines(request: TrainRequest, chosen: Sequence[Candidate]) -> Iterator[str]:
    asked = request.gpus
    larger = sorted({place.accelerator for place in chosen if asked and place.accelerator != str(asked)})
    for accelerator in larger:
        if asked and Gpus.parse(accelerator).number > asked.number:
            clouds = ", ".join(sorted({p.cloud for p in chosen if p.accelerator == accelerator}))
            yield f"{clouds} sells {asked.name} by {Gpus.parse(accelerator).number}: all are paid and used"


def _of_spot(request: TrainRequest, chosen: Sequence[Candidate], bill: Bill, work: Workload) -> Iterator[str]:
    if bill.useful <= LEAST_USEFUL:
        yield (
            f"a restart and lost work take most of the {Duration(round(bill.life_s or 0))} between two preemptions: "
            "the run hardly gets on"
        )
    if len({place.region for place in chosen}) == 1:
        yield "only one region: when it has no machines, the run waits; a second --infra lets it move"
    if request.local:
        return
    if work.mtbf_s is None and chosen[0].life_s:
        yield (
            f"lives of spot machines are from {SOURCE}; no newer card has a public trace; "
            "--set checkpoint.mtbf_s=SECONDS puts in what you know"
        )
        if chosen[0].life_s < request.config.checkpoint.mtbf_s / 2:
            yield (
                f"machines there live about {chosen[0].life_s / 3600:.1f} h: --set checkpoint.mtbf_s="
                f"{chosen[0].life_s:.0f} would save more often"
            )
    save_usd = work.state_bytes / 1e9 * EGRESS_USD_PER_GB
    if save_usd >= 0.10 and any(place.cloud not in OWN for place in chosen):
        yield (
            f"a save from another region than the bucket's costs ${save_usd:.2f} of egress each time: keep the bucket "
            "near the first place"
        )
