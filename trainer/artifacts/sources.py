"""Where the bytes of a run lie: its own store, copies of it in other regions, and which of them is near.

Only the run's own store decides: claims, manifests and the journal are read there and nowhere else. A replica holds
blobs under the same names, and a blob's name is the hash of its bytes. So whatever a replica lacks or holds damaged is
noticed while it is read, and comes from the next one; nothing that happens to a replica can hurt a run.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from trainer.artifacts.layout import run_prefix
from trainer.artifacts.manifest import FileEntry, fetch_verified
from trainer.artifacts.store import KnowsItsRegion, Store, join_uri, open_store
from trainer.config import StoreSection
from trainer.errors import StoreError, UsageError

log = logging.getLogger("trainer")


class Counted:
    """A store with its region (`aws/us-east-1`, empty where unknown), which counts the bytes read from it."""

    def __init__(self, store: Store, region: str = "") -> None:
        self._store = store
        self._lock = threading.Lock()
        self.region = region or _asked(store)
        self.bytes_read = 0

    def get(self, key: str) -> bytes:
        data = self._store.get(key)
        self._count(len(data))
        return data

    def get_file(self, key: str, path: Path) -> None:
        self._store.get_file(key, path)
        self._count(path.stat().st_size)

    def _count(self, size: int) -> None:
        with self._lock:
            self.bytes_read += size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class Sources:
    """A run's own store and its replicas, as seen from one region."""

    def __init__(self, own: Store, section: StoreSection, here: str) -> None:
        name = own.uri.rstrip("/").rpartition("/")[2]
        self._own = Counted(own, section.region)
        self._replicas = [
            Counted(open_store(join_uri(replica.uri, run_prefix(name))), replica.region)
            for replica in section.replicas
        ]
        if any(replica.uri == own.uri for replica in self._replicas):
            raise UsageError(f"{own.uri} cannot be its own replica", hint="name stores in other regions")
        self._nearest = sorted([self._own, *self._replicas], key=lambda store: distance(here, store.region))

    @property
    def own(self) -> Store:
        """Of what is not a checkpoint there are no copies."""
        return cast(Store, self._own)

    @property
    def region(self) -> str:
        return self._own.region

    @property
    def replicas(self) -> Sequence[Counted]:
        return self._replicas

    def fetch(self, entry: FileEntry, folder: Path) -> Path:
        """A verified file of a checkpoint from the nearest store that has it.

        Raises as `fetch_verified` does, where not even the run's own store has it.
        """
        for store in self._nearest:
            try:
                return fetch_verified(cast(Store, store), entry, folder)
            except StoreError as error:
                if store is self._own:
                    own_error = error
                log.debug("%s: %s", store.uri, error)
        raise own_error

    def read(self) -> list[dict[str, Any]]:
        """For the journal: from where how many bytes were read."""
        return [
            {"store": store.uri, "region": store.region, "bytes": store.bytes_read}
            for store in [self._own, *self._replicas]
            if store.bytes_read
        ]


def distance(here: str, there: str) -> int:
    """0 in the same region, 1 on the same continent (us-, eu-, ...), 2 elsewhere or unknown.

    A cloud in front does not matter: the first who knows of a region may not know whose it is.
    """
    one, other = here.rpartition("/")[2], there.rpartition("/")[2]
    if one and one == other:
        return 0
    return 1 if one and other and one.partition("-")[0] == other.partition("-")[0] else 2


def _asked(store: Store) -> str:
    try:
        return store.region() if isinstance(store, KnowsItsRegion) else ""
    except StoreError as error:  # the permission to ask is not needed for anything else
        log.debug("the region of %s is not known: %s", store.uri, error)
        return ""
