"""What to serve: a run's export, a folder, or a Hugging Face id, as the folder or id that an engine opens."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import CorruptObject, MissingKey, NotReady, UsageError
from launcher.render import run_uri
from launcher.runview import find_run, run_ids
from launcher.settings import cache_dir
from trainer.artifacts.layout import EXPORT_MANIFEST, export_key
from trainer.artifacts.manifest import hash_file
from trainer.artifacts.store import check_key, open_store

# https://huggingface.co/docs/hub/repositories: ORGANISATION/NAME
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class Model:
    """`source` is a folder or an id; `name` is what clients call it."""

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
    return Model(str(fetch_export(store, run)), run)


def fetch_export(store_uri: str, run: str) -> Path:
    """The exported model of a run in the cache folder, every file with the bytes that its manifest promises.

    Raises:
        NotReady: the run has not exported. CorruptObject: the store's bytes are not those of the manifest.
    """
    store = open_store(run_uri(store_uri, run))
    try:
        manifest = store.get(EXPORT_MANIFEST)
    except MissingKey:
        raise NotReady(
            f"{run} has no model yet", hint=f"vlaunch status {run} says how far it is; vlaunch resume goes on"
        ) from None
    files = json.loads(manifest)["files"]
    folder = cache_dir() / "exports" / f"{run}-{hashlib.sha256(manifest).hexdigest()[:12]}"
    for file in files:
        check_key(export_key(file["name"]))  # no name leads out of the folder
        target = folder / file["name"]
        if target.is_file() and target.stat().st_size == file["size"] and hash_file(target) == file["sha256"]:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        arriving = target.with_name(f"{target.name}.part")
        store.get_file(export_key(file["name"]), arriving)
        if hash_file(arriving) != file["sha256"]:
            arriving.unlink()
            raise CorruptObject(
                f"{store.uri}: export/{file['name']} does not have the bytes that its manifest promises",
                hint=f"vlaunch resume {run} exports again",
            )
        os.replace(arriving, target)
    return folder
