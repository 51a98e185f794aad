"""`vlaunch train`: from a recipe and chat logs to a model, through every preemption."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from launcher import options
from launcher.output import confirm, emit, say
from launcher.train_options import train_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from launcher.errors import Problem
    from launcher.planning.catalog import Catalog
    from launcher.planning.plan import Plan, TrainRequest
    from launcher.shipment import Shipment
    from launcher.train_options import Asked


@options.verb(
    "train",
    examples=(
        "vlaunch train --size tiny --spot --preempt-every 40s,5s   # the whole system on this machine",
        "vlaunch train --size 13 --spot --infra aws --data chats.jsonl --dry-run > task.yaml",
    ),
)
@train_options
@options.dry_run
@options.option(
    "--create-only",
    is_flag=True,
    show_default=False,
    help="Write the run into its store, start nothing, print its URI: for python -m trainer --run URI.",
)
@options.detach
@options.yes
@click.pass_context
def command(
    ctx: click.Context, /, dry_run: bool, create_only: bool, detach: bool, yes: bool, **given: Any
) -> None:
    """Train a model. The run survives its machines: each one continues where the last durable checkpoint is.

    Given again with the same --name, the command goes on with that run. --dry-run prints the plan to stderr and
    the SkyPilot task to stdout, without network and without writing anything.
    """
    from pathlib import Path

    from launcher.foreign.takeover import asked_for
    from launcher.planning.catalog import Catalog
    from launcher.planning.objections import launch_problems
    from launcher.planning.plan import make_plan
    from launcher.render import render_train
    from launcher.report.plan import plan_text
    from launcher.request import make_request
    from launcher.shipment import shipment_of

    asked = asked_for(ctx, given)
    request, notes = make_request(asked)
    for note in notes:
        say(f"note: {note}")
    catalog = Catalog(Path(asked.catalog) if asked.catalog else None)
    plan = make_plan(request, catalog)
    shipment = shipment_of(request)
    if shipment.goes_back:
        say(
            "note: SkyPilot's own recovery will first go back to a region that failed; vlaunch doctor has a better one"
        )
    if dry_run:
        say(plan_text(plan, launch_problems(request)))
        click.echo(render_train(plan, request, shipment), nl=False)
        return
    uri = _create(asked, request, catalog, shipment, yes=yes or create_only)
    if create_only:
        emit(ctx, {"run": request.name, "uri": uri}, uri)
        return
    from launcher.runs.follow import start_and_follow

    start_and_follow(ctx, request.store, request.name, detach=detach)


def _create(asked: Asked, request: TrainRequest, catalog: Catalog, shipment: Shipment, *, yes: bool) -> str:
    """The run in its store, once everything is there and its price is agreed to. Returns its URI."""
    from contextlib import suppress
    from dataclasses import replace

    from launcher import submit
    from launcher.errors import StoreError
    from launcher.planning.plan import make_plan
    from launcher.preflight import preflight, refuse
    from launcher.report.plan import plan_text
    from launcher.request import make_launch
    from launcher.runs.follow import refuse_if_live

    submit.refuse_unsupported(request)
    with suppress(StoreError):  # a store that does not answer is told below, with all else that is missing
        refuse_if_live(request.store, request.name)
    size = None if asked.model else asked.size or "tiny"
    train, held_out = submit.corpus_files(size, asked.data, asked.eval_data)
    count = submit.count_corpus(train)
    submit.say_counts(count)
    if held_out:
        submit.count_corpus(held_out)
    request = replace(request, corpus_tokens=count.tokens, corpus_conversations=count.conversations)
    plan = make_plan(request, catalog)
    say(plan_text(plan))
    refuse(preflight(request, plan, [*train, *held_out], _check_store, _check_clouds))
    _agree(plan, yes)
    return submit.create(request, plan, make_launch(asked, plan), shipment, train, held_out)


def _agree(plan: Plan, yes: bool) -> None:
    """Ask only where it costs money."""
    usd = plan.candidates[0].usd
    if not plan.notional and usd is not None:
        confirm(f"Spend about ${usd:,.2f}?", yes=yes)


def _check_store(uri: str) -> Sequence[Problem]:
    """Without conditional writes, two attempts might both believe that the run is theirs."""
    from trainer.artifacts import probe
    from trainer.artifacts.store import open_store

    probe.answer_s(open_store(uri))
    return []


def _check_clouds(clouds: Sequence[str]) -> Sequence[Problem]:
    """Only where there are some: the door to SkyPilot stays shut for a run on this machine."""
    from launcher.clouds.sky_api import access_problems

    return list(access_problems(clouds).values())
