"""Where a run could go, and what all of it is expected to cost in each place: the candidates of a plan, in order.

Pure: offers and a workload in, candidates out. For each place the whole run is reckoned as if it were done there:

    on demand   hours = set-up + training with its saves
    spot        the same, stretched by what preemptions take: each life loses a restart and the work since the last
                durable checkpoint, so of a life L only L - restart - lost is progress
    dollars     hours x price x machines, and the egress of reading the checkpoint in another region after each loss
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from launcher.errors import UsageError
from launcher.planning.catalog import NO_SPOT, OWN, Catalog, Offer
from launcher.planning.lives import expected_life_s
from launcher.values import Gpus, Infra

MarketName = Literal["spot", "on-demand"]

# Assumed, and the same as in docs/benchmarks.md's arithmetic: seconds from asking a cloud for a machine to the first
# step's data, without the model's own bytes; a cluster of one's own has its machines running.
SETUP_S = {"local": 8.0, "own": 60.0, "cloud": 300.0}
# Bytes/s between a machine and its bucket (25 Gbit/s, which A100 machines have and small ones do not), and from a
# card's memory to its host's (pinned, PCIe 4). Both assumed.
STORE_BYTES_S = 25e9 / 8
CARD_BYTES_S = 10e9
EGRESS_USD_PER_GB = 0.02
"""Between two regions of one cloud: AWS and GCP in North America, 2025-26; elsewhere up to four times as much."""
# Out of a cloud: AWS's first 10 TB a month; GCP asks 0.12.
_EGRESS_TO_ELSEWHERE = 0.09
LEAST_USEFUL = 0.1
"""Share of a machine's life that has to be progress; below, a run hardly gets on, and a plan says so."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One place to run one attempt, with its price and what the whole run is expected to cost there.

    Names are SkyPilot's. Prices are of one machine with its accelerators; a run on several takes each as often.
    """

    cloud: str
    region: str
    """Of AWS, GCP, ...; a Slurm cluster, a Kubernetes context; "" lets SkyPilot choose."""
    zone: str
    """A zone, a Slurm partition; "" lets SkyPilot choose."""
    instance: str
    """Type of machine; "" lets SkyPilot choose one with the accelerator."""
    market: MarketName
    usd_per_hour: float | None
    """In this market; None where no price is known, as on one's own cluster."""
    on_demand_usd_per_hour: float | None
    spot_usd_per_hour: float | None
    """None where there is no spot market."""
    price_source: str
    """With its date, for people."""
    accelerator: str = ""
    """Name and count on one machine, e.g. "A100-80GB:8"; "" is a machine without one."""
    life_s: float | None = None
    """Expected seconds until the machine is taken away; None on demand."""
    hours: float | None = None
    """Expected from the request to the end of the run, if all of it were done here, without waits for a machine."""
    preemptions: float = 0.0
    """Expected in that time."""
    usd: float | None = None
    """Expected for all of the run and all of its machines; None where no price is known."""
    reason: str = ""
    """Why it stands where it stands, in words."""

    @property
    def place(self) -> str:
        return "/".join(part for part in (self.cloud, self.region, self.zone) if part)


@dataclass(frozen=True, slots=True)
class Workload:
    """What a run needs of any machine."""

    flops: float
    """Of all steps that are left."""
    state_bytes: float
    """Of a checkpoint."""
    weights_bytes: float
    """That each machine fetches before its first step."""
    nodes: int
    mtbf_s: float | None
    """What the user knows of the lives of spot machines; None leaves it to the traces."""
    stall_s: float
    """That a save stops training for."""
    interval_s: float
    """Seconds between two saves."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a kind of machine makes of a workload."""

    flops: float
    """Per second, of one machine with all its cards."""
    cards: int
    setup_s: float


@dataclass(frozen=True, slots=True)
class Bill:
    """The parts of an expected cost: hours of machine time one after another, dollars of all machines."""

    training_h: float
    saving_h: float
    setup_h: float
    restart_h: float
    lost_h: float
    preemptions: float
    life_s: float | None
    """None on demand."""
    useful: float
    """Share of a life that is progress, not less than LEAST_USEFUL."""
    machine_usd: float | None
    egress_usd: float

    @property
    def hours(self) -> float:
        return self.training_h + self.saving_h + self.setup_h + self.restart_h + self.lost_h

    @property
    def usd(self) -> float | None:
        return None if self.machine_usd is None else self.machine_usd + self.egress_usd


def offers_of(infra: Sequence[Infra], gpus: Gpus | None, catalog: Catalog, spot: bool) -> list[Offer]:
    """What the asked places sell, in the order they were asked in.

    Raises:
        UsageError: an unknown region, or a cloud without spot machines where spot was asked for.
        NotReady: no prices of a cloud are known.
    """
    found: list[Offer] = []
    for place in infra:
        if spot and place.cloud in NO_SPOT:
            raise UsageError(
                f"{place.cloud} has no spot machines", hint=f"--on-demand, or another --infra than {place}"
            )
        if place.cloud in OWN:
            name = str(gpus) if gpus else ""
            source = catalog.own_source
            region, zone = place.region or "", place.zone or ""
            found.append(Offer(place.cloud, region, zone, "", name, None, None, source))
        else:
            found.extend(catalog.offers(place, gpus))
    return found


def price(offer: Offer, market: MarketName) -> float | None:
    return offer.spot if market == "spot" else offer.on_demand


def egress_usd_per_gb(offer: Offer, others: Sequence[Offer]) -> float:
    """Of reading the last checkpoint after a machine there was lost: recovery leaves the region where it can, and stays
    in the cloud where that has another."""
    if any(other.cloud == offer.cloud and other.region != offer.region for other in others):
        return EGRESS_USD_PER_GB
    return _EGRESS_TO_ELSEWHERE if any(other.cloud != offer.cloud for other in others) else 0.0


def expect(offer: Offer, market: MarketName, work: Workload, machine: Machine, egress: float) -> Bill:
    """What the whole run takes there. `egress`: USD per GB that is read after a loss."""
    training_s = work.flops / (machine.flops * work.nodes)
    saving_s = training_s * work.stall_s / work.interval_s
    setup_s = machine.setup_s + work.weights_bytes / STORE_BYTES_S
    life_s, useful = None, 1.0
    preemptions = restart_s = lost_s = 0.0
    if market == "spot":
        life_s = work.mtbf_s or expected_life_s(offer.cloud, offer.region, machine.cards)
        transfer_s = work.state_bytes / (STORE_BYTES_S * work.nodes)
        restart_each = setup_s + transfer_s
        # On average half an interval, and what was still on its way.
        lost_each = work.interval_s / 2 + transfer_s
        useful = max(LEAST_USEFUL, 1.0 - (restart_each + lost_each) / life_s)
        preemptions = (training_s + saving_s) / (life_s * useful)
        restart_s, lost_s = preemptions * restart_each, preemptions * lost_each
    rate = price(offer, market)
    seconds = training_s + saving_s + setup_s + restart_s + lost_s
    return Bill(
        training_h=training_s / 3600,
        saving_h=saving_s / 3600,
        setup_h=setup_s / 3600,
        restart_h=restart_s / 3600,
        lost_h=lost_s / 3600,
        preemptions=preemptions,
        life_s=life_s,
        useful=useful,
        machine_usd=None if rate is None else rate * seconds / 3600 * work.nodes,
        egress_usd=0.0 if rate is None else preemptions * work.state_bytes / 1e9 * egress,
    )


def candidate(offer: Offer, market: MarketName, bill: Bill) -> Candidate:
    return Candidate(
        cloud=offer.cloud,
        region=offer.region,
        zone=offer.zone,
        instance=offer.instance,
        market=market,
        usd_per_hour=price(offer, market),
        on_demand_usd_per_hour=offer.on_demand,
        spot_usd_per_hour=offer.spot,
        price_source=str(offer.source),
        accelerator=offer.accelerator,
        life_s=bill.life_s,
        hours=bill.hours,
        preemptions=bill.preemptions,
        usd=bill.usd,
    )


def in_order(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Places without a price first, as they were given; then by expected dollars. Each says why it stands there."""
    ordered = sorted(candidates, key=lambda place: -math.inf if place.usd is None else place.usd)
    best = next((place.usd for place in ordered if place.usd), None)
    return [replace(place, reason=_reason(place, best)) for place in ordered]


def _reason(place: Candidate, best: float | None) -> str:
    if place.usd is None or best is None:
        return "no price is known: taken first, in the order given"
    first = "the cheapest" if place.usd == best else f"{place.usd / best:.2f} times the cheapest"
    if place.market == "on-demand":
        return f"{first}; never taken away"
    return f"{first}; lives about {(place.life_s or 0) / 3600:.1f} h, {place.preemptions:.1f} preemptions expected"
