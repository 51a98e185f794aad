"""What a checkpoint consists of: one manifest, written last, and the blobs it names.

A manifest is the commit point: it is put with create-if-absent after all of its blobs, so a checkpoint is
there completely or not at all. It carries a digest of itself and the SHA-256 of every file; nothing that is
read back is trusted before its hash is right.

A blob is put under the hash of its bytes. Two kinds, by name:

- `<sha256>`: shared. Corpus, imported weights, caches: what config.json, cache/*.json or the export name.
- `<sha256>-e<epoch>`: a checkpoint file, sent by that epoch. No later epoch ever writes this key again.

Why checkpoint files carry their epoch. Training is deterministic, so an attempt that falls back from a
damaged checkpoint computes that very file again; found under its bare hash it would not be sent, and the
damaged bytes would be in the new checkpoint as well. And a garbage collector that was suspended (a stopped
machine) may delete a bare hash long after a newer attempt has decided to use it again. A key that no later
epoch writes cannot be hurt by either.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from trainer.artifacts.layout import BLOB_NAME, blob_key, blob_name, manifest_key, parse_blob_key
from trainer.artifacts.store import Store, check_key
from trainer.errors import CorruptObject, StoreError

VERSION = 1
_CHUNK = 4 << 20  # bytes hashed at a time: large enough that Python's share is nothing

BlobName = Annotated[str, StringConstraints(pattern=rf"^{BLOB_NAME}$")]


class FileEntry(BaseModel):
    """One file of a checkpoint, of the corpus or of a cache: its relative name and the blob that holds it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    blob: BlobName
    size: Annotated[int, Field(ge=0)]

    @field_validator("name")
    @classmethod
    def _stays_inside(cls, name: str) -> str:
        try:
            check_key(name)
        except StoreError as error:
            raise ValueError(error.message) from None
        return name

    @property
    def key(self) -> str:
        return blob_key(self.blob)

    @property
    def sha256(self) -> str:
        return self.blob[:64]

    @property
    def epoch(self) -> int | None:
        """The epoch that sent it; None for a shared blob."""
        parsed = parse_blob_key(self.key)
        return parsed.epoch if parsed else None


class Manifest(BaseModel):
    """A complete checkpoint: the state after `step` optimiser steps, written by one epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = VERSION
    step: Annotated[int, Field(ge=0)]
    epoch: Annotated[int, Field(ge=1)]
    parent: str | None  # key of the manifest that this attempt resumed from
    world_size: Annotated[int, Field(ge=1)]
    machine: str = (
        ""  # kind of device and threads per process: elsewhere the numbers differ in their last bits
    )
    samples: Annotated[int, Field(ge=0)]
    tokens: Annotated[int, Field(ge=0)]
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))  # for people; decides nothing
    store: str = ""  # URI of the store that holds the blobs: a move between regions is one read from there
    region: str = ""  # of that store, as `aws/us-east-1`; empty where it is not known
    files: tuple[FileEntry, ...]
    nonce: str = Field(default_factory=lambda: secrets.token_hex(8))  # no two writers put the same bytes

    @property
    def key(self) -> str:
        return manifest_key(self.step, self.epoch)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def encode(self) -> bytes:
        body = self.model_dump(mode="json")
        return json.dumps({**body, "digest": _digest(body)}, sort_keys=True, indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """CorruptObject for damaged bytes, StoreError for a manifest of a later version of this program."""
        try:
            body = json.loads(data)
            told = body.pop("digest")
            version = body["version"]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CorruptObject("the manifest is not readable") from None
        if told != _digest(body):
            raise CorruptObject("the manifest does not match its own digest")
        if version != VERSION:
            raise StoreError(f"the manifest has version {version}, this program reads {VERSION}", hint=_NEWER)
        try:
            return cls.model_validate(body)
        except ValidationError as error:
            raise CorruptObject(f"the manifest has impossible fields: {error.errors()[0]['msg']}") from None


_NEWER = "the run was continued by a newer vlaunch: install that version here too"


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex; about half a CPU second per GB."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def put_blob(
    store: Store,
    path: Path,
    *,
    epoch: int | None = None,
    known: Iterable[FileEntry] = (),
    name: str | None = None,
) -> FileEntry:
    """Put a file's bytes into the store unless they are there, and return its entry for a manifest.

    `epoch` is the lease's for a checkpoint file (see the module's docstring), None for a shared blob.
    `known` are entries whose blobs this attempt may use again (`Lease.reusable`): frozen weights are sent
    once per run. One size() per file that might be there, one hash of the file always.
    """
    before = os.stat(path)
    sha256, size = hash_file(path), before.st_size
    named = name or path.name
    mine = FileEntry(name=named, blob=blob_name(sha256, epoch), size=size)
    for other in known:
        if other.sha256 == sha256 and other.size == size and store.size(other.key) == size:
            return FileEntry(name=named, blob=other.blob, size=size)
    if store.size(mine.key) == size:
        return mine
    store.put_file(mine.key, path)
    after = os.stat(path)
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise StoreError(f"{path} changed while it was being sent", hint="finish writing it, then send it")
    return mine


def fetch_verified(store: Store, entry: FileEntry, dest_dir: Path) -> Path:
    """Fetch a blob to `dest_dir/entry.name` and return that path; it exists only if its bytes are right.

    Bytes that do not match are fetched once more (a bit that flipped on the way), then CorruptObject.
    A blob that is gone is MissingKey. For both, the checkpoint is lost: fall back to the one before.
    """
    final = dest_dir / entry.name
    final.parent.mkdir(parents=True, exist_ok=True)
    arriving = final.with_name(f"{final.name}.{secrets.token_hex(4)}.part")
    try:
        for _ in range(2):
            store.get_file(entry.key, arriving)
            if os.stat(arriving).st_size == entry.size and hash_file(arriving) == entry.sha256:
                os.replace(arriving, final)
                return final
    finally:
        arriving.unlink(missing_ok=True)
    raise CorruptObject(
        f"{store.uri}: {entry.key} ({entry.name}) does not have the bytes that its hash promises",
        hint="the object is damaged; an older checkpoint is used where there is one",
    )
