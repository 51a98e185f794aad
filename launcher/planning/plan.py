"""Everything decided before anything starts: what, where, whether it fits, for how long, for how much.

Pure: a request and a catalog of prices in, a plan out. The figures are estimates from stated assumptions, and say so:
memory from fit.py, hours from throughput.py, lives of spot machines from lives.py, places and dollars from places.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from launcher.errors import Problem as Problem
from launcher.errors import UsageError, nearest
from launcher.planning.catalog import OWN, PACKAGED, PACKAGED_DATE, PACKAGED_SOURCE, Catalog, Offer, Source
from launcher.planning.fit import Fit, model_of, training_fit
from launcher.planning.objections import problems, risks
from launcher.planning.places import (
    Bill,
    Machine,
    Workload,
    candidate,
    egress_usd_per_gb,
    expect,
    in_order,
    offers_of,
    price,
)
from launcher.planning.places import Candidate as Candidate
from launcher.planning.places import MarketName as MarketName
from launcher.planning.workload import CORPUS_TOKENS, cpu_machine, gpu_machine, steps_and_tokens, workload
from launcher.values import Gpus, Infra
from trainer.config import TrainConfig
from trainer.hardware import CARDS
from trainer.recipes import Recipe

# SkyPilot's controller of managed jobs: 4 cores with 4 GB each (sky/jobs/constants.py), on demand as long as jobs run;
# AWS m6i.xlarge, twice the m6i.large of launcher/planning/prices. None where the API server runs jobs itself.
_CONTROLLER_USD_PER_HOUR = 0.192
# Played by this machine where nothing else is asked for: the three cheapest of AWS in the packaged prices.
_LOCAL_REGIONS = ("us-east-2", "us-west-2", "us-east-1")
_MARKETS: tuple[MarketName, ...] = ("spot", "on-demand")


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What the user asked for, parsed."""

    name: str
    recipe: Recipe
    config: TrainConfig
    store: str
    infra: tuple[Infra, ...] = (Infra("local"),)
    spot: bool = False
    gpus: Gpus | None = None
    num_nodes: int = 1
    zones: tuple[tuple[str, str], ...] = ()
    """(zone, region) of spot traces, where the local market replays some."""
    cores: int = 2
    corpus_tokens: int | None = None
    """Counted in the user's files; None where none were given."""
    corpus_conversations: int | None = None
    """Likewise."""
    base_shape: Mapping[str, Any] | None = None
    """The Hugging Face config of a local base model."""
    named: tuple[str, ...] = ()
    """Fields that the user set by name, dotted."""
    max_cost_usd: float | None = None
    deadline_s: float | None = None

    @property
    def local(self) -> bool:
        return all(infra.cloud == "local" for infra in self.infra)

    @property
    def market(self) -> MarketName:
        return "spot" if self.spot else "on-demand"


@dataclass(frozen=True, slots=True)
class Plan:
    """A decided request. Hours are of training alone; dollars are of everything, with expected restarts."""

    name: str
    recipe: str
    method: str
    accelerator: str
    """SkyPilot name and count, or "CPU"."""
    num_nodes: int
    cores: int
    candidates: tuple[Candidate, ...]
    """The order to try them in: by expected dollars, places without a price first, as they were given."""
    parameters: float
    steps: int
    tokens: float
    corpus_tokens: int
    corpus_assumed: bool
    fit: Fit | None
    """None on this machine, whose cards the box looks at itself."""
    hours: float
    """At the first candidate."""
    usd_spot: float | None
    """Of the best spot candidate; None where there is none with a price."""
    usd_on_demand: float | None
    """Of the best on-demand machine among the same places."""
    bill: Bill | None
    """What the first candidate's expected cost is made of; None without a candidate."""
    controller_usd: float
    mtbf_s: float
    checkpoint_every_s: float
    notional: bool
    problems: tuple[Problem, ...] = ()
    """Why it cannot run as asked."""
    risks: tuple[str, ...] = ()

    @property
    def fits(self) -> bool | None:
        return self.fit.fits if self.fit else None

    @property
    def has_accelerator(self) -> bool:
        return self.accelerator != "CPU"

    @property
    def market(self) -> MarketName:
        return self.candidates[0].market if self.candidates else "on-demand"

    @property
    def regions(self) -> list[str]:
        return list(dict.fromkeys(candidate.region for candidate in self.candidates))


def make_plan(request: TrainRequest, catalog: Catalog | None = None) -> Plan:
    """Decide.

    Raises:
        UsageError: an unknown accelerator, region or zone, with the nearest name; spot where there is none.
        NotReady: a cloud whose prices nobody has told.
    """
    catalog = Catalog(PACKAGED) if request.local else catalog or Catalog()
    request = replace(request, gpus=_cards(request, catalog))
    model = model_of(request.config, request.base_shape)
    gpus, nodes = request.gpus, request.num_nodes
    fit = training_fit(request.config, model.shape, gpus, nodes, request.named) if gpus else None
    steps, tokens = steps_and_tokens(request.config, request.corpus_tokens, request.corpus_conversations)
    work = workload(
        request.config, model.shape, tokens, gpus.number if gpus else 0, nodes, local=request.local
    )
    options = _options(request, catalog, work)
    chosen = _chosen(request, options)
    bill = chosen[0].bill if chosen else None
    hours = bill.training_h if bill else work.flops / (_machine(request, None).flops * nodes) / 3600.0
    return Plan(
        name=request.name,
        recipe=request.config.recipe,
        method=request.config.train.method,
        accelerator=str(gpus) if gpus else "CPU",
        num_nodes=nodes,
        cores=request.cores,
        candidates=tuple(option.candidate for option in chosen),
        parameters=float(model.shape.parameters),
        steps=steps,
        tokens=tokens,
        corpus_tokens=request.corpus_tokens or CORPUS_TOKENS,
        corpus_assumed=request.corpus_tokens is None,
        fit=fit,
        hours=hours,
        usd_spot=_cheapest(options, "spot"),
        usd_on_demand=_cheapest(options, "on-demand"),
        bill=bill,
        controller_usd=_controller(request, chosen),
        mtbf_s=request.config.checkpoint.mtbf_s,
        checkpoint_every_s=work.interval_s,
        notional=request.local,
        problems=tuple(problems(request, fit, [option.candidate for option in chosen])),
        risks=tuple(risks(request, model, fit, [option.candidate for option in chosen], bill, work)),
    )


class _Option(NamedTuple):
    """A place and a market, with what the run is expected to cost there."""

    candidate: Candidate
    bill: Bill


def known_cards(gpus: Gpus, infra: Sequence[Infra], catalog: Catalog) -> Gpus:
    """The same by its right name, whatever its case.

    Raises:
        UsageError: nobody knows the name.
    """
    if gpus.name in CARDS:
        return gpus
    own = any(place.cloud in OWN for place in infra)  # whose cards may have any name
    sold = [] if own else catalog.accelerators(place.cloud for place in infra)
    names = {name.lower(): name for name in (*CARDS, *sold)}
    if right := names.get(gpus.name.lower()):
        return gpus._replace(name=right)
    if own:
        return gpus
    close = nearest(gpus.name.lower(), names)
    hint = (
        f"did you mean {names[close]}:{gpus.number}?" if close else f"known are {', '.join(names.values())}"
    )
    raise UsageError(f"no accelerator {gpus} is known", hint=hint)


def _cards(request: TrainRequest, catalog: Catalog) -> Gpus | None:
    """The accelerators of one machine; None on this machine and for the small models."""
    if request.local:
        return None
    gpus = request.gpus or (Gpus.parse(request.recipe.accelerator) if request.recipe.accelerator else None)
    return known_cards(gpus, request.infra, catalog) if gpus else None


def _options(request: TrainRequest, catalog: Catalog, work: Workload) -> list[_Option]:
    """Every place in both markets, as far as each has a price there."""
    if request.local:
        offers = _local_offers(request, catalog)
    else:
        offers = offers_of(request.infra, request.gpus, catalog, request.spot)
    found = []
    for offer in offers:
        machine = _machine(request, offer)
        egress = egress_usd_per_gb(offer, offers)
        for market in _MARKETS:
            if price(offer, market) is not None or (offer.cloud in OWN and market == request.market):
                bill = expect(offer, market, work, machine, egress)
                found.append(_Option(candidate(offer, market, bill), bill))
    return found


def _chosen(request: TrainRequest, options: Sequence[_Option]) -> list[_Option]:
    """Those in the asked market, in the order to try them. Where spot machines have a deadline to keep, on-demand
    machines stand among them: the net under the run."""
    both = request.spot and request.deadline_s is not None
    asked = [option for option in options if both or option.candidate.market == request.market]
    if request.local:
        return [option for option in asked if option.candidate.market == request.market]
    bills = {option.candidate: option.bill for option in asked}
    return [_Option(place, bills[replace(place, reason="")]) for place in in_order(list(bills))]


def _local_offers(request: TrainRequest, catalog: Catalog) -> list[Offer]:
    """This machine, playing regions. Each has the price that a small cloud machine has there."""
    by_region = {offer.region: offer for offer in catalog.offers(Infra("aws"), None)}
    usual = by_region[_LOCAL_REGIONS[0]]
    asked = [infra.region for infra in request.infra if infra.region]
    places = request.zones or [(region, region) for region in asked or _LOCAL_REGIONS]
    source = Source(f"as AWS {usual.instance}, {PACKAGED_SOURCE}", PACKAGED_DATE)
    return [
        replace(by_region.get(region, usual), cloud="local", region=region, zone=zone, source=source)
        for zone, region in places
    ]


def _machine(request: TrainRequest, offer: Offer | None) -> Machine:
    """That of an offer, which may have more cards than were asked for."""
    gpus = Gpus.parse(offer.accelerator) if offer and offer.accelerator else request.gpus
    if gpus is None:
        return cpu_machine(request.cores, "local" if request.local else "cloud")
    own = offer is not None and offer.cloud in OWN
    return gpu_machine(request.config, gpus, request.num_nodes, "own" if own else "cloud")


def _cheapest(options: Sequence[_Option], market: MarketName) -> float | None:
    known = [o.candidate.usd for o in options if o.candidate.market == market and o.candidate.usd is not None]
    return min(known, default=None)


def _controller(request: TrainRequest, chosen: Sequence[_Option]) -> float:
    """Of SkyPilot's controller, as long as the run is expected to take at the first place that costs something."""
    paid = next((o.bill for o in chosen if o.candidate.usd is not None), None)
    return 0.0 if request.local or paid is None else paid.hours * _CONTROLLER_USD_PER_HOUR
