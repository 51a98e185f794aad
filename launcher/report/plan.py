"""A plan for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from launcher.errors import Problem
from launcher.planning.alternatives import Alternative
from launcher.planning.fit import Fit
from launcher.planning.places import Candidate
from launcher.planning.plan import Plan
from launcher.report.amounts import duration, usd
from trainer.hardware import GIB
from trainer.memory import Term, gib

# Places shown to people; --json has all.
_SHOWN = 8
_NUMBERS = ("USD/H", "USD")


def plan_dict(
    plan: Plan, before: Sequence[Problem] = (), instead: Sequence[Alternative] = ()
) -> dict[str, Any]:
    """Plain values for --json."""
    return {
        "name": plan.name,
        "recipe": plan.recipe,
        "method": plan.method,
        "accelerator": plan.accelerator,
        "num_nodes": plan.num_nodes,
        "parameters": plan.parameters,
        "steps": plan.steps,
        "tokens": plan.tokens,
        "corpus": {"tokens": plan.corpus_tokens, "assumed": plan.corpus_assumed},
        "fits": plan.fits,
        "memory_gb": memory_gb(plan.fit.terms) if plan.fit else {},
        "memory": _memory(plan.fit) if plan.fit else None,
        "hours": plan.hours,
        "usd": {"spot": plan.usd_spot, "on_demand": plan.usd_on_demand, **_parts(plan)},
        "preemptions": plan.candidates[0].preemptions if plan.candidates else None,
        "notional": plan.notional,
        "checkpoint_every_s": plan.checkpoint_every_s,
        "candidates": [asdict(place) for place in plan.candidates],
        "changes": list(plan.fit.changes) if plan.fit else [],
        "instead": [other._asdict() for other in instead],
        "problems": [problem._asdict() for problem in plan.problems],
        "before": [problem._asdict() for problem in before],
        "risks": list(plan.risks),
    }


def memory_gb(terms: Sequence[Term]) -> dict[str, float]:
    """GB of 2^30 bytes, as torch and nvidia-smi count, by term and in total."""
    by_term = {term.name: round(term.bytes / GIB, 3) for term in terms}
    return by_term | {"total": round(sum(term.bytes for term in terms) / GIB, 3)} if terms else {}


def plan_text(plan: Plan, before: Sequence[Problem] = (), instead: Sequence[Alternative] = ()) -> str:
    """What, whether it fits, how long, how much, where, what could go wrong."""
    return "\n".join(
        [
            *_what(plan),
            *(_fit_lines(plan.fit) if plan.fit else []),
            *_cost_lines(plan),
            *(f"instead   {other.options}: {usd(other.usd, 0)}, {other.hours:.1f} h" for other in instead),
            *(f"problem   {problem}" for problem in plan.problems),
            *(f"before    {problem}" for problem in before),
            *(f"risk      {text}" for text in plan.risks),
        ]
    )


def memory_table(terms: Sequence[Term]) -> Iterator[str]:
    """One line for each term, the largest first, those under a MiB left out."""
    for term in sorted((term for term in terms if term.bytes >> 20), key=lambda term: -term.bytes):
        yield f"          {gib(term.bytes):>9}  {term.name}: {term.why}"


def places_table(candidates: Sequence[Candidate]) -> Iterator[str]:
    """The first candidates as columns; nothing without one."""
    if not candidates:
        return
    rows: list[tuple[str, ...]] = [
        (
            place.place,
            place.instance or "any",
            place.market,
            _dollars(place.usd_per_hour, 2),
            _dollars(place.usd, 0 if (place.usd or 0) >= 10 else 2),
            place.reason,
        )
        for place in candidates[:_SHOWN]
    ]
    # By hand: rich would double what a dry run costs.
    rows.insert(0, ("PLACE", "MACHINE", "MARKET", "USD/H", "USD", "WHY"))
    columns = [column for column in zip(*rows, strict=True) if {"", "-"} < {"", "-", *column[1:]}]
    wide = [max(map(len, column)) for column in columns]
    for cells in zip(*columns, strict=True):
        padded = [
            cell.rjust(width) if columns[index][0] in _NUMBERS else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(cells, wide, strict=True))
        ]
        yield f"          {'  '.join(padded)}".rstrip()
    if len(candidates) > _SHOWN:
        yield f"          and {len(candidates) - _SHOWN} more: --json lists all"


def _dollars(amount: float | None, places: int) -> str:
    return "-" if amount is None else f"{amount:,.{places}f}"


def _what(plan: Plan) -> Iterator[str]:
    machine = plan.accelerator if plan.has_accelerator else f"{plan.cores} CPU cores"
    if plan.candidates and plan.candidates[0].accelerator not in ("", plan.accelerator):
        machine = f"{plan.candidates[0].accelerator} for {plan.accelerator}"
    if plan.num_nodes > 1:
        machine = f"{plan.num_nodes} machines with {machine}"
    yield (
        f"plan      {plan.recipe}: {plan.parameters / 1e6:,.1f} million weights, {plan.steps:,} steps, "
        f"up to {plan.tokens / 1e6:,.1f} million tokens"
    )
    assumed = ", assumed" if plan.corpus_assumed else ""
    yield f"corpus    about {plan.corpus_tokens / 1e6:,.1f} million tokens{assumed}"
    yield f"machine   {machine}, {plan.market}, about {duration(plan.hours * 3600)} of training"


def _fit_lines(fit: Fit) -> Iterator[str]:
    if not fit.terms:
        verdict = {None: "not known", True: "it fits", False: "it does not run there"}[fit.fits]
        yield f"memory    {verdict}"
        return
    verdict = "fits" if fit.bytes <= fit.card_bytes else "DOES NOT FIT"
    yield (
        f"memory    {verdict}: {gib(fit.bytes)} of {gib(fit.card_bytes)} of each {fit.card}, in {fit.moment}"
    )
    yield from memory_table(fit.terms)
    if fit.host_bytes:
        yield f"          {gib(fit.host_bytes):>9}  of host memory besides"
    yield from (f"change    {change}" for change in fit.changes)


def _cost_lines(plan: Plan) -> Iterator[str]:
    spot, on_demand = (_amount(value, plan.notional) for value in (plan.usd_spot, plan.usd_on_demand))
    source = plan.candidates[0].price_source if plan.candidates else ""
    if plan.notional:
        yield f"cost      nothing; priced {source}: {spot} on spot, {on_demand} on demand"
        yield f"places    {' > '.join(plan.regions)}"
    else:
        controller = f", {usd(plan.controller_usd)} for SkyPilot's controller" if plan.controller_usd else ""
        yield f"cost      {spot} on spot, {on_demand} on demand{controller}"
        if plan.bill:
            yield f"          {_bill_text(plan)}"
        yield from places_table(plan.candidates)
    yield f"saves     every {duration(plan.checkpoint_every_s)} at first, then by their measured cost"
    if not plan.notional:
        yield from (f"prices    {text}" for text in dict.fromkeys(p.price_source for p in plan.candidates))


def _bill_text(plan: Plan) -> str:
    """Where the first place's hours go."""
    bill = plan.bill
    assert bill is not None  # the caller looked
    parts = {
        "training": bill.training_h,
        "saves": bill.saving_h,
        "set-up": bill.setup_h,
        "restarts": bill.restart_h,
        "lost work": bill.lost_h,
    }
    hours = ", ".join(f"{name} {hours:.1f} h" for name, hours in parts.items() if hours >= 0.05)
    taken = f"; {bill.preemptions:.1f} preemptions" if bill.preemptions else ""
    egress = f", egress {usd(bill.egress_usd)}" if bill.egress_usd >= 0.01 else ""
    return f"at the first place: {hours}{taken}{egress}"


def _amount(value: float | None, notional: bool) -> str:
    if value is None:
        return "no price"
    return usd(value, 4) if notional else usd(value)


def _parts(plan: Plan) -> dict[str, float | None]:
    bill = plan.bill
    egress = bill.egress_usd if bill else None
    return {"controller": plan.controller_usd, "egress": egress}


def _memory(fit: Fit) -> dict[str, Any]:
    return {
        "card": fit.card,
        "card_gb": round(fit.card_bytes / GIB, 3),
        "moment": fit.moment,
        "host_gb": round(fit.host_bytes / GIB, 3),
        "why": {term.name: term.why for term in fit.terms},
    }
