"""The numbers of every step of a run, each step once, however many attempts it took.

Steps are written in segments: `(first, last]` of one epoch, an object of its own, created if absent. None
straddles a checkpoint, so the rule for checkpoints decides for it too: it counts iff its last step is
valid for its epoch. What a zombie, or an attempt that was cut off after its last checkpoint, has written
beyond the step at which its successor resumed does not count; the successor writes those steps again.

Floats are written as hex (`float.hex`): two runs can be compared bit by bit.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import Any

from trainer.artifacts.layout import METRICS, MetricsKey, metrics_key, parse_metrics_key
from trainer.artifacts.store import Store
from trainer.artifacts.validity import is_valid, starts, valid_keys
from trainer.errors import CorruptObject, MissingKey, StoreError


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimiser step. `step` counts from 1; `tokens` and `samples` are totals of the run up to it."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    samples: int
    batch: str  # digest of which samples the step saw, in order
    attempt: int
    epoch: int  # of the claim, not of the corpus
    time: float  # seconds since 1970, UTC
    step_s: float
    durable_step: int = 0  # 0: nothing was durable yet, or nobody noted it
    durable_age_s: float | None = None

    def line(self) -> str:
        """JSON with floats in hex, one line."""
        return json.dumps(
            {
                "step": self.step,
                "loss": float(self.loss).hex(),
                "grad_norm": float(self.grad_norm).hex(),
                "learning_rate": float(self.learning_rate).hex(),
                "tokens": self.tokens,
                "samples": self.samples,
                "batch": self.batch,
                "attempt": self.attempt,
                "epoch": self.epoch,
                "time": float(self.time).hex(),
                "step_s": float(self.step_s).hex(),
                "durable_step": self.durable_step,
                "durable_age_s": None if self.durable_age_s is None else float(self.durable_age_s).hex(),
            }
        )


@dataclass(frozen=True, slots=True)
class EvalRecord:
    """The held-out loss of the weights after `step` steps (0: before any)."""

    step: int
    loss: float
    time: float

    def line(self) -> str:
        """JSON with floats in hex, one line."""
        return json.dumps({"eval": self.step, "loss": float(self.loss).hex(), "time": float(self.time).hex()})


class MetricsWriter:
    """Collects records of one attempt and writes them in segments; safe between threads.

    `add` and `cut` only touch memory. Call `cut` when the state of a checkpoint is taken, and `flush` before
    that checkpoint is committed: the steps before a checkpoint are never written again by anyone.
    """

    def __init__(self, store: Store, epoch: int, attempt: int, first_step: int) -> None:
        """`first_step` is the step that was resumed from: the first record is of the step after it."""
        self._store, self._epoch, self._attempt = store, epoch, attempt
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._first = self._last = first_step
        self._open: list[StepRecord | EvalRecord] = []
        self._sealed: dict[str, bytes] = {}  # by key, in order; unchanged until it is there

    def add(self, record: StepRecord | EvalRecord) -> None:
        """Take one record; steps come without gaps, an evaluation is of the last step."""
        with self._lock:
            if isinstance(record, StepRecord):
                if record.step != self._last + 1:
                    raise ValueError(f"step {record.step} cannot follow step {self._last}")
                self._last = record.step
            elif record.step != self._last:
                raise ValueError(f"an evaluation of step {record.step} cannot follow step {self._last}")
            self._open.append(record)

    def cut(self) -> None:
        """End the segment here: the next record begins another one."""
        with self._lock:
            # An evaluation made after the cut at its step is a segment (step, step] of its own: it is valid
            # exactly as long as the checkpoint of that step is.
            late = [record for record in self._open if record.step <= self._first]
            self._seal(self._first, self._first, late)
            self._seal(self._first, self._last, self._open[len(late) :])
            self._first = self._last
            self._open = []

    def flush(self) -> None:
        """Write everything that was added. After a StoreError the next call tries the same segments."""
        self.cut()
        with self._writing:
            with self._lock:
                sealed = list(self._sealed.items())
            for key, data in sealed:
                if not self._store.put_new(key, data):
                    said = f"{self._store.uri}: {key} is there with other numbers"
                    raise StoreError(said, hint="two processes write the metrics of one epoch: only one may")
                with self._lock:
                    del self._sealed[key]

    def _seal(self, first: int, last: int, records: list[StepRecord | EvalRecord]) -> None:
        if records:
            lines = "".join(record.line() + "\n" for record in records)
            self._sealed[metrics_key(first, last, self._epoch)] = lines.encode()


def read_metrics(store: Store) -> tuple[list[StepRecord], list[EvalRecord]]:
    """Every step once, in order, and every evaluation once, in order.

    One listing and one read per segment that counts. Segments are listed before the starts are read: an epoch
    that starts in between can only invalidate.
    """
    listed = _segments(store)
    settled = starts(store)
    return _read(store, [segment for segment in listed if is_valid(segment.last, segment.epoch, settled)])


@dataclass(frozen=True, slots=True)
class Durable:
    """What no preemption can take back: the steps up to the newest checkpoint."""

    step: int
    """The step of that checkpoint; 0 where there is none."""
    steps: list[StepRecord]
    evaluations: list[EvalRecord]


def read_durable(store: Store, after: int = -1) -> Durable:
    """What is durable of the steps after `after`, without a gap; to be asked again and again.

    Other than `read_metrics`, it never shows a step that a later attempt makes again, except where a checkpoint
    turns out to be damaged and the one before it is taken.

    The checkpoint is looked up first: its steps were written before it, so the listing that follows has them. Two
    listings and one read per segment, besides the starts.
    """
    checkpoint = next(iter(valid_keys(store)), None)
    if checkpoint is None:
        return Durable(0, [], [])
    step, epoch = checkpoint
    listed = _segments(store, after)
    settled = starts(store)
    if not is_valid(step, epoch, settled):  # an epoch that resumed before it has started just now
        return Durable(0, [], [])
    counting = [
        segment
        for segment in listed
        if segment.last <= step and segment.epoch <= epoch and is_valid(segment.last, segment.epoch, settled)
    ]
    steps, evaluations = _read(store, counting)
    later = [record for record in steps if record.step > after]
    whole = [record for number, record in enumerate(later, max(after, 0) + 1) if record.step == number]
    return Durable(step, whole, [record for record in evaluations if record.step > after])


def _segments(store: Store, after: int = -1) -> list[MetricsKey]:
    """Segments that end after a step. Keys are in the order of last steps, and "-" comes before "."."""
    beyond = f"{METRICS}{after:012d}." if after >= 0 else ""
    return [
        parsed
        for entry in store.list(METRICS, start_after=beyond)
        if (parsed := parse_metrics_key(entry.key))
    ]


def _read(store: Store, segments: list[MetricsKey]) -> tuple[list[StepRecord], list[EvalRecord]]:
    steps: dict[int, StepRecord] = {}
    evaluations: dict[int, EvalRecord] = {}
    # Of two epochs that both have a step or an evaluation, the later one counts.
    for segment in sorted(segments, key=lambda segment: (segment.epoch, segment.last)):
        for record in _read_segment(store, segment):
            if isinstance(record, StepRecord):
                steps[record.step] = record
            else:
                evaluations[record.step] = record
    return [steps[step] for step in sorted(steps)], [evaluations[step] for step in sorted(evaluations)]


def _read_segment(store: Store, segment: MetricsKey) -> list[StepRecord | EvalRecord]:
    key = metrics_key(*segment)
    try:
        lines = store.get(key).decode().splitlines()
        return [_record(fields) for fields in json.loads(f"[{','.join(lines)}]")]
    except MissingKey:
        return []
    except (ValueError, KeyError, TypeError, AttributeError):
        said = f"{store.uri}: {key} is not readable"
        raise CorruptObject(said, hint="delete that object to read the rest") from None


def _record(fields: dict[str, Any]) -> StepRecord | EvalRecord:
    number = float.fromhex
    if "eval" in fields:
        return EvalRecord(fields["eval"], number(fields["loss"]), number(fields["time"]))
    age = fields.get("durable_age_s")
    return StepRecord(
        fields["step"],
        number(fields["loss"]),
        number(fields["grad_norm"]),
        number(fields["learning_rate"]),
        fields["tokens"],
        fields["samples"],
        fields["batch"],
        fields["attempt"],
        fields["epoch"],
        number(fields["time"]),
        number(fields["step_s"]),
        fields.get("durable_step", 0),
        None if age is None else number(age),
    )
