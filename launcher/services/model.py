"""What to serve: a run, a folder, or a Hugging Face id, as an engine opens it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import NotReady, UsageError
from launcher.render import run_uri
from launcher.runs.runview import find_run, run_ids
from trainer.artifacts.layout import EXPORT_MANIFEST
from trainer.artifacts.store import open_store

# https://huggingface.co/docs/hub/repositories: ORGANISATION/NAME
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class Model:
    """`source` is a run's URI, a folder or an id; `name` is what clients call it."""

    source: str
    name: str


def find_model(given: str, store: str) -> Model:
    """A folder if there is one of that name, else a run of the store, else an id of the hub.

    Raises:
        UsageError: none of the three. NotReady: the run has no model yet.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise UsageError(
                f"{path} holds no model", hint="a folder with config.json, tokenizer and safetensors is one"
            )
        return Model(str(path.absolute()), path.absolute().name)
    if _HUB_ID.fullmatch(given) and not given.startswith("."):
        return Model(given, given)
    if "/" in given or not run_ids(store):
        raise UsageError(
            f"{given} is no folder, no run in {store} and no Hugging Face id",
            hint="vlaunch runs lists runs; an id is ORGANISATION/NAME",
        )
    run = find_run(store, given)
    uri = run_uri(store, run)
    if open_store(uri).size(EXPORT_MANIFEST) is None:
        raise NotReady(
            f"{run} has no model yet", hint=f"vlaunch status {run} says how far it is; vlaunch resume goes on"
        )
    return Model(uri, run)
