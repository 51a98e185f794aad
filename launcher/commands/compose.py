"""`vlaunch compose`: controller, API with the page, worker and training as a folder for docker compose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from launcher import options
from launcher.output import emit, say

if TYPE_CHECKING:
    from pathlib import Path

    from launcher.services.compose import Written


@options.verb(
    "compose",
    examples=(
        "vlaunch compose                                 # Vicuna 7B on one GPU, into the folder compose",
        "vlaunch compose ./my-model --device cpu --to x  # a folder, on a machine without a GPU",
        "docker compose --project-directory compose up --build --wait",
    ),
)
@click.argument("model", metavar="[RUN|PATH|HF_ID]", required=False)
@options.option("--to", type=click.Path(file_okay=False), default="compose", help="The folder to write.")
@options.option("--model-name", help="What clients call the model.  [default: the run, the folder or the id]")
@options.option(
    "--device", type=click.Choice(("cuda", "cpu")), help="What the worker computes on.  [default: cuda]"
)
@options.option("--num-gpus", type=click.IntRange(min=1), help="GPUs of the worker.  [default: 1]")
@options.option("--load-8bit", is_flag=True, help="The weights in 8 bit.")
@options.option("--load-4bit", is_flag=True, help="The weights in 4 bit.")
@options.option("--host", help="Address of this machine to listen on.  [default: 127.0.0.1]")
@options.option("--port", type=click.IntRange(1, 65535), help="Of page and API.  [default: 8000]")
@options.option("--force", is_flag=True, help="Write over files that somebody has edited; .env stays.")
@options.store
@click.pass_context
def command(ctx: click.Context, /, model: str | None, to: str, store: str, force: bool, **given: Any) -> None:
    """Write docker-compose.yml, Dockerfile, .env and secrets; start nothing.

    Given again, it brings the folder up to this version: edited files stay and are told, lines of .env change only
    where an option asks for it, secrets are never made anew.
    """
    from pathlib import Path

    from launcher.errors import UsageError
    from launcher.services.compose import read_settings, served, write_deployment
    from launcher.services.model import find_model

    if given["load_8bit"] and given["load_4bit"]:
        raise UsageError("--load-8bit and --load-4bit exclude each other", hint="give one of them")
    values = served(find_model(model, store)) if model else {}
    folder = Path(to)
    done = write_deployment(folder, {**values, **_asked(given)}, force=force)
    for written in done:
        if written.what.startswith("edited"):
            say(f"note: {written.path} was {written.what}" + ("" if force else "; --force writes it anew"))
    answer, text = _answer(folder, read_settings(folder / ".env"), done)
    emit(ctx, answer, text)


def _asked(given: dict[str, Any]) -> dict[str, str]:
    """Options that were given, as values of .env."""
    values = {
        "MODEL_NAMES": given["model_name"],
        "COMPOSE_PROFILES": {"cuda": "gpu", "cpu": "cpu", None: None}[given["device"]],
        "GPU_NUM": given["num_gpus"],
        "WORKER_OPTIONS": next((f"--load-{n}bit" for n in (8, 4) if given[f"load_{n}bit"]), None),
        "API_BIND": given["host"],
        "API_PORT": given["port"],
    }
    return {name: str(value) for name, value in values.items() if value is not None}


def _answer(folder: Path, settings: dict[str, str], done: list[Written]) -> tuple[dict[str, Any], str]:
    url = f"http://{settings['API_BIND'].replace('0.0.0.0', '127.0.0.1')}:{settings['API_PORT']}"
    key_file = folder / "secrets/api-keys"
    compose = f"docker compose --project-directory {folder}"
    answer = {
        "folder": str(folder.absolute()),
        "files": [{"path": str(written.path), "what": written.what} for written in done],
        "model": settings["MODEL_NAMES"],
        "url": f"{url}/v1",
        "page": f"{url}/",
        "api_key_file": str(key_file),
    }
    lines = [f"{str(written.path):<40} {written.what}" for written in done]
    lines += [
        "",
        f"serve  {compose} up --build --wait",
        f"train  {compose} run --rm train",
        f"page   {url}/",
        f"ask    vlaunch message Hello --url {url}/v1 --api-key-file {key_file}",
    ]
    return answer, "\n".join(lines) + "\n"
