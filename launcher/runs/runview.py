"""What is known about a run, derived from its store alone: no file of the laptop is read.

    read_run      journal, manifests, metrics and config of one run, as they are now
    view          those -> RunView: the line that `runs` and `status` show
    run_ids       the runs under a store URI
    find_run      a name or its unique beginning -> a run id

States are a table, see `_TRANSITIONS`. The usual life of a run:

    created -> pending;  requested, running, started -> starting;  training -> running
    ended(preempted) -> recovering;  requested, running, started -> recovering;  training -> running
    finished -> finished          stopping -> stopping;  ended(stopped) -> stopped
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any

from launcher.runs.attempts import Attempt, Mark, attempts_of, region_name
from launcher.runs.costs import CostReport, cost_report
from launcher.runs.saves import Saves, saves_of
from trainer.artifacts import layout
from trainer.artifacts.journal import RunEvent, read_journal
from trainer.artifacts.metrics import EvalRecord, StepRecord, read_metrics
from trainer.artifacts.store import Store, join_uri, open_store
from trainer.artifacts.validity import valid_manifests
from trainer.errors import MissingKey, UsageError

if TYPE_CHECKING:
    from trainer.artifacts.manifest import Manifest

# Metrics arrive every few seconds (config: logging_seconds); only a long restore may be this quiet.
SILENCE = timedelta(minutes=10)
# Speed is the mean over the last steps: enough to be steady, few enough to follow a new machine.
_SPEED_STEPS = 20


class State(Enum):
    """Where a run is; the value is what users read."""

    PENDING = "pending"  # created, no machine asked for or none to be had
    STARTING = "starting"  # a machine is on its way or preparing its first step
    RUNNING = "running"  # steps are being made
    RECOVERING = "recovering"  # the machine was taken: waiting for the next one, or it is restoring
    STOPPING = "stopping"  # asked to stop; saving
    STOPPED = "stopped"  # stopped with its work saved; `resume` continues
    FINISHED = "finished"  # trained to its end and exported
    FAILED = "failed"  # an error that another machine would not mend

    @property
    def live(self) -> bool:
        """Something is, or should be, working on the run right now."""
        return self not in (State.STOPPED, State.FINISHED, State.FAILED)


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Everything the store holds about one run, read once."""

    run_id: str
    uri: str
    events: tuple[RunEvent, ...]
    steps: tuple[StepRecord, ...] = ()
    evals: tuple[EvalRecord, ...] = ()
    manifests: tuple[Manifest, ...] = ()  # valid ones, newest first
    config: Mapping[str, Any] | None = None
    upload: Mapping[str, Any] | None = None  # the last word of a save that took long

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        return attempts_of(self.events, self.durable_marks())

    def durable_marks(self) -> dict[int, list[Mark]]:
        """By epoch, what the store itself knows to be durable, for journals with gaps.

        The metrics of an epoch that was followed by another end where that one resumed, so their last step is
        durable even when its manifest is collected by now and its box died before it could journal it.
        """
        times = {(step.epoch, step.step): step.time for step in self.steps}
        last = {step.epoch: step.step for step in self.steps}
        newest = max((_epoch(event) for event in self.events), default=0)
        marks: dict[int, list[Mark]] = {}
        for epoch, step in last.items():
            if epoch < newest:
                marks.setdefault(epoch, []).append(
                    Mark(step, datetime.fromtimestamp(times[epoch, step], UTC))
                )
        for manifest in self.manifests:
            time = times.get((manifest.epoch, manifest.step))
            taken = datetime.fromtimestamp(time, UTC) if time is not None else manifest.created
            marks.setdefault(manifest.epoch, []).append(Mark(manifest.step, taken))
        return marks

    def costs(self, now: datetime) -> CostReport:
        return cost_report(self.run_id, self.events, now, self.durable_marks())


@dataclass(frozen=True, slots=True)
class RunView:
    """One run at one moment."""

    run_id: str
    uri: str
    state: State
    created: datetime | None
    step: int
    max_steps: int | None
    loss: float | None
    eval_first: float | None
    eval_last: float | None
    tokens_per_s: float | None
    attempt: int
    region: str
    durable_step: int | None
    durable_age: timedelta | None
    saves: Saves
    preemptions: int
    failovers: int
    usd: float
    notional: bool
    last_event: str
    last_event_at: datetime | None
    last_sign_at: datetime | None  # of life: the last event or step, whichever is later
    problem: str | None  # what went wrong last, where the run failed

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: times in ISO 8601, ages in seconds."""
        return {
            "run": self.run_id,
            "uri": self.uri,
            "state": self.state.value,
            "created": _iso(self.created),
            "step": self.step,
            "max_steps": self.max_steps,
            "loss": self.loss,
            "eval_first": self.eval_first,
            "eval_last": self.eval_last,
            "tokens_per_s": self.tokens_per_s,
            "attempt": self.attempt,
            "region": self.region,
            "durable_step": self.durable_step,
            "durable_age_s": self.durable_age.total_seconds() if self.durable_age is not None else None,
            **self.saves.as_dict(),
            "preemptions": self.preemptions,
            "failovers": self.failovers,
            "usd": self.usd,
            "notional": self.notional,
            "last_event": self.last_event,
            "last_event_at": _iso(self.last_event_at),
            "last_sign_at": _iso(self.last_sign_at),
            "problem": self.problem,
        }


def read_run(uri: str, run_id: str) -> RunRecord:
    """Reads the run under the store URI; a few lists and one GET per journal entry and metrics segment."""
    return read_record(open_store(join_uri(uri, layout.run_prefix(run_id))), run_id)


def read_record(store: Store, run_id: str) -> RunRecord:
    """What `read_run` reads, from the store of the run itself."""
    steps, evals = read_metrics(store)
    return RunRecord(
        run_id=run_id,
        uri=store.uri,
        events=tuple(read_journal(store)),
        steps=tuple(steps),
        evals=tuple(evals),
        manifests=tuple(valid_manifests(store)),
        config=read_config(store),
        upload=_document(store, layout.UPLOAD),
    )


def read_config(store: Store) -> Mapping[str, Any] | None:
    """None where it is not written yet, or by a newer version: a view does without."""
    return _document(store, layout.CONFIG)


def _document(store: Store, key: str) -> Mapping[str, Any] | None:
    try:
        found = json.loads(store.get(key))
    except (MissingKey, ValueError):
        return None
    return found if isinstance(found, Mapping) else None


def run_ids(uri: str) -> list[str]:
    """Names of the runs in a store; one list call."""
    return [name for name in open_store(uri).children("runs/") if layout.valid_run_id(name)]


def find_run(uri: str, name: str | None = None) -> str:
    """The run that `name` or its unique beginning means; without a name, the run with the newest first event.

    Raises:
        UsageError: no such run, or several.
    """
    names = run_ids(uri)
    if not names:
        raise UsageError(f"no run in {uri}", hint="vlaunch train starts one; --store names another store")
    if name is None:
        return max(names, key=lambda run_id: _created_key(uri, run_id))
    if name in names:
        return name
    matches = [run_id for run_id in names if run_id.startswith(name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UsageError(f"{name!r} is the beginning of {len(matches)} runs", hint=_any_of(matches))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {_any_of(near)}?" if near else f"in this store are {_any_of(names)}"
    raise UsageError(f"no run named {name!r} in {uri}", hint=hint)


def view(record: RunRecord, now: datetime) -> RunView:
    """The run as one line, at the moment `now`."""
    attempts = record.attempts
    costs = record.costs(now)
    newest = record.manifests[0] if record.manifests else None
    state = state_of(record.events)
    last = max(record.events, key=lambda event: event.time, default=None)
    evals = sorted(record.evals, key=lambda item: item.step)
    signs = [last.time] if last else []
    signs += [datetime.fromtimestamp(step.time, UTC) for step in record.steps[-1:]]
    machines = [attempt for attempt in attempts if attempt.up is not None]
    return RunView(
        run_id=record.run_id,
        uri=record.uri,
        state=state,
        created=record.events[0].time if record.events else None,
        step=record.steps[-1].step if record.steps else newest.step if newest else 0,
        max_steps=_max_steps(record),
        loss=record.steps[-1].loss if record.steps else None,
        eval_first=evals[0].loss if evals else None,
        eval_last=evals[-1].loss if evals else None,
        tokens_per_s=_tokens_per_s(record.steps),
        attempt=attempts[-1].ordinal if attempts else 0,
        region=region_name(attempts[-1]) if attempts else "",
        durable_step=newest.step if newest else None,
        durable_age=max(timedelta(0), now - newest.created) if newest else None,
        saves=saves_of(record.events, record.upload, now, running=state is State.RUNNING),
        preemptions=sum(was_preempted(attempt, record.events) for attempt in attempts),
        failovers=sum(
            region_name(after) != region_name(before)
            for before, after in zip(machines, machines[1:], strict=False)
        ),
        usd=float(costs.usd),
        notional=costs.notional,
        last_event=last.kind if last else "",
        last_event_at=last.time if last else None,
        last_sign_at=max(signs, default=None),
        problem=_problem(record.events),
    )


def state_of(events: Iterable[RunEvent]) -> State:
    """Where the journal's events lead. Words of attempts that were superseded (zombies) change nothing."""
    state, newest, open_attempts = State.PENDING, 0, set[int]()
    for event in sorted(events, key=lambda item: item.time):
        if 0 < event.attempt < newest:
            continue
        if event.kind in ("requested", "started"):
            newest = max(newest, event.attempt)
            open_attempts.add(event.attempt)
        elif event.kind == "ended":
            open_attempts.discard(event.attempt)
        row = _TRANSITIONS.get(transition_key(event))
        state = row[state] if row is not None else state
    # Asked to stop while it waited for a machine: there is nothing that could say `ended`.
    if state is State.STOPPING and newest not in open_attempts:
        return State.STOPPED
    return state


def transition_key(event: RunEvent) -> str:
    """The row of the table: the kind, and for `ended` the reason too."""
    return f"ended({event.data.get('reason')})" if event.kind == "ended" else event.kind


def _row(to: State | None, **instead: State) -> dict[State, State]:
    """All states go to `to` (None: stay), but those named in lower case go where they say."""
    return {state: instead.get(state.value, to or state) for state in State}


_STAY = _row(None)
_P, _S, _RUN, _REC = State.PENDING, State.STARTING, State.RUNNING, State.RECOVERING
_STOPPING, _STOPPED, _FIN, _FAIL = State.STOPPING, State.STOPPED, State.FINISHED, State.FAILED

# Event -> state before -> state after; every kind of the journal has a row (tested). Attempts are compared
# before this table is asked, so every row is about the newest attempt. `stopping` is left only by an end or a
# new request.
_TRANSITIONS: Mapping[str, Mapping[State, State]] = {
    "created": _STAY,
    "submitted": _STAY,
    "requested": _row(_S, running=_REC, recovering=_REC),
    "no_capacity": _row(_P, running=_REC, recovering=_REC, stopping=_STOPPING),
    # A launcher's `running` may be sorted after the box's `training`: their clocks differ.
    "running": _row(None, pending=_S),
    "stopping": _row(_STOPPING, stopped=_STOPPED, finished=_FIN, failed=_FAIL),
    "limits": _STAY,
    "limit": _row(_STOPPING, stopped=_STOPPED, finished=_FIN, failed=_FAIL),
    "ended(preempted)": _row(_REC, stopping=_STOPPED, stopped=_STOPPED, finished=_FIN, failed=_FAIL),
    "ended(stopped)": _row(_STOPPED, finished=_FIN, failed=_FAIL),
    # Found dead with nobody looking after it: `resume` continues it, and writes `requested` when it does.
    "ended(orphaned)": _row(_STOPPED, finished=_FIN, failed=_FAIL),
    "ended(failed)": _row(_FAIL, finished=_FIN),
    "ended(finished)": _row(_FIN),
    # A box without a launcher (plain `sky launch`) begins here.
    "started": _row(_S, running=_REC, recovering=_REC, stopping=_STOPPING),
    "training": _row(_RUN, stopping=_STOPPING),
    "tracked": _STAY,
    "checkpoint": _STAY,
    "replicated": _STAY,
    "replica_failed": _STAY,
    "save_failed": _STAY,
    "fallback": _STAY,
    "warning": _STAY,
    "notice": _STAY,
    "preempted": _row(_REC, stopping=_STOPPING, stopped=_STOPPED, finished=_FIN, failed=_FAIL),
    "exported": _STAY,
    "sampled": _STAY,
    "finished": _row(_FIN),
    "failed": _row(_FAIL),
    "fenced": _STAY,
}


def was_preempted(attempt: Attempt, events: Sequence[RunEvent]) -> bool:
    """Taken by the market. A box asked to stop says `preempted` too, so the launcher's word counts first."""
    if attempt.reason is not None:
        return attempt.reason == "preempted"
    kinds = {event.kind for event in events if event.attempt == attempt.ordinal}
    return "preempted" in kinds and not kinds & {"stopping", "limit"}


def _max_steps(record: RunRecord) -> int | None:
    """From the config where it says so, else from the end of the run, else from the plan."""
    train = (record.config or {}).get("train")
    configured = train.get("max_steps") if isinstance(train, Mapping) else None
    if isinstance(configured, int) and configured > 0:
        return configured
    for event in reversed(record.events):
        plan = event.data.get("plan")
        steps = event.data.get("steps") if event.kind == "finished" else None
        steps = plan.get("steps") if isinstance(plan, Mapping) else steps
        if isinstance(steps, int) and steps > 0:
            return steps
    return None


def _epoch(event: RunEvent) -> int:
    epoch = event.data.get("epoch") if event.kind == "started" else None
    return epoch if isinstance(epoch, int) else 0


def _tokens_per_s(steps: Sequence[StepRecord]) -> float | None:
    """Mean speed of the last steps of the newest attempt."""
    recent = [step for step in steps[-_SPEED_STEPS - 1 :] if step.attempt == steps[-1].attempt]
    seconds = sum(
        step.step_s for step in recent[1:]
    )  # `tokens` counts up: the first is only where to count from
    return (recent[-1].tokens - recent[0].tokens) / seconds if seconds > 0 else None


def _problem(events: Sequence[RunEvent]) -> str | None:
    """The error of the newest attempt, if it failed."""
    newest = max((event.attempt for event in events), default=0)
    for event in reversed(events):
        if event.kind == "failed" and event.attempt == newest:
            return str(event.data.get("error"))
    return None


def _created_key(uri: str, run_id: str) -> tuple[str, str]:
    """The first journal key begins with its time, so the newest run is found without reading any event."""
    store = open_store(join_uri(uri, layout.run_prefix(run_id)))
    first = next(store.list(layout.JOURNAL), None)
    return (first.key if first else "", run_id)


def _any_of(names: Sequence[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _iso(time: datetime | None) -> str | None:
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z") if time is not None else None
