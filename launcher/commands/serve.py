"""`vlaunch serve RUN`: a model behind a chat page and OpenAI's API, or more workers for one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from launcher import options
from launcher.output import emit, say
from launcher.serve_options import serve_options

if TYPE_CHECKING:
    from pathlib import Path

    from launcher.services import ServiceView


@options.verb(
    "serve",
    examples=(
        "vlaunch serve tiny-1120-230501                  # a run's model: page and API on this machine",
        "vlaunch serve ./my-model --workers 2 --detach   # a folder; vlaunch stop ends it",
    ),
)
@click.argument("model", metavar="RUN|PATH|HF_ID")
@serve_options
@options.store
@options.detach
@click.pass_context
def command(ctx: click.Context, /, model: str, store: str, detach: bool, **given: Any) -> None:
    """Serve a model: controller, workers, OpenAI's API and a chat page, looked after on this machine.

    It returns, or prints the address, once the model has answered. Ctrl-C ends it; with --detach, vlaunch stop.
    With --controller-ip only workers are started, and join the service there.
    """
    from launcher import services
    from launcher.serve_model import find_model
    from launcher.serve_request import make_service

    request = make_service(find_model(model, store), given)
    where = services.create(request.service, keys_needed=request.keys_needed, secret=request.secret)
    leash = services.start(where, leashed=not detach)
    name = request.service.name
    say(f"starting {name}; vlaunch logs -f {name} shows what it does")
    try:
        seen = services.wait_until_ready(name)
        answer, text = _answer(seen, where)
        emit(ctx, answer, text)
        if not detach:
            _stay(name)
    except KeyboardInterrupt:
        say("stopping; a second Ctrl-C does not wait")
    finally:
        if leash is not None:
            services.stop(name)
            leash.close()


def _answer(seen: ServiceView, where: Path) -> tuple[dict[str, Any], str]:
    import json

    from launcher.services import key
    from serving.service import SECRET

    if seen.url is None:
        joined = {
            "name": seen.name,
            "controller": seen.controller,
            "model": seen.model,
            "workers": seen.workers,
        }
        return joined, f"{seen.workers} workers of {seen.model} have joined {seen.controller}\n"
    secret = key(seen.name)
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
    from launcher.services import home, view
    from serving.service import is_alive

    while is_alive(home(name)):
        time.sleep(0.2)
    seen = view(name)
    if seen.state == "failed":
        raise VlaunchError(f"the service ended: {seen.problem}", hint=f"vlaunch logs {name}")
