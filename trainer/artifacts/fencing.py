"""Who may write checkpoints of a run, and which of them count.

A spot machine that was given up for lost can wake up and go on writing (a "zombie"), so that two attempts
write at once. The store has no locks; it has create-if-absent and a consistent listing. From these:

1. An attempt claims the next epoch: create-if-absent `epoch/<e>`. The highest claim owns the run.
2. It voids every older claim that has no start record: create-if-absent `epoch/<f>.start {void}`. From here
   on it is settled which older epochs count and where each of them resumed.
3. Only now it lists the manifests, so that none that an owner believed durable can be overlooked.
4. It verifies a checkpoint, newest first, and creates `epoch/<e>.start {resumed_from, parent}`. If a newer
   claim has put its void there first, this attempt is fenced.
5. To save: blobs, check the claim, check the blobs, create the manifest, check the claim again. Only if the
   claim is still the highest when the manifest is there is it durable: who claims later, lists later.

A manifest of epoch e at step s is VALID iff s <= resumed_from(f) for every later epoch f that started: what a
zombie writes beyond the step at which its successor resumed does not count, for any reader, for ever.
Epochs and start records never change and are never deleted, so what is invalid once stays so.

Example: epoch 1 saves 10 and 20 and is cut off. Epoch 2 claims, lists [20, 10], resumes from 20. Epoch 1
wakes up and puts a manifest for 30: its second check sees claim 2, so it stops without calling 30 durable,
and as 30 > 20 no reader takes it. Epoch 2 saves its own 30.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator

from trainer.artifacts.layout import EPOCHS, epoch_key, epoch_start_key
from trainer.artifacts.manifest import FileEntry, Manifest
from trainer.artifacts.store import Store
from trainer.artifacts.validity import (
    blob_sizes,
    epochs,
    newest_epoch,
    read_complete,
    valid_keys,
    what_is_missing,
)
from trainer.errors import Fenced, StoreError

_VOID = b'{"void": true}\n'
_CLAIM_TRIES = 100  # each lost try means that another attempt claimed; a hundred in a row is a fault


def claim(store: Store) -> Lease:
    """Claim the next epoch, settle the older ones, and list: 1 to 3 of the module's docstring."""
    for _ in range(_CLAIM_TRIES):
        epoch = newest_epoch(store) + 1
        record = json.dumps({"nonce": secrets.token_hex(16)}).encode() + b"\n"
        if store.put_new(epoch_key(epoch), record):
            _void_unstarted(store, epoch)
            return Lease(store, epoch)
    raise StoreError(f"{store.uri}: {_CLAIM_TRIES} claims in a row were lost", hint="stop the other attempts")


def _void_unstarted(store: Store, below: int) -> None:
    claimed, settled = epochs(store)
    for older in sorted(claimed - settled):
        if older < below:
            store.put_new(epoch_start_key(older), _VOID)  # False: it has just started, which settles it too


class Lease:
    """The right to write checkpoints of one run, until a newer claim. Made by `claim`; thread-safe."""

    def __init__(self, store: Store, epoch: int) -> None:
        """Lists what is there; the epoch must be claimed, and older claims settled, before."""
        self.store = store
        self.epoch = epoch
        self.lock = threading.RLock()  # a save and a garbage collection of one process never interleave
        self.doomed: set[str] = set()  # keys whose deletion got no answer: it may still happen
        self.passed_over: list[tuple[str, str]] = []  # manifests that newest() could not give: key and why
        self.reusable: tuple[FileEntry, ...] = ()  # entries whose blobs a save may name without sending them
        self._keys = valid_keys(store)
        self._newest: Manifest | None = None
        self._resumed_from: int | None = None

    def newest(self) -> Iterator[Manifest]:
        """Valid and complete manifests, newest first, as listed after the claim."""
        self.passed_over.clear()
        for manifest in read_complete(self.store, self._keys, self.passed_over):
            if (manifest.step, manifest.epoch) == self._keys[0]:
                self._newest = manifest
            yield manifest

    def start(self, resumed_from: int, parent: str | None) -> None:
        """Settle where this attempt resumes; Fenced if a newer claim has voided this one.

        `parent` is the key of the verified manifest that was restored, None for a fresh beginning.
        """
        key = epoch_start_key(self.epoch)
        record = json.dumps({"resumed_from": resumed_from, "parent": parent}).encode() + b"\n"
        if not self.store.put_new(key, record):
            if self.store.get(key) == _VOID:
                raise self._fenced()
            raise StoreError(f"{self.store.uri}: {key} is there and says otherwise", hint="claim a new epoch")
        self._resumed_from = resumed_from
        if self._newest and self._newest.key == parent:
            # Only of the newest one of all: every collector keeps that, so none can have doomed its blobs,
            # however late its deletions arrive.
            self.reusable = self._newest.files

    def held(self) -> bool:
        """Is this the highest claim; one short listing."""
        later = self.store.list(EPOCHS, start_after=epoch_start_key(self.epoch))
        return next(iter(later), None) is None

    def refuse_if_lost(self) -> None:
        """Fenced unless this is the highest claim."""
        if not self.held():
            raise self._fenced()

    def commit(self, manifest: Manifest) -> None:
        """Make a checkpoint durable: returns only if no claim can overlook it, Fenced if a newer one might.

        A StoreError means not known: the same call can be repeated. All blobs must have been put before.
        """
        with self.lock:
            self._refuse_foreign(manifest)
            self.refuse_if_lost()
            self._refuse_incomplete(manifest)
            if not self.store.put_new(manifest.key, manifest.encode()):
                self._refuse_different(manifest)
            self.refuse_if_lost()

    def _refuse_foreign(self, manifest: Manifest) -> None:
        if self._resumed_from is None:
            raise ValueError("commit() before start()")
        if manifest.epoch != self.epoch or manifest.step < self._resumed_from:
            raise ValueError(f"{manifest.key} is not of epoch {self.epoch} from step {self._resumed_from} on")
        usable = {entry.blob for entry in self.reusable}
        for file in manifest.files:
            if file.epoch not in (None, self.epoch) and file.blob not in usable:
                raise ValueError(f"{file.key} is of an older epoch and not in Lease.reusable: send it again")

    def _refuse_incomplete(self, manifest: Manifest) -> None:
        """A blob that was found there, instead of being sent, may have been collected since."""
        problem = what_is_missing(manifest, blob_sizes(self.store))
        doomed = next((file.key for file in manifest.files if file.key in self.doomed), None)
        if problem or doomed:
            said = problem or f"{doomed} is being deleted"
            raise StoreError(f"{self.store.uri}: {manifest.key} is not complete: {said}", hint="save again")

    def _refuse_different(self, manifest: Manifest) -> None:
        """Our own manifest of an earlier try may be there: the same checkpoint, made at another moment."""
        there = Manifest.decode(self.store.get(manifest.key))
        if (there.files, there.samples) != (manifest.files, manifest.samples):
            said = f"{self.store.uri}: {manifest.key} is there with other files"
            raise StoreError(said, hint="save a later step")

    def _fenced(self) -> Fenced:
        owner = newest_epoch(self.store)
        return Fenced(
            f"{self.store.uri}: epoch {owner} has claimed this run, epoch {self.epoch} writes no more",
            hint="nothing durable is lost: the newer attempt continues from it",
        )
