"""Which checkpoints of a run count: the rule, and what a reader needs to apply it.

A manifest of epoch e at step s is valid iff s <= resumed_from(f) for every later epoch f that started. The
protocol that makes this rule safe is in fencing.py; readers (status, reports, metrics) need only this file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.artifacts.layout import (
    BLOBS,
    EPOCHS,
    MANIFESTS,
    ManifestKey,
    epoch_start_key,
    manifest_key,
    parse_epoch_key,
    parse_manifest_key,
)
from trainer.artifacts.manifest import Manifest
from trainer.artifacts.store import Store
from trainer.errors import CorruptObject, MissingKey


@dataclass(frozen=True, slots=True)
class Start:
    """Where an epoch that was not voided resumed, and the key of the manifest that it restored."""

    resumed_from: int
    parent: str | None


def epochs(store: Store) -> tuple[set[int], set[int]]:
    """Epochs that are claimed, and those that are settled (started or void); one listing."""
    claimed: set[int] = set()
    settled: set[int] = set()
    for entry in store.list(EPOCHS):
        if parsed := parse_epoch_key(entry.key):
            (settled if parsed.is_start else claimed).add(parsed.epoch)
    return claimed, settled


def newest_epoch(store: Store) -> int:
    """The highest claim; 0 where none is."""
    return max(epochs(store)[0], default=0)


def start_records(store: Store) -> dict[int, Start]:
    """Every start that is not void, by epoch; one listing and one read per epoch."""
    found = {}
    for epoch in sorted(epochs(store)[1]):
        key = epoch_start_key(epoch)
        try:
            # A bit that flipped on the way is right the second time: not every service has checksums for replies.
            start = _start(store.get(key)) or _start(store.get(key))
        except _Void:
            continue
        if start is None:
            said = f"{store.uri}: {key} is not readable"
            raise CorruptObject(said, hint="without it no checkpoint can be judged")
        found[epoch] = start
    return found


class _Void(Exception):
    """The epoch never started."""


def _start(data: bytes) -> Start | None:
    """None where it is damaged: its step is there twice, once in the name of the checkpoint that it names."""
    try:
        record: dict[str, Any] = json.loads(data)
        if record.get("void"):
            raise _Void
        start = Start(int(record["resumed_from"]), record["parent"])
        parent = parse_manifest_key(start.parent) if start.parent is not None else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return start if start.parent is None or (parent and parent.step == start.resumed_from) else None


def starts(store: Store) -> dict[int, int]:
    """The validity rule as data: resumed_from of every epoch that started and is not void."""
    return {epoch: start.resumed_from for epoch, start in start_records(store).items()}


def is_valid(step: int, epoch: int, starts: Mapping[int, int]) -> bool:
    """Does what `epoch` wrote about `step` count: did every later epoch resume from there or beyond?"""
    return all(step <= resumed_from for later, resumed_from in starts.items() if later > epoch)


def valid_keys(store: Store) -> list[ManifestKey]:
    """Newest first. Manifests are listed before the starts: in between, an epoch can only invalidate."""
    listed = [parsed for entry in store.list(MANIFESTS) if (parsed := parse_manifest_key(entry.key))]
    settled = starts(store)
    return sorted((key for key in listed if is_valid(*key, settled)), reverse=True)


def valid_manifests(store: Store) -> list[Manifest]:
    """Every checkpoint that counts and is complete, newest first. For readers; it holds no claim."""
    return list(read_complete(store, valid_keys(store), []))


def read_complete(
    store: Store, keys: list[ManifestKey], passed_over: list[tuple[str, str]]
) -> Iterator[Manifest]:
    """Read manifests, passing over those that are damaged or whose blobs are gone (key and why are noted).

    A blob is there before its manifest and is deleted after it. A manifest without one was deleted, and then
    put again by a request of its writer that had been under way for very long.
    """
    sizes: dict[str, int] | None = None
    for step, epoch in keys:
        key = manifest_key(step, epoch)
        try:
            manifest = _read(store, key)
        except (MissingKey, CorruptObject) as error:
            passed_over.append((key, error.message))
            continue
        sizes = blob_sizes(store) if sizes is None else sizes
        problem = what_is_missing(manifest, sizes) if manifest.key == key else "it belongs under another key"
        if problem:
            passed_over.append((key, problem))
        else:
            yield manifest


def _read(store: Store, key: str) -> Manifest:
    try:
        return Manifest.decode(store.get(key))
    except CorruptObject:
        return Manifest.decode(store.get(key))  # a bit that flipped on the way is right the second time


def blob_sizes(store: Store) -> dict[str, int]:
    """The blobs that are there, by key; one request per thousand of them."""
    return {entry.key: entry.size for entry in store.list(BLOBS)}


def what_is_missing(manifest: Manifest, sizes: Mapping[str, int]) -> str | None:
    """The first file of a checkpoint whose blob is not there in its full size, as words; None if all are."""
    for file in manifest.files:
        if sizes.get(file.key) != file.size:
            return f"{file.key} ({file.name}) is {'of another size' if file.key in sizes else 'gone'}"
    return None
