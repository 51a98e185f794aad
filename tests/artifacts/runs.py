"""A run as the tests see it: attempts that keep the protocol, and an observer that knows what must hold."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.artifacts.stores import Operation
from trainer.artifacts.fencing import Lease, claim
from trainer.artifacts.garbage import collect_garbage
from trainer.artifacts.layout import parse_manifest_key
from trainer.artifacts.manifest import FileEntry, Manifest, fetch_verified, put_blob
from trainer.artifacts.store import Store
from trainer.artifacts.validity import is_valid, newest_epoch, start_records, valid_manifests
from trainer.errors import CorruptObject, Fenced, MissingKey, StoreError

STEP = 10
LAST = 50


class Disk:
    """The files that training would write: the same bytes for the same step, in every attempt."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def files(self, step: int) -> list[Path]:
        """Frozen weights, and a state that is different after every step."""
        made = []
        for name, content in (("frozen", b"never changes"), (f"state-{step}", b"%d" % step * 5)):
            path = self.folder / name
            if not path.exists():
                path.write_bytes(content)
            made.append(path)
        return made


class Violation(AssertionError):
    """The protocol broke a promise."""


@dataclass
class Observer:
    """Looks at the bare store between operations; the writers tell it what they believe."""

    store: Store
    durable: dict[str, Manifest] = field(default_factory=dict)  # by key; what commit() returned for
    deleted: set[str] = field(default_factory=set)
    damaged: dict[str, int] = field(default_factory=dict)  # blob key -> newest epoch at that time

    def believes_durable(self, manifest: Manifest) -> None:
        if newest_epoch(self.store) != manifest.epoch:
            raise Violation(f"{manifest.key} was called durable after a newer claim")
        for file in manifest.files:
            if self.damaged.get(file.key, manifest.epoch) < manifest.epoch:
                raise Violation(
                    f"{manifest.key} was called durable with {file.key}, which was damaged before"
                )
        self.durable[manifest.key] = manifest

    def sees(self, operation: Operation) -> None:
        """Called before every operation, also a late one: what is deleted must have been replaced."""
        if operation.name == "delete":
            lost = operation.key in self.durable and not self.damaged
            if lost and not any(manifest.key > operation.key for manifest in valid_manifests(self.store)):
                raise Violation(
                    f"{operation.key} was durable and is deleted, with nothing newer in its place"
                )
            self.deleted.add(operation.key)

    def check(self) -> None:
        counting = {manifest.key: manifest for manifest in valid_manifests(self.store)}
        for manifest in counting.values():
            self._is_whole(manifest)
        for key, manifest in self.durable.items():
            touched = key in self.deleted or any(file.key in self.damaged for file in manifest.files)
            if key not in counting and not touched:
                raise Violation(f"{key} was durable and is not valid any more")
        self._check_chain(counting)

    def _is_whole(self, manifest: Manifest) -> None:
        for file in manifest.files:
            try:
                data = self.store.get(file.key)
            except MissingKey:
                raise Violation(f"{manifest.key} is valid but torn: {file.key} is gone") from None
            if file.key not in self.damaged and hashlib.sha256(data).hexdigest() != file.sha256:
                raise Violation(f"{manifest.key} is valid but torn: {file.key} has other bytes")

    def _check_chain(self, counting: dict[str, Manifest]) -> None:
        """Every start continues from a checkpoint that counted for it; beyond it, elders do not count."""
        records = start_records(self.store)
        for epoch, start in records.items():
            if start.parent is None:
                if start.resumed_from != 0:
                    raise Violation(f"epoch {epoch} resumed from {start.resumed_from}, out of nothing")
                continue
            parent = parse_manifest_key(start.parent)
            earlier = {e: s.resumed_from for e, s in records.items() if e < epoch}
            if parent is None or parent.step != start.resumed_from or parent.epoch not in earlier:
                raise Violation(f"epoch {epoch} resumed from {start}, which no earlier epoch wrote")
            if not is_valid(parent.step, parent.epoch, earlier):
                raise Violation(f"epoch {epoch} resumed from {start.parent}, which did not count")
        for manifest in counting.values():
            for epoch, start in records.items():
                if epoch > manifest.epoch and manifest.step > start.resumed_from:
                    raise Violation(f"{manifest.key} counts although epoch {epoch} resumed before it")


def checkpoint(lease: Lease, disk: Disk, step: int, **changes: object) -> Manifest:
    """Sends the files of a step, unless `changes` names others, and returns their manifest, uncommitted."""
    if "files" not in changes:
        known = lease.reusable
        changes["files"] = [
            put_blob(lease.store, p, epoch=lease.epoch, known=known) for p in disk.files(step)
        ]
    fields = dict(step=step, epoch=lease.epoch, parent=None, world_size=1, samples=step * 4, tokens=step * 40)
    return Manifest.model_validate(fields | changes)


def begin(store: Store) -> Lease:
    """A new attempt that resumes from the newest checkpoint."""
    lease = claim(store)
    newest = next(lease.newest(), None)
    lease.start(newest.step if newest else 0, newest.key if newest else None)
    return lease


def steps(store: Store) -> list[int]:
    return [manifest.step for manifest in valid_manifests(store)]


@dataclass(frozen=True)
class Habits:
    """How an attempt goes about it. The defaults are the protocol; tests break one habit at a time."""

    keep_last: int = 1
    keep_every: int = 0
    grace_s: float = 100.0
    tries: int = 2
    share_blobs: bool = False  # checkpoint files under their bare hash, as corpus files are
    take_over: Callable[[Store], tuple[Lease, list[Manifest] | None]] = lambda store: (claim(store), None)
    commit: Callable[[Lease, Manifest], None] = lambda lease, manifest: lease.commit(manifest)


@dataclass(frozen=True)
class Attempt:
    """One life of a run: claim, restore, then a checkpoint every ten steps and a collection after each."""

    disk: Disk
    observer: Observer
    habits: Habits = Habits()

    def __call__(self, store: Store) -> None:
        try:
            lease, listed = self.habits.take_over(store)
            parent = self.restore(store, lease.newest() if listed is None else iter(listed))
            lease.start(parent.step if parent else 0, parent.key if parent else None)
        except (Fenced, StoreError):
            return  # whoever started this attempt starts another
        try:
            for step in range(parent.step if parent else 0, LAST, STEP):
                self.save(store, lease, step + STEP, parent)
        except Fenced:
            return

    def restore(self, store: Store, listed: Iterable[Manifest]) -> Manifest | None:
        for manifest in listed:
            try:
                with tempfile.TemporaryDirectory(dir=self.disk.folder) as folder:
                    for file in manifest.files:
                        fetch_verified(store, file, Path(folder))
                return manifest
            except (CorruptObject, MissingKey):
                continue
        return None

    def save(self, store: Store, lease: Lease, step: int, parent: Manifest | None) -> None:
        habits = self.habits
        try:
            files = tuple(self.send(store, lease, path) for path in self.disk.files(step))
            manifest = checkpoint(lease, self.disk, step, files=files, parent=parent.key if parent else None)
            self.persist(lease, manifest)
            self.observer.believes_durable(manifest)
            collect_garbage(store, lease, habits.keep_last, habits.keep_every, habits.grace_s)
        except StoreError:
            return  # a save that fails is no reason to stop training

    def send(self, store: Store, lease: Lease, path: Path) -> FileEntry:
        if self.habits.share_blobs:
            return put_blob(store, path)
        return put_blob(store, path, epoch=lease.epoch, known=lease.reusable)

    def persist(self, lease: Lease, manifest: Manifest) -> None:
        for last in (False,) * (self.habits.tries - 1) + (True,):
            try:
                return self.habits.commit(lease, manifest)
            except StoreError:
                if last:
                    raise
