"""W&B's offline files, read back with wandb's own reader."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Offline:
    """One `.wandb` file."""

    run_id: str = ""
    name: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None


def read_offline(folder: Path) -> Offline:
    """The only run under a folder that `--wandb-offline` wrote."""
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    store, found = DataStore(), Offline()
    store.open_for_scan(str(path))
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run_id, found.name = record.run.run_id, record.run.display_name
            found.config |= _plain(record.run.config.update)
        elif kind == "config":
            found.config |= _plain(record.config.update)
        elif kind == "history":
            found.history.append(_plain(record.history.item))
        elif kind == "summary":
            found.summary |= _plain(record.summary.update)
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    store.close()
    return found


def _plain(items: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
