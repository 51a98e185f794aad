"""Views of a run kept up to date from its store, for as long as the run lasts.

A view gets a step when a checkpoint has made it durable, not before: then no preemption takes it back, and no view
has to forget anything. The step of the newest checkpoint itself waits for the next one, because its held-out loss may
be written later than it. Once the run is over, all is given.

    the store          ... 38 39 40 | 41 42 43          40: newest checkpoint, 43: newest step
    a view             ... 38 39

A view is asked what it has and is given what comes after that: whoever dies, the next one goes on there.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from launcher.runs.remembering import open_remembering
from launcher.runs.runview import RunRecord, read_config, state_of
from launcher.tracking.points import Point, points
from trainer.artifacts.journal import RunEvent, read_journal
from trainer.artifacts.metrics import EvalRecord, StepRecord, read_durable

# Between two looks at the store, where the configuration does not say: as often as numbers come (logging_seconds).
# A look is five listings: $0.15 a day at S3's $0.005 per 1,000.
_PAUSE_S = 15.0
# A look at a very long run must not cost more than this share of a core.
_SHARE = 0.02


class View(Protocol):
    """A curve that somebody looks at."""

    newest: int
    """The last step it has; -1 where it has none."""

    def add(self, point: Point) -> None:
        """Take the next step; none is ever given twice, or out of order."""
        ...

    def tell(self, record: RunRecord, now: datetime) -> None:
        """What is known of the run as a whole; called after the points of each look."""
        ...

    def close(self, over: bool) -> None:
        """Nothing more comes; `over`: the run has ended, so that the curve is whole."""
        ...


class Followed:
    """One run, looked at again and again."""

    def __init__(self, run_uri: str) -> None:
        self._store = open_remembering(run_uri)
        self._steps: list[StepRecord] = []
        self._evals: list[EvalRecord] = []
        self.run_id = run_uri.rstrip("/").rpartition("/")[2]
        self.over = False
        self.record = RunRecord(self.run_id, run_uri, ())
        self._settled = -1

    def look(self) -> None:
        """Read what has come since the last look. Raises StoreError."""
        # The journal first: a run that says it is finished has its last checkpoint by then.
        events = tuple(read_journal(self._store))
        settled = self._settled
        found = read_durable(self._store, settled)
        self._steps = [step for step in self._steps if step.step <= settled] + found.steps
        self._evals = [item for item in self._evals if item.step <= settled] + found.evaluations
        self.over = not state_of(events).live
        self._settled = max(settled, found.step if self.over else found.step - 1)
        self.record = RunRecord(
            self.run_id, self._store.uri, events, tuple(self._steps), tuple(self._evals),
            config=read_config(self._store),
        )  # fmt: skip

    def points(self, after: int, now: datetime) -> list[Point]:
        """What a view that has `after` lacks."""
        return [point for point in points(self.record, now, after) if point.step <= self._settled]


def bring_up_to_date(views: Sequence[View], run: Followed) -> int:
    """Give every view what it lacks; how many points that were."""
    now = datetime.now(UTC)
    count = 0
    for view in views:
        for point in run.points(view.newest, now):
            view.add(point)
            count += 1
        view.tell(run.record, now)
    return count


def follow(views: Sequence[View], run: Followed, wait: Callable[[float], bool]) -> None:
    """Until the run is over, or `wait(seconds)` says that nobody wants more; then one last look."""
    last = False
    while True:
        began = time.process_time()
        run.look()
        bring_up_to_date(views, run)
        if run.over or last:
            return
        pause_s = setting(run.record, "train", "logging_seconds") or _PAUSE_S
        last = wait(max(pause_s, (time.process_time() - began) / _SHARE))


def curve_id(run_id: str, events: Sequence[RunEvent]) -> str:
    """The name of the run's curve wherever names must be unique: the run's own, and a digest of its beginning.

    The same for every attempt and on every computer; another for a run of the same name in another store.
    """
    first = min((event.key for event in events), default="")
    return f"{run_id}-{hashlib.sha256(first.encode()).hexdigest()[:8]}"


def setting(record: RunRecord, section: str, name: str) -> Any:
    """A field of a run's configuration; None where it is not set."""
    fields = (record.config or {}).get(section)
    return fields.get(name) if isinstance(fields, dict) else None
