"""From which checkpoint an attempt goes on, and its bytes on this machine's disk.

The head, or the only machine, chooses: the newest checkpoint of which every byte is right. The other nodes take the
same one; what it will most likely be they fetch before they are told.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from trainer.artifacts.fencing import Lease
from trainer.artifacts.journal import Journal
from trainer.artifacts.manifest import Manifest
from trainer.artifacts.sources import Sources
from trainer.errors import CorruptObject, MissingKey, StoreError

log = logging.getLogger("trainer")


class Resuming:
    """Fetches checkpoints of the lease's run into `folder`, one at a time."""

    def __init__(self, lease: Lease, journal: Journal, sources: Sources, folder: Path) -> None:
        self._lease, self._journal, self._sources, self._folder = lease, journal, sources, folder
        self._damaged = False

    def newest(self) -> Manifest | None:
        """The newest checkpoint whose every byte is right, on this disk; None where none was ever made.

        Raises:
            StoreError: there are checkpoints, and not one of them is whole.
        """
        restored = self._newest_whole()
        for key, problem in self._lease.passed_over:
            self._tell_fallback(key, problem)
        if restored is None and (self._damaged or self._lease.passed_over):
            raise StoreError(
                f"{self._lease.store.uri}: no checkpoint of this run is whole any more",
                hint="its journal says what is wrong with each; delete manifest/ in the run to begin again",
            )
        return restored

    def guess(self) -> Manifest | None:
        """What the head will most likely choose."""
        manifest = next(self._lease.newest(), None)
        try:
            return self._fetch(manifest) if manifest else None
        except (CorruptObject, MissingKey):
            return None

    def told(self, key: str) -> Manifest:
        """What the head has chosen; StoreError where this node cannot have it."""
        manifest = next((found for found in self._lease.newest() if found.key == key), None)
        if manifest is None:
            raise StoreError(
                f"{self._lease.store.uri} does not show this node {key}",
                hint="every node must see the same store: give a bucket, or a folder that all of them share",
            )
        return self._fetch(manifest)

    def _newest_whole(self) -> Manifest | None:
        for manifest in self._lease.newest():
            try:
                return self._fetch(manifest)
            except (CorruptObject, MissingKey) as error:
                self._damaged = True
                self._tell_fallback(manifest.key, error.message)
        return None

    def _tell_fallback(self, key: str, problem: str) -> None:
        log.warning("%s is damaged, using the one before: %s", key, problem)
        self._journal.record("fallback", manifest=key, problem=problem)

    def _fetch(self, manifest: Manifest) -> Manifest:
        """Leaves nothing on this disk where a file is damaged or gone."""
        from trainer.prepare import fetch_all

        shutil.rmtree(self._folder, ignore_errors=True)
        try:
            fetch_all(self._sources.fetch, list(manifest.files), self._folder)
        except (CorruptObject, MissingKey):
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        return manifest
