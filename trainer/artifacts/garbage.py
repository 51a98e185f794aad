"""What may be deleted of a run, and in which order, so that no checkpoint that counts is ever hurt.

Only the holder of the highest claim collects, and it decides while it holds it: everything is listed first,
then the claim is checked, then deletions begin. If the machine is suspended in between and a newer attempt
takes over, the late deletions hit only keys that were listed before that attempt's claim, and never those of
the newest checkpoint of that time; the newer attempt writes keys of its own epoch and uses again only blobs
of that newest checkpoint (`Lease.reusable`). So no clock is needed for safety between attempts.

A checkpoint file that no manifest names goes at once: saves of one attempt follow one another, and collection
runs between two of them, also after one that failed, or a full store would stay full. Shared blobs (corpus,
caches) are named some time after they are sent, by other programs too: those have a grace. What is "now" for it
is the newest time stamp in the store, which needs no write: a full store can be collected.

Manifests go first and blobs after them, so an interrupted collection leaves unreferenced blobs (the next one
takes them), never a manifest without its blobs.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.artifacts.layout import (
    BLOBS,
    CACHE,
    CONFIG,
    EXPORT_MANIFEST,
    MANIFESTS,
    SHA256,
    ManifestKey,
    blob_name,
    manifest_key,
    parse_blob_key,
    parse_manifest_key,
)
from trainer.artifacts.manifest import Manifest
from trainer.artifacts.store import Entry, LeavesTraces, Store
from trainer.artifacts.validity import is_valid, read_complete, starts
from trainer.errors import MissingKey, StoreError

if TYPE_CHECKING:
    from trainer.artifacts.fencing import Lease

_NAMED = re.compile(rf"(?<![0-9a-f])({SHA256})(?![0-9a-f])(-e\d{{8}})?")


@dataclass(frozen=True, slots=True)
class GarbageReport:
    """What one collection has kept and deleted, or would."""

    kept: tuple[str, ...]  # keys of manifests, newest first
    manifests: tuple[str, ...]  # keys of the deleted ones
    blobs: int
    bytes: int
    traces: int  # unfinished writes of killed writers


def collect_garbage(
    store: Store, lease: Lease, keep_last: int, keep_every: int, grace_s: float, best: int | None = None
) -> GarbageReport:
    """Delete all checkpoints but the newest `keep_last`, those at multiples of `keep_every` (0: none), and the
    one of step `best`.

    With `keep_last` of 0 no checkpoint is left to go on from. Then delete the blobs that nothing names: checkpoint
    files at once, shared ones when they are older than `grace_s` by the store's clock. No save of this attempt may be
    under way in any of its processes. Fenced if the claim is lost. Costs a listing of manifests and blobs, and a read
    of each checkpoint that counts.
    """
    with lease.lock:
        plan = _decide(store, lease.epoch, keep_last, keep_every, best, grace_s)
        lease.refuse_if_lost()  # all of the plan was read while the run was ours
        for key in plan.dropped:
            store.delete(key)
        for entry in plan.unnamed:
            _delete_blob(store, lease, entry.key)
        return plan.report(sweep(store, grace_s))


def find_garbage(
    store: Store, epoch: int, keep_last: int, keep_every: int, grace_s: float, best: int | None = None
) -> GarbageReport:
    """What `collect_garbage` would do for the holder of this claim; reads, and needs no claim itself."""
    return _decide(store, epoch, keep_last, keep_every, best, grace_s).report(0)


def collect_copies(store: Store, kept: Collection[str], epoch: int) -> None:
    """Delete from a replica the manifests that are not `kept`, and the checkpoint files that then nothing names.

    Nothing is lost if this goes wrong, or late: whatever a replica lacks is read from the run's own store. A damaged
    manifest leaves all files where they are. Costs a listing of both, and a read of each manifest that is kept.
    """
    there = [entry.key for entry in store.list(MANIFESTS) if parse_manifest_key(entry.key)]
    for key in set(there).difference(kept):
        store.delete(key)
    named = {file.key for key in kept if key in there for file in Manifest.decode(store.get(key)).files}
    for entry in list(store.list(BLOBS)):
        parsed = parse_blob_key(entry.key)
        if parsed and parsed.epoch is not None and parsed.epoch <= epoch and entry.key not in named:
            store.delete(entry.key)


def sweep(store: Store, older_than_s: float) -> int:
    """Remove what killed writers have left where no listing shows it; how many such traces."""
    return store.sweep(older_than_s) if isinstance(store, LeavesTraces) else 0


@dataclass(frozen=True, slots=True)
class _Plan:
    kept: tuple[str, ...]
    dropped: tuple[str, ...]
    unnamed: tuple[Entry, ...]

    def report(self, traces: int) -> GarbageReport:
        size = sum(entry.size for entry in self.unnamed)
        return GarbageReport(self.kept, self.dropped, len(self.unnamed), size, traces)


def _decide(
    store: Store, epoch: int, keep_last: int, keep_every: int, best: int | None, grace_s: float
) -> _Plan:
    if keep_last < 0 or keep_every < 0:
        raise ValueError(f"keep_last={keep_last} and keep_every={keep_every} must be at least 0")
    listed = [parsed for entry in store.list(MANIFESTS) if (parsed := parse_manifest_key(entry.key))]
    settled = starts(store)
    valid = sorted((key for key in listed if is_valid(*key, settled)), reverse=True)
    complete = list(read_complete(store, valid, []))
    milestones = [
        m for m in complete[keep_last:] if m.step == best or (keep_every and m.step % keep_every == 0)
    ]
    kept = complete[:keep_last] + milestones
    keys = [manifest.key for manifest in kept]
    # A damaged one among the newest may be readable next time: it stays, and so do all blobs, as it cannot
    # tell which are its own. Newer checkpoints push it out of the window soon.
    window = valid if len(complete) < keep_last else _newer_than(complete[:keep_last], valid)
    damaged = [key for position in window if (key := manifest_key(*position)) not in keys]
    dropped = {manifest_key(*position) for position in listed}.difference(keys, damaged)
    unnamed = () if damaged else _unnamed_blobs(store, epoch, kept, grace_s)
    return _Plan(tuple(keys), tuple(sorted(dropped)), tuple(unnamed))


def _newer_than(kept: list[Manifest], valid: list[ManifestKey]) -> list[ManifestKey]:
    """Of all that count, newest first, those before the oldest kept one."""
    return valid[: valid.index(ManifestKey(kept[-1].step, kept[-1].epoch))] if kept else []


def _unnamed_blobs(store: Store, epoch: int, kept: list[Manifest], grace_s: float) -> list[Entry]:
    named = {file.blob for manifest in kept for file in manifest.files} | _named_in_documents(store)
    entries = list(store.list(BLOBS))
    before = max((entry.modified for entry in entries), default=0.0) - grace_s
    found = []
    for entry in entries:
        parsed = parse_blob_key(entry.key)
        # A document may give the hash of a file only: then every blob with these bytes stays.
        if not parsed or named & {parsed.sha256, blob_name(*parsed)}:
            continue
        if entry.modified < before if parsed.epoch is None else parsed.epoch <= epoch:
            found.append(entry)
    return found


def _named_in_documents(store: Store) -> set[str]:
    """Every hash, and every blob name, that the configuration, a cache or the export mentions."""
    named = set()
    for prefix in (CONFIG, CACHE, EXPORT_MANIFEST):
        for entry in store.list(prefix):
            try:
                text = store.get(entry.key).decode(errors="replace")
            except MissingKey:
                continue
            named |= {sha256 + (epoch or "") for sha256, epoch in _NAMED.findall(text)}
    return named


def _delete_blob(store: Store, lease: Lease, key: str) -> None:
    try:
        store.delete(key)
    except StoreError:
        # Not known whether, or when: this attempt must not count on the key any more.
        lease.doomed.add(key)
        raise
