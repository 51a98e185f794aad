"""`vlaunch message TEXT`: one question, one answer, an exit code."""

from __future__ import annotations

from typing import Any

import click

from launcher import options
from launcher.output import emit, session
from launcher.services.client_options import client_options


@options.verb(
    "message",
    examples=("vlaunch message 'Hello'                       # exit code 0 if a model answered",
              "vlaunch message - --json < question.txt"),
)  # fmt: skip
@click.argument("text")
@client_options
@click.pass_context
def command(ctx: click.Context, /, text: str, **given: Any) -> None:
    """Ask once and print the answer as it comes; `-` reads the question from stdin.

    Exit code 0: an answer with at least one character. 1: the API failed or said nothing. 3: it cannot be reached.
    """
    import sys
    import time

    from launcher.errors import VlaunchError
    from launcher.services.client import open_api, sampling
    from serving.chat import pick_model

    api = open_api(given)
    model = pick_model(api, given["model"])
    question = sys.stdin.read() if text == "-" else text
    messages = [{"role": "user", "content": question}]
    if given["system"]:
        messages.insert(0, {"role": "system", "content": given["system"]})
    began, first_s, answer = time.monotonic(), None, ""
    for piece in api.stream(model, messages, **sampling(given)):
        if piece and first_s is None:
            first_s = time.monotonic() - began
        answer += piece
        if not session().json:
            click.echo(piece, nl=False)
    if not answer:
        raise VlaunchError(
            f"{model} answered with nothing", hint="another question, or a model that is trained"
        )
    seconds = {"first_token_s": first_s, "seconds": time.monotonic() - began}
    emit(ctx, {"model": model, "answer": answer, **seconds}, "\n")
