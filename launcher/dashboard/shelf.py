"""The runs of a store, as they are when somebody looks; nothing is read while nobody does.

A look costs a listing or two for a run that has ended, and what is new of one that lives.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

from launcher.errors import VlaunchError
from launcher.render import run_uri
from launcher.runs.remembering import open_remembering
from launcher.runs.runview import RunRecord, read_record, run_ids, state_of
from trainer.artifacts.layout import JOURNAL
from trainer.artifacts.store import Store

# What was read less long ago is shown again: several windows cost what one costs.
_FRESH_S = 2.0
# Where the store is slow, reading takes at most this share of the time.
_SHARE = 0.25


@dataclass(frozen=True)
class Shown:
    """What the page knows."""

    at: datetime
    runs: tuple[RunRecord, ...] = ()
    problems: tuple[str, ...] = field(default=())


class Shelf:
    """Safe between threads: one reads, the others wait for what it finds."""

    def __init__(self, store: str) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._stores: dict[str, Store] = {}
        self._ended: dict[str, tuple[str, RunRecord]] = {}  # with the last key of its journal
        self._stale_at = 0.0
        self._shown = Shown(datetime.now(UTC))

    def look(self) -> Shown:
        """What is there now. A store that does not answer is a problem on the page, above what was read last."""
        with self._lock:
            began = time.monotonic()
            if began >= self._stale_at:
                self._shown = self._read()
                took = time.monotonic() - began
                self._stale_at = time.monotonic() + max(_FRESH_S, took / _SHARE)
            return self._shown

    def _read(self) -> Shown:
        now, problems = datetime.now(UTC), []
        before = {record.run_id: record for record in self._shown.runs}
        try:
            names = run_ids(self.store)
        except VlaunchError as error:
            return Shown(now, self._shown.runs, (error.message,))
        found = []
        for name in names:
            try:
                found.append(self._run(name))
            except VlaunchError as error:  # one damaged run must not hide the others
                problems.append(f"{name}: {error.message}")
                found += [before[name]] if name in before else []
        found.sort(key=lambda record: record.events[0].time if record.events else now, reverse=True)
        return Shown(now, tuple(found), tuple(problems))

    def _run(self, name: str) -> RunRecord:
        store = self._stores.setdefault(name, open_remembering(run_uri(self.store, name)))
        known, record = self._ended.get(name, ("", None))
        if record is not None and next(store.list(JOURNAL, start_after=known), None) is None:
            return record
        record = read_record(store, name)
        if record.events and not state_of(record.events).live:
            self._ended[name] = (max(event.key for event in record.events), record)
            self._stores[name] = open_remembering(run_uri(self.store, name))  # its bytes are not needed twice
        return record
