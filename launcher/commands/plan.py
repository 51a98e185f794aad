"""`vlaunch plan`: what train would do, decided from the same request; starts nothing."""

from __future__ import annotations

from typing import Any

import click

from launcher import options
from launcher.output import emit, say
from launcher.train_options import train_options


@options.verb(
    "plan",
    examples=(
        "vlaunch plan --size 13 --spot --infra aws",
        "vlaunch plan --size 7 --method qlora --infra aws --json",
    ),
)
@train_options
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> None:
    """Hours, dollars, places in order of preference, checkpoint cadence and risks of a training run.

    Prices are a dated table in the package, hours an estimate from stated assumptions.
    """
    from launcher.plan import make_plan
    from launcher.report.plan import plan_dict, plan_text
    from launcher.request import make_request
    from launcher.takeover import asked_for

    asked = asked_for(ctx, given)
    request, notes = make_request(asked)
    for note in notes:
        say(f"note: {note}")
    if asked.data:
        from dataclasses import replace
        from pathlib import Path

        from launcher.submit import count_corpus

        count = count_corpus([Path(path) for path in asked.data])
        request = replace(request, corpus_tokens=count.tokens, corpus_conversations=count.conversations)
    plan = make_plan(request)
    emit(ctx, plan_dict(plan), lambda: plan_text(plan))
