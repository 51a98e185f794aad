"""What a corpus was made from and how: the JSON beside it, so that a run can say what it was trained on.

Written last: where it is, the output is whole. It holds no time, no path but those given and no worker count; the
same input, settings and versions give the same manifest.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from trainer.data.forms import file_hash
from trainer.errors import DataError

if TYPE_CHECKING:
    from trainer.data.pipeline import Job

VERSION = 1
Manifest: TypeAlias = dict[str, Any]
_TOOLS = (
    "vlaunch", "selectolax", "markdown-it-py", "py3langid", "tokenizers", "rensa", "orjson", "msgspec", "numpy"
)  # fmt: skip


def encode(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def read_manifest(path: Path) -> Manifest:
    """Raises DataError where it is no manifest of a corpus."""
    try:
        found = json.loads(path.read_bytes())
        if found["kind"] != "corpus" or found["version"] != VERSION:
            raise ValueError(f"version {found['version']} of {found['kind']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "`vlaunch data prepare` writes one beside its output"
        raise DataError(f"{path} is no manifest of a corpus: {error}", hint=hint) from error
    return dict(found)


def finished(job: Job, key: str) -> Manifest | None:
    """The manifest, if this very job was done and its files are still what it wrote."""
    try:
        manifest = read_manifest(job.manifest)
    except DataError:
        return None
    files = [(job.output, manifest["output"]), (job.rejected, manifest.get("rejected"))]
    for path, entry in files:
        if path is None:
            continue
        if not entry or not path.exists() or file_hash(path) != entry["sha256"]:
            return None
    return manifest if manifest["key"] == key else None


def versions() -> dict[str, str]:
    """Of everything that has a say in the bytes."""
    found = {"python": platform.python_version()}
    for name in _TOOLS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
