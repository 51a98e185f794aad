"""`vlaunch serve RUN`: a model behind a chat page and OpenAI's API, or more workers for one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from launcher import options
from launcher.output import emit, say
from launcher.services.options import serve_options

if TYPE_CHECKING:
    from pathlib import Path

    from launcher.services.here import ServiceView
    from launcher.services.model import Model


@options.verb(
    "serve",
    examples=(
        "vlaunch serve tiny-1120-230501                  # a run's model: page and API on this machine",
        "vlaunch serve ./my-model --workers 2 --detach   # a folder; vlaunch stop ends it",
        "vlaunch serve org/model --infra aws --spot       # rented: a controller that stays, spot workers",
    ),
)
@click.argument("model", metavar="RUN|PATH|HF_ID")
@serve_options
@options.store
@options.dry_run
@options.yes
@options.detach
@click.pass_context
def command(
    ctx: click.Context, /, model: str, store: str, dry_run: bool, yes: bool, detach: bool, **given: Any
) -> None:
    """Serve a model: controller, workers, OpenAI's API and a chat page; here, or on rented machines with --infra.

    It returns, or prints the address, once the model has answered. Here Ctrl-C ends it; with --detach, and on rented
    machines, vlaunch stop does. With --controller-ip only workers are started, and join the service there.
    """
    from launcher.services.model import find_model
    from launcher.values import Infra

    found = find_model(model, store)
    if given["infra"] == (Infra("local"),):
        _here(ctx, found, given, dry_run=dry_run, detach=detach)
    else:
        _rented(ctx, found, given, dry_run=dry_run, yes=yes)


def _here(ctx: click.Context, model: Model, given: dict[str, Any], *, dry_run: bool, detach: bool) -> None:
    from launcher.services import here
    from launcher.services.request import make_service

    request = make_service(model, given)
    if dry_run:
        click.echo(request.service.model_dump_json(indent=2))
        return
    where = here.create(request.service, keys_needed=request.keys_needed, secret=request.secret)
    leash = here.start(where, leashed=not detach)
    name = request.service.name
    say(f"starting {name}; vlaunch logs -f {name} shows what it does")
    try:
        seen = here.wait_until_ready(name)
        answer, text = _answer(seen, where, here.key(name))
        emit(ctx, answer, text)
        if not detach:
            _stay(name)
    except KeyboardInterrupt:
        say("stopping; a second Ctrl-C does not wait")
    finally:
        if leash is not None:
            here.stop(name)
            leash.close()


def _rented(ctx: click.Context, model: Model, given: dict[str, Any], *, dry_run: bool, yes: bool) -> None:
    from launcher.clouds.base import open_machines
    from launcher.output import confirm
    from launcher.report.plan_serving import serve_plan_text
    from launcher.services import rented
    from launcher.services.here import home
    from launcher.services.rented_request import rent

    request = rent(model, given)
    if request.plan is not None:
        say(serve_plan_text(request.plan))
    if dry_run:
        click.echo(request.rented.text, nl=False)
        return
    machines = open_machines()
    if request.usd_per_hour is not None:
        confirm(f"Spend about ${request.usd_per_hour:,.2f} an hour until vlaunch stop?", yes=yes)
    name = request.rented.name
    rented.create(request.rented, secret=request.secret, keys=request.keys)
    say(f"{name} goes on without this terminal; vlaunch status {name}, vlaunch stop {name}")
    seen = rented.bring_up(name, machines)
    answer, text = _answer(seen, home(name), rented.api_key(home(name)))
    emit(ctx, answer, text)


def _answer(seen: ServiceView, where: Path, secret: str | None) -> tuple[dict[str, Any], str]:
    """`secret`: the API's key, if it needs one."""
    import json

    from serving.service import SECRET

    if seen.url is None:
        joined = {
            "name": seen.name,
            "controller": seen.controller,
            "model": seen.model,
            "workers": seen.workers,
        }
        return joined, f"{seen.workers} workers of {seen.model} have joined {seen.controller}\n"
    answer = {
        "name": seen.name,
        "url": f"{seen.url}/v1",
        "api_key": secret,
        "model": seen.model,
        "page": f"{seen.url}/",
        "controller": seen.controller,
        "secret_file": str(where / SECRET),
    }
    header = f' -H "Authorization: Bearer {secret}"' if secret else ""
    ask = json.dumps({"model": seen.model, "messages": [{"role": "user", "content": "Hello"}]})
    return answer, (
        f"page   {seen.url}/\n"
        f"API    {seen.url}/v1\n"
        f"key    {secret or 'none needed on this machine'}\n"
        f"model  {seen.model}\n"
        f"try    curl {seen.url}/v1/chat/completions{header} -H 'Content-Type: application/json' -d '{ask}'\n"
    )


def _stay(name: str) -> None:
    """Until Ctrl-C, or until the service ends by itself."""
    import time

    from launcher.errors import VlaunchError
    from launcher.services.here import home, view
    from serving.service import is_alive

    while is_alive(home(name)):
        time.sleep(0.2)
    seen = view(name)
    if seen.state == "failed":
        raise VlaunchError(f"the service ended: {seen.problem}", hint=f"vlaunch logs {name}")
