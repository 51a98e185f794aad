"""A worker that answers: whether the model fits its cards, how much it can hold at once, and what it costs an hour.

Pure, like plan.py, and from the same catalog; the sums are serving/memory.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from launcher.errors import NotReady, Problem, UsageError
from launcher.planning.catalog import NO_SPOT, Catalog
from launcher.planning.fit import Model, model_of, unknown_card
from launcher.planning.places import Candidate, MarketName, offers_of, price
from launcher.planning.plan import known_cards
from launcher.train_options import Asked
from launcher.values import Gpus, Infra
from serving.memory import Answering, Bits, room_for_tokens, serving_terms
from trainer.hardware import CARDS
from trainer.memory import Term, gib

# What a model of 7 or 13 billion answers from where nothing else is asked for: the document that serves on one A100.
_CARDS = Gpus("A100", 1)


@dataclass(frozen=True, slots=True)
class ServeRequest:
    """A worker that was asked for."""

    model: Model
    name: str
    bits: Bits
    gpus: Gpus
    tokens: int
    """Held at once."""
    infra: tuple[Infra, ...]
    spot: bool


@dataclass(frozen=True, slots=True)
class ServePlan:
    """One worker."""

    name: str
    bits: Bits
    accelerator: str
    fits: bool | None
    card_bytes: int
    terms: tuple[Term, ...]
    room_tokens: int | None
    """The most tokens that its cards hold at once; None where the card is not known."""
    candidates: tuple[Candidate, ...]
    usd_per_hour_spot: float | None
    usd_per_hour_on_demand: float | None
    problems: tuple[Problem, ...]
    risks: tuple[str, ...]

    @property
    def bytes(self) -> int:
        return sum(term.bytes for term in self.terms)


def serve_request(asked: Asked, load_4bit: bool) -> ServeRequest:
    """What the options of `train` mean for a worker.

    Raises:
        UsageError: options that contradict each other.
    """
    from dataclasses import replace

    from launcher.request import make_request

    if load_4bit and asked.load_8bit:
        raise UsageError("--load-8bit and --load-4bit exclude each other", hint="give one of them")
    request, _ = make_request(
        replace(asked, load_8bit=False, size=asked.size or (None if asked.model else "7"))
    )
    bits: Bits = 4 if load_4bit else 8 if asked.load_8bit else 16
    return ServeRequest(
        model=model_of(request.config, request.base_shape),
        name=asked.model or request.recipe.config.model.base or request.recipe.config.recipe,
        bits=bits,
        gpus=asked.gpus or _CARDS,
        tokens=asked.max_length or request.config.data.max_length,
        infra=asked.infra,
        spot=asked.spot,
    )


def cheapest_cards(request: ServeRequest, catalog: Catalog) -> Gpus:
    """Of the machines that the asked places sell, the cheapest that the model fits.

    Raises:
        NotReady: it fits none of them.
    """
    market: MarketName = "spot" if request.spot else "on-demand"
    prices: dict[Gpus, float] = {}
    for name, number in catalog.machines((place.cloud for place in request.infra), CARDS):
        cards = Gpus(name, number)
        if not _fits(request, request.bits, cards):
            continue
        found = [price(offer, market) for offer in offers_of(request.infra, cards, catalog, request.spot)]
        known = [value for value in found if value is not None]
        if known:
            prices[cards] = min(known)
    if not prices:
        places = ", ".join(str(place) for place in request.infra)
        raise NotReady(
            f"{request.name} in {request.bits} bit fits no machine that is sold in {places}",
            hint="--load-8bit or --load-4bit, or another --infra",
        )
    return min(prices, key=lambda cards: (prices[cards], cards))


def make_serve_plan(request: ServeRequest, catalog: Catalog) -> ServePlan:
    """Decide.

    Raises:
        UsageError: an unknown accelerator or region, with the nearest name; spot where there is none.
    """
    gpus = known_cards(request.gpus, request.infra, catalog)
    load = Answering(request.bits, gpus.number, request.tokens)
    terms = serving_terms(request.model.shape, load)
    card = CARDS.get(gpus.name)
    needed = sum(term.bytes for term in terms)
    fits = None if card is None else needed <= card.memory_bytes
    room = None if card is None else room_for_tokens(request.model.shape, load, card.memory_bytes)
    candidates = _candidates(request, gpus, catalog)
    problems = []
    if fits is False and card is not None:
        what = f"it does not fit {gpus.number} x {gpus.name}: {gib(needed)} of {gib(card.memory_bytes)}"
        fix = " or ".join(_changes(request, gpus, catalog)) or "a smaller model"
        problems.append(Problem(what, fix))
    if not candidates:
        places = ", ".join(str(infra) for infra in request.infra)
        problems.append(Problem(f"no known place in {places} has {gpus}", "another --infra or --gpus"))
    notes = [
        note
        for note in (request.model.assumed, *(unknown_card(gpus.name).notes if card is None else ()))
        if note
    ]
    return ServePlan(
        name=request.name,
        bits=request.bits,
        accelerator=str(gpus),
        fits=fits,
        card_bytes=card.memory_bytes if card else 0,
        terms=terms,
        room_tokens=room,
        candidates=tuple(candidates),
        usd_per_hour_spot=_least(candidates, "spot"),
        usd_per_hour_on_demand=_least(candidates, "on-demand"),
        problems=tuple(problems),
        risks=tuple(notes),
    )


def _changes(request: ServeRequest, gpus: Gpus, catalog: Catalog) -> list[str]:
    """What would make it fit, the least intrusive first; another card is one that is sold there."""
    found = []
    smaller: list[Bits] = [bits for bits in get_args(Bits) if bits < request.bits]
    for bits in smaller:
        if _fits(request, bits, gpus):
            found.append(f"--load-{bits}bit")
            break
    for number in (2, 4, 8):
        if number > gpus.number and _fits(request, request.bits, gpus._replace(number=number)):
            found.append(f"--gpus {gpus.name}:{number}")
            break
    sold = [Gpus(*machine) for machine in catalog.machines((place.cloud for place in request.infra), CARDS)]
    fitting = [cards for cards in sold if _fits(request, request.bits, cards)]
    if fitting:
        smallest = min(fitting, key=lambda cards: (cards.number, CARDS[cards.name].memory_bytes))
        found.append(f"--gpus {smallest}")
    return found


def _fits(request: ServeRequest, bits: Bits, gpus: Gpus) -> bool:
    terms = serving_terms(request.model.shape, Answering(bits, gpus.number, request.tokens))
    return sum(term.bytes for term in terms) <= CARDS[gpus.name].memory_bytes


def _candidates(request: ServeRequest, gpus: Gpus, catalog: Catalog) -> list[Candidate]:
    market: MarketName = "spot" if request.spot else "on-demand"
    found = [
        Candidate(
            offer.cloud,
            offer.region,
            offer.zone,
            offer.instance,
            market,
            price(offer, market),
            offer.on_demand,
            offer.spot,
            str(offer.source),
            offer.accelerator,
        )
        for offer in offers_of(request.infra, gpus, catalog, request.spot)
        if price(offer, market) is not None or offer.cloud in NO_SPOT
    ]
    return sorted(found, key=lambda place: place.usd_per_hour or 0.0)


def _least(candidates: Sequence[Candidate], market: MarketName) -> float | None:
    prices: list[Any] = [
        place.spot_usd_per_hour if market == "spot" else place.on_demand_usd_per_hour for place in candidates
    ]
    return min((value for value in prices if value is not None), default=None)
