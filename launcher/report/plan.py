"""A plan for people and for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from launcher.plan import Plan
from launcher.report.amounts import duration


def plan_dict(plan: Plan) -> dict[str, Any]:
    """Plain values for --json."""
    tree = asdict(plan)
    return {
        "name": plan.name,
        "recipe": plan.recipe,
        "method": plan.method,
        "accelerator": plan.accelerator,
        "parameters": plan.parameters,
        "steps": plan.steps,
        "tokens": plan.tokens,
        "corpus": {"tokens": plan.corpus_tokens, "assumed": plan.corpus_assumed},
        "hours": plan.hours,
        "usd": {"spot": plan.usd_spot, "on_demand": plan.usd_on_demand},
        "notional": plan.notional,
        "checkpoint_every_s": plan.checkpoint_every_s,
        "candidates": tree["candidates"],
        "problems": [problem._asdict() for problem in plan.problems],
        "risks": list(plan.risks),
    }


def plan_text(plan: Plan) -> str:
    """A few lines: what, how long, how much, where, what could go wrong."""
    first = plan.candidates[0]
    machine = plan.accelerator if plan.has_accelerator else f"{plan.cores} CPU cores"
    cost = f"${plan.usd_spot:.2f} on spot, ${plan.usd_on_demand:.2f} on demand" if not plan.notional else (
        f"nothing; priced {first.price_source}: ${plan.usd_spot:.4f} on spot, ${plan.usd_on_demand:.4f} on demand"
    )  # fmt: skip
    lines = [
        f"plan      {plan.recipe}: {plan.parameters / 1e6:,.1f} million weights, {plan.steps:,} steps, "
        f"up to {plan.tokens / 1e6:,.1f} million tokens",
        f"corpus    about {plan.corpus_tokens / 1e6:,.1f} million tokens"
        + (", assumed" if plan.corpus_assumed else ""),
        f"machine   {machine}, {plan.market}, about {duration(plan.hours * 3600)} of training",
        f"cost      {cost}",
        f"places    {' > '.join(plan.regions)}",
        f"saves     every {duration(plan.checkpoint_every_s)} at first, then by their measured cost",
    ]
    if not plan.notional:
        lines.append(f"prices    {first.price_source}")
    return "\n".join(
        [
            *lines,
            *(f"problem   {text}" for text in plan.problems),
            *(f"risk      {text}" for text in plan.risks),
        ]
    )
