"""A worker's plan for people and for programs; keys as in a plan of a training."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from launcher.planning.serving import ServePlan
from launcher.report.amounts import usd
from launcher.report.plan import memory_gb, memory_table, places_table
from trainer.hardware import GIB
from trainer.memory import gib


def serve_plan_dict(plan: ServePlan) -> dict[str, Any]:
    """Plain values for --json."""
    return {
        "name": plan.name,
        "bits": plan.bits,
        "accelerator": plan.accelerator,
        "fits": plan.fits,
        "memory_gb": memory_gb(plan.terms),
        "card_gb": round(plan.card_bytes / GIB, 3),
        "room_tokens": plan.room_tokens,
        "hours": None,
        "usd_per_hour": {"spot": plan.usd_per_hour_spot, "on_demand": plan.usd_per_hour_on_demand},
        "candidates": [asdict(place) for place in plan.candidates],
        "problems": [problem._asdict() for problem in plan.problems],
        "risks": list(plan.risks),
    }


def serve_plan_text(plan: ServePlan) -> str:
    """What, whether it fits, what it holds, how much an hour, where."""
    verdict = {True: "fits", False: "DOES NOT FIT", None: "not known whether it fits"}[plan.fits]
    card = f" of {gib(plan.card_bytes)}" if plan.card_bytes else ""
    lines = [
        f"worker    {plan.name} in {plan.bits} bit on {plan.accelerator}",
        f"memory    {verdict}: {gib(plan.bytes)}{card} on each card",
        *memory_table(plan.terms),
    ]
    if plan.room_tokens is not None:
        lines.append(f"room      for {plan.room_tokens:,} tokens of conversations at once")
    prices = (plan.usd_per_hour_spot, plan.usd_per_hour_on_demand)
    spot, on_demand = ("no price" if value is None else f"{usd(value)} an hour" for value in prices)
    lines += [f"cost      {spot} on spot, {on_demand} on demand", *places_table(plan.candidates)]
    lines += [f"prices    {text}" for text in dict.fromkeys(place.price_source for place in plan.candidates)]
    lines += [f"problem   {problem}" for problem in plan.problems]
    return "\n".join([*lines, *(f"risk      {text}" for text in plan.risks)])
