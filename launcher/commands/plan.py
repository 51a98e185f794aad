"""`vlaunch plan`: what train would do, decided from the same request; starts nothing."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from launcher import options
from launcher.output import emit, say
from launcher.train_options import train_options


@options.verb(
    "plan",
    examples=(
        "vlaunch plan --size 13 --spot --infra aws --infra gcp",
        "vlaunch plan --size 7 --method qlora --gpus A10G --json",
        "vlaunch plan --serve --size 13 --gpus RTX4090 --load-8bit",
    ),
)
@train_options
@options.option(
    "--serve",
    is_flag=True,
    show_default=False,
    help="A worker that answers with the model, instead of training it.",
)
@options.option(
    "--load-4bit", is_flag=True, show_default=False, help="With --serve: keep the weights in 4 bit."
)
@click.pass_context
def command(ctx: click.Context, /, serve: bool, load_4bit: bool, **given: Any) -> None:
    """Whether a run fits its cards, hours, dollars, places in order of expected cost, checkpoint cadence and risks.

    Ends with 3 where the run does not fit or cannot keep its limits. With --gpus and without --infra, every cloud with
    known prices is looked at. Prices are SkyPilot's own where its catalog is here, hours are estimates.
    """
    from dataclasses import replace
    from pathlib import Path

    from launcher.errors import UsageError
    from launcher.foreign.takeover import asked_for
    from launcher.planning.catalog import Catalog
    from launcher.values import Infra

    asked = asked_for(ctx, given)
    catalog = Catalog(Path(asked.catalog) if asked.catalog else None)
    everywhere = ctx.get_parameter_source("infra") in (ParameterSource.DEFAULT, None)
    if everywhere and (asked.gpus or asked.num_nodes > 1 or serve):
        asked = replace(asked, infra=tuple(Infra(cloud) for cloud in catalog.clouds()))
    if load_4bit and not serve:
        raise UsageError("--load-4bit is for --serve", hint="--method qlora trains on a base in 4 bit")
    if serve:
        from launcher.planning.serving import make_serve_plan, serve_request
        from launcher.report.plan_serving import serve_plan_dict, serve_plan_text

        serve_plan = make_serve_plan(serve_request(asked, load_4bit), catalog)
        emit(ctx, serve_plan_dict(serve_plan), lambda: serve_plan_text(serve_plan))
        ctx.exit(3 if serve_plan.problems else 0)
    _training(ctx, asked, catalog)


def _training(ctx: click.Context, asked: Any, catalog: Any) -> None:
    from dataclasses import replace
    from pathlib import Path

    from launcher.planning.alternatives import cheaper_machines
    from launcher.planning.objections import launch_problems
    from launcher.planning.plan import make_plan
    from launcher.report.plan import plan_dict, plan_text
    from launcher.request import make_request

    request, notes = make_request(asked)
    for note in notes:
        say(f"note: {note}")
    if asked.data:
        from launcher.submit import count_corpus

        count = count_corpus([Path(path) for path in asked.data])
        request = replace(request, corpus_tokens=count.tokens, corpus_conversations=count.conversations)
    plan = make_plan(request, catalog)
    before = launch_problems(request)
    instead = cheaper_machines(request, plan, catalog)
    emit(ctx, plan_dict(plan, before, instead), lambda: plan_text(plan, before, instead))
    ctx.exit(3 if plan.problems else 0)
