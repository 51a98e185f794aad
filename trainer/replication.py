"""Copies of a durable checkpoint in other stores, so that a run that moves finds one near.

A copy is made after the commit and decides nothing: it is the same blobs, and the same manifest last. Where it fails,
where the machine goes meanwhile, the checkpoint is as durable as before, and a restore reads what is missing from the
run's own store. No copy is ever made of something that is not durable.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import cast

from trainer.artifacts.garbage import collect_copies
from trainer.artifacts.journal import Journal
from trainer.artifacts.manifest import FileEntry, Manifest
from trainer.artifacts.pace import Pace
from trainer.artifacts.sources import Counted, Sources
from trainer.artifacts.store import Store
from trainer.config import TrainConfig
from trainer.errors import VlaunchError
from trainer.parallel import World
from trainer.uploading import Upload, first_problem

log = logging.getLogger("trainer")


class Replication:
    """Of one attempt. Every process calls `copy` for the same checkpoints, on the thread of the save."""

    def __init__(self, world: World, sources: Sources, config: TrainConfig, journal: Journal) -> None:
        self._world, self._sources, self._journal = world, sources, journal
        self._every = config.store.replicate_full_every if config.train.method == "full" else 1
        self._pace: Pace | None = None
        self._over = False

    @property
    def own_region(self) -> str:
        """Of the run's own store."""
        return self._sources.region

    def due(self, number: int) -> bool:
        """Whether the `number`th durable checkpoint of this attempt is to be copied."""
        wanted = bool(self._sources.replicas) and self._every > 0
        return wanted and not self._over and number % self._every == 0

    def end(self) -> None:
        """Give up what is under way and begin nothing more: the machine goes."""
        self._over = True
        if self._pace is not None:
            self._pace.stop("the machine goes")

    def copy(
        self,
        paths: Callable[[], list[Path]],
        entries: tuple[FileEntry, ...],
        manifest: Manifest | None,
        kept: Collection[str] | None,
        bytes_per_s: float | None,
    ) -> None:
        """Send this process's files, which the entries name, to each replica.

        `manifest` is known to the first process alone, and so is `kept`: the manifests that the run still has, all
        others of a replica go; None where that is not known now.
        """
        named = {entry.name: entry for entry in entries}
        for replica in self._sources.replicas:
            self._pace = Pace(bytes_per_s)
            if self._over:
                self._pace.stop("the machine goes")
            began = time.monotonic()
            send = partial(_send, cast(Store, replica), named)
            everyone = Upload(self._world, self._pace).together(paths, send, lambda progress: None)
            if manifest is not None:
                self._conclude(replica, manifest, kept, first_problem(everyone), time.monotonic() - began)

    def _conclude(
        self,
        replica: Counted,
        manifest: Manifest,
        kept: Collection[str] | None,
        problem: str | None,
        took_s: float,
    ) -> None:
        """On the first process: the manifest last, then what the run no longer has."""
        told = {"step": manifest.step, "store": replica.uri, "region": replica.region}
        try:
            if problem is None:
                replica.put_new(manifest.key, manifest.encode())
                if kept is not None:
                    collect_copies(cast(Store, replica), kept, manifest.epoch)
        except (VlaunchError, OSError) as error:
            problem = str(error)
        if problem is not None:
            log.warning("step %d is not copied to %s: %s", manifest.step, replica.uri, problem)
            self._journal.record("replica_failed", **told, error=problem)
            return
        self._journal.record("replicated", **told, bytes=manifest.size, seconds=round(took_s, 3))


def _send(replica: Store, named: dict[str, FileEntry], path: Path) -> FileEntry:
    entry = named[path.name]
    if replica.size(entry.key) != entry.size:
        replica.put_file(entry.key, path)
    return entry
