"""A store that is looked at again and again: what is written once is fetched once.

For what watches runs for hours. Listings are always made anew; of the objects that never change once they are there
(layout.py), the bytes are kept in memory.
"""

from __future__ import annotations

from typing import Any, cast

from trainer.artifacts.layout import CONFIG, EPOCHS, JOURNAL, MANIFESTS, METRICS
from trainer.artifacts.store import Store, open_store

_WRITTEN_ONCE = (CONFIG, JOURNAL, METRICS, MANIFESTS, EPOCHS)


def open_remembering(uri: str) -> Store:
    """The store at a URI, for readers."""
    return cast(Store, _Remembering(open_store(uri)))


class _Remembering:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, bytes] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get(self, key: str) -> bytes:
        if not key.startswith(_WRITTEN_ONCE):
            return self._store.get(key)
        if key not in self._known:
            self._known[key] = self._store.get(key)
        return self._known[key]
