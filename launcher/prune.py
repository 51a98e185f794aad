"""What of a run's checkpoints is of no more use, and its deletion.

A box collects garbage after each of its saves. What is left for `vlaunch runs prune` is what comes after: a run that
is finished needs no checkpoints any more, and one whose box was killed in between may hold files that nothing names.

Deleting needs the run's highest claim, as everything that writes does. So pruning claims the run: a box that
nobody knew of would be fenced, instead of losing blobs under its hands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from launcher.clouds.base import is_live
from launcher.errors import UsageError
from launcher.launch import cloud_of_run
from launcher.runview import SILENCE, RunView, State, read_run, view
from trainer.artifacts.fencing import claim
from trainer.artifacts.garbage import GarbageReport, collect_garbage, find_garbage, sweep
from trainer.artifacts.layout import CONFIG, parse_manifest_key
from trainer.artifacts.metrics import EvalRecord
from trainer.artifacts.store import Store, open_store
from trainer.artifacts.validity import newest_epoch
from trainer.config import decode_config
from trainer.errors import RunIsLive


@dataclass(frozen=True, slots=True)
class Pruning:
    """Of one run: what goes, or is gone."""

    run_id: str
    kept_steps: tuple[int, ...]
    steps: tuple[int, ...]
    files: int
    bytes: int
    traces: int
    """Unfinished writes of killed writers; only known when they are gone."""

    @classmethod
    def of(cls, run_id: str, found: GarbageReport) -> Pruning:
        files = len(found.manifests) + found.blobs
        return cls(run_id, _steps(found.kept), _steps(found.manifests), files, found.bytes, found.traces)


@dataclass(frozen=True, slots=True)
class Target:
    """A run that may be pruned, and what of it is kept."""

    run_id: str
    store: Store
    keep_last: int
    keep_every: int
    best: int | None
    grace_s: float

    def survey(self) -> Pruning:
        """What `prune` would delete. Reads only."""
        found = find_garbage(self.store, newest_epoch(self.store) + 1, *self._kept)
        return Pruning.of(self.run_id, found)

    def prune(self) -> Pruning:
        """Delete it; no claim is left behind where there is nothing to delete.

        Raises:
            Fenced: an attempt has begun meanwhile; what was deleted until then was of no use to it.
        """
        found = self.survey()
        if not found.files:
            return replace(found, traces=sweep(self.store, self.grace_s))
        return Pruning.of(self.run_id, collect_garbage(self.store, claim(self.store), *self._kept))

    @property
    def _kept(self) -> tuple[int, int, float, int | None]:
        return self.keep_last, self.keep_every, self.grace_s, self.best


def target(store: str, name: str, keep_last: int | None, keep_every: int | None, grace_s: float) -> Target:
    """None keeps what the run itself was configured to keep.

    Raises:
        RunIsLive: somebody looks after the run, or it gave a sign of life a moment ago.
        UsageError: nothing is to be kept of a run that is not finished.
    """
    record = read_run(store, name)
    seen = view(record, datetime.now(UTC))
    _refuse_if_alive(store, seen)
    if keep_last == 0 and seen.state is not State.FINISHED:
        raise UsageError(
            f"{name} is {seen.state.value}: without a checkpoint it would begin again",
            hint="--keep-last 0 is for finished runs, whose model is exported",
        )
    run = open_store(record.uri)
    own = decode_config(run.get(CONFIG), f"{record.uri}/{CONFIG}").checkpoint
    last = own.save_total_limit if keep_last is None else keep_last
    every = own.keep_every if keep_every is None else keep_every
    return Target(name, run, last, every, _best(record.evals) if own.keep_best and last else None, grace_s)


def _refuse_if_alive(store: str, seen: RunView) -> None:
    name = seen.run_id
    if cloud_of_run(store, name).alive(seen.uri):
        raise is_live(seen.uri)
    age = datetime.now(UTC) - seen.last_sign_at if seen.last_sign_at is not None else SILENCE
    if seen.state.live and age < SILENCE:
        raise RunIsLive(
            f"{name} is {seen.state.value} and gave a sign of life a moment ago",
            hint=f"vlaunch stop {name} ends it; if its machine is gone, wait ten minutes",
        )


def _best(evals: Sequence[EvalRecord]) -> int | None:
    """The step with the lowest held-out loss, the first of equals, as the box counts it."""
    known = [record for record in evals if not math.isnan(record.loss)]
    return min(known, key=lambda record: (record.loss, record.step)).step if known else None


def _steps(keys: Sequence[str]) -> tuple[int, ...]:
    return tuple(sorted(parsed.step for key in keys if (parsed := parse_manifest_key(key))))
