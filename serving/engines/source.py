"""Where a model lies: a run's export, a folder, or a Hugging Face id, made a folder or an id to load from."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from trainer.artifacts.layout import EXPORT_MANIFEST, export_key
from trainer.artifacts.manifest import hash_file
from trainer.artifacts.store import check_key, open_store
from trainer.errors import ConfigError, CorruptObject, MissingKey, NotReady

_ADAPTER = "adapter_config.json"
# What trainer/export.py puts beside adapters whose base nobody else has, and the name of a listing in its folder.
_BASE, _LISTING = "base", "manifest.json"


@dataclass(frozen=True, slots=True)
class Source:
    """What to load.

    Attributes:
        base: folder or Hugging Face id of the weights.
        revision: its commit, for an id.
        tokeniser: folder or id of the tokeniser.
        adapter: the folder of an adapter that makes the base the model that was asked for.
        template: the name of the chat template it was trained with, if its export says so.
    """

    base: str
    tokeniser: str
    revision: str | None = None
    adapter: Path | None = None
    template: str | None = None


def locate(model: str, cache: Path) -> Source:
    """Find the model of a run (its URI in the store), a folder, or an id.

    A run's export is fetched into `cache` once, and every byte is checked against its listing.

    Raises:
        ConfigError: there is no such folder, or its adapter does not say what its base is.
        NotReady: the run has no export yet.
        CorruptObject: the export is damaged.
    """
    if "://" in model:
        return _of_folder(_fetched(model, cache), None)
    folder = Path(model).expanduser()
    if (folder / EXPORT_MANIFEST).is_file():
        return _of_folder(folder / "export", None)
    if folder.is_dir():
        return _of_folder(folder, None)
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise ConfigError(
            f"there is no model folder {model}", hint="give a run, a folder, or a Hugging Face id"
        )
    return Source(base=model, tokeniser=model)


def _of_folder(folder: Path, revision: str | None) -> Source:
    template = _template(folder)
    if not (folder / _ADAPTER).is_file():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"{folder} holds no model: it has no config.json")
        return Source(str(folder), str(folder), revision, template=template)
    if (folder / _BASE).is_dir():
        return Source(str(folder / _BASE), str(folder), adapter=folder, template=template)
    try:
        config = json.loads((folder / _ADAPTER).read_text())
        base, commit = config["base_model_name_or_path"], config.get("revision")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder / _ADAPTER} does not name a base: {error!r}") from None
    has_tokeniser = (folder / "tokenizer.json").is_file()
    return Source(str(base), str(folder) if has_tokeniser else str(base), commit, folder, template)


def _template(folder: Path) -> str | None:
    try:
        named = json.loads((folder / _LISTING).read_text()).get("template")
    except (OSError, ValueError, AttributeError):
        return None
    return named if isinstance(named, str) else None


def _fetched(uri: str, cache: Path) -> Path:
    """The files of a run's export, in a folder of `cache` named by what they are. Whole, or not there."""
    store = open_store(uri)
    try:
        listing = store.get(EXPORT_MANIFEST)
    except MissingKey:
        raise NotReady(
            f"{uri} has no exported model", hint="vlaunch status says how far the run is"
        ) from None
    try:
        files = [(str(file["name"]), str(file["sha256"])) for file in json.loads(listing)["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptObject(f"{uri}: {EXPORT_MANIFEST} cannot be read: {error!r}") from None
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=cache, prefix=".fetching-"))
    try:
        (unfinished / _LISTING).write_bytes(listing)
        name = f"export-{hash_file(unfinished / _LISTING)[:16]}"
        if (cache / name).is_dir():
            return cache / name
        for file, sha256 in files:
            check_key(file)
            path = unfinished / file
            path.parent.mkdir(parents=True, exist_ok=True)
            store.get_file(export_key(file), path)
            if hash_file(path) != sha256:
                raise CorruptObject(f"{uri}: {file} of the export is not what its listing says")
        try:
            unfinished.rename(cache / name)
        except OSError:  # another worker on this machine was first
            if not (cache / name).is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return cache / name
