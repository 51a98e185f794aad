"""The store of a run: the few operations that the commit protocol, the journal and the metrics stand on.

The protocol needs two things of a store and nothing more: create-if-absent on one key, and a listing that
shows every object whose write has returned. Both hold for a directory, for S3 (since 2020) and for GCS.
There is no rename, no compare-and-swap and no clock in it.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable
from urllib.parse import unquote

from trainer.errors import StoreError, UsageError

TEMPORARY = ".tmp"
"""Folder of unfinished writes in a directory store; a key may not pass through it."""

SINGLE_WRITER = "s3+single-writer"
"""Scheme of a store on an S3 endpoint that overwrites: its user promises that no two machines write at once."""

_LONGEST_KEY = 1024  # bytes of UTF-8: the limit of S3 and of GCS
_LONGEST_PART = 255  # bytes: NAME_MAX of every common file system


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a listing. `modified` is in seconds by the clock of the store, not of this machine."""

    key: str
    size: int
    modified: float


class Store(Protocol):
    """Objects under keys, rooted at one URI. Every method raises StoreError when the store does not answer.

    A StoreError from a write means "not known": the write may have happened. All writes here can simply be
    repeated with the same bytes.
    """

    @property
    def uri(self) -> str: ...

    def put_new(self, key: str, data: bytes) -> bool:
        """Create if absent. True: created now, or these very bytes are there (an own retry after a lost
        reply). False: other bytes are there, and they stay."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Create or replace, atomically. Only for hints, logs and the export."""
        ...

    def put_file(self, key: str, path: Path) -> None:
        """Create or replace from a file, atomically. For blobs (same key, same bytes) and the export."""
        ...

    def get(self, key: str) -> bytes:
        """The bytes of an object; MissingKey where there is none."""
        ...

    def get_file(self, key: str, path: Path) -> None:
        """Write an object's bytes to `path`; MissingKey where there is none. Not atomic on the local side."""
        ...

    def size(self, key: str) -> int | None:
        """Bytes of an object; None where there is none."""
        ...

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[Entry]:
        """Objects whose key begins with `prefix` and comes after `start_after`, in order of their keys."""
        ...

    def children(self, prefix: str = "") -> builtins.list[str]:
        """Names one level below `prefix`, sorted: `children("runs/")` are run ids."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is fine."""
        ...


@runtime_checkable
class LeavesTraces(Protocol):
    """A store in which a killed writer leaves something behind that no listing shows and no reader wants."""

    def sweep(self, older_than_s: float) -> int:
        """Remove such traces that are older than this by the store's clock; how many."""
        ...


@runtime_checkable
class KnowsItsRegion(Protocol):
    """A store that can ask its service where it is."""

    def region(self) -> str:
        """`aws/us-east-1` or `gcp/us-central1`; empty where it is neither cloud's own service."""
        ...


def open_store(uri: str) -> Store:
    """The store at `s3://bucket/prefix`, `gs://bucket/prefix`, `file:///absolute/path` or a plain path.

    Nothing is asked for over the network, and nothing is created, before the first use.
    """
    from trainer.artifacts.local import LocalStore

    scheme, separator, rest = uri.partition("://")
    if not separator:
        if not uri.strip():
            raise UsageError("the store URI is empty", hint="give a directory, or file:///absolute/path")
        return LocalStore(Path(uri).expanduser())
    if scheme == "file":
        path = unquote(rest.removeprefix("localhost"))
        if not path.startswith("/"):
            raise UsageError(
                f"{uri} does not name an absolute path", hint="write it as file:///absolute/path"
            )
        return LocalStore(Path(path))
    if scheme in ("s3", SINGLE_WRITER):
        from trainer.artifacts.s3 import S3Store

        return S3Store(uri)
    if scheme == "gs":
        from trainer.artifacts.gcs import GCSStore

        return GCSStore(uri)
    raise UsageError(
        f"{uri}: unknown kind of store {scheme}://",
        hint="use s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or a directory",
    )


def join_uri(uri: str, *parts: str) -> str:
    """`join_uri("s3://b/x", "runs", "a")` is `s3://b/x/runs/a`; plain paths are joined the same way."""
    for part in parts:
        uri = (uri if uri.endswith("/") else uri + "/") + part.strip("/")
    return uri


def check_key(key: str) -> None:
    """Refuse a key that would leave the store's root, or that some store could not hold."""
    problem = _problem(key)
    if problem:
        raise StoreError(f"refused the key {key!r}: {problem}", hint="a key is a relative name: blob/0a1b")


def check_prefix(prefix: str) -> None:
    """Refuse a listing prefix that would leave the store's root; "" and "folder/" are fine."""
    if prefix and (problem := _problem(prefix + "x" if prefix.endswith("/") else prefix)):
        raise StoreError(f"refused the prefix {prefix!r}: {problem}", hint="it is the beginning of a key")


def is_key(name: str) -> bool:
    """Could this be a key? A bucket may hold other things too, which no listing shows."""
    return _problem(name) is None


def _problem(key: str) -> str | None:
    if not key:
        return "it is empty"
    if not key.isprintable() or "\\" in key:
        return "it has control characters or backslashes"
    parts = key.split("/")
    if "" in parts:
        return "it has an empty part"
    if "." in parts or ".." in parts or TEMPORARY in parts:
        return "it passes through '.', '..' or '.tmp'"
    if len(key.encode()) > _LONGEST_KEY or any(len(part.encode()) > _LONGEST_PART for part in parts):
        return "it is too long"
    return None
