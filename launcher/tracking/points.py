"""A run as points of one curve: what every view of it shows, whoever draws it.

    Point     one step: the numbers at it, and the seconds since 1970 at which it was made
    points    steps, held-out losses and journal -> points, in order, each step once
    facts     what is true of the whole run: configuration, data by their hashes, machines
    summary   where the run is now

Dollars, goodput and preemptions are as they were at the moment of the step. Pure; nothing here is secret.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

from launcher.runs.attempts import Attempt, region_name
from launcher.runs.costs import ZERO, Charge
from launcher.runs.runview import RunRecord, view, was_preempted
from trainer.artifacts.journal import RunEvent
from trainer.artifacts.metrics import EvalRecord, StepRecord

# Of a `checkpoint` event; the same names on the curve.
_SAVE = ("stall_s", "save_s", "upload_s", "bytes", "sent_bytes")
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
# A value shorter than this is no secret: it would black out words by chance.
_SHORTEST_SECRET = 8
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")


@dataclass(frozen=True, slots=True)
class Point:
    """One step of a curve. `says`: what happened before this step, in a sentence; mostly nothing."""

    step: int
    time: float
    values: dict[str, float]
    says: str = ""


def points(record: RunRecord, now: datetime, after: int = -1) -> list[Point]:
    """Every step of the record beyond `after` once, in order; with its own numbers and the held-out loss after it.

    Cost: those steps times attempts.
    """
    bill = _Bill(record, now)
    held_out = {item.step: item for item in record.evals}
    saves = {e.data["step"]: e for e in record.events if e.kind == "checkpoint" and "step" in e.data}
    found = [_before_training(held_out[0])] if after < 0 and 0 in held_out else []
    first = bisect_right(record.steps, after, key=lambda step: step.step)
    before = record.steps[first - 1] if first else None
    for step in record.steps[first:]:
        values = {**_training(step, before), **bill.at(step), **_saved(saves.get(step.step))}
        if step.step in held_out:
            values["eval/loss"] = held_out[step.step].loss
        says = ""
        if before is not None and before.attempt != step.attempt:
            resumed, says = bill.resumed(before, step)
            values |= resumed
        found.append(Point(step.step, step.time, values, says))
        before = step
    return found


def facts(record: RunRecord) -> dict[str, Any]:
    """The run's configuration, for a view that can show one. The corpus and a local base are named by their hashes."""
    config = dict(record.config or {})
    attempts = record.attempts
    told = {
        **config,
        "run": {
            "name": record.run_id,
            "store": record.uri,
            "created": record.events[0].time.isoformat() if record.events else None,
        },
        "machines": {
            str(attempt.ordinal): {
                "region": region_name(attempt),
                "zone": attempt.zone,
                "instance": attempt.instance,
                "market": attempt.market,
                "usd_per_hour": _number(attempt.price.usd_per_hour),
            }
            for attempt in attempts
        },
    }
    cleaned: dict[str, Any] = without_secrets(told)
    return cleaned


def summary(record: RunRecord, now: datetime) -> dict[str, Any]:
    """Where the run is, newest step included, durable or not; for a view that keeps such values beside its curve."""
    seen, bill = view(record, now), record.costs(now)
    told = {
        "state": seen.state.value,
        "newest_step": seen.step,
        "durable_step": seen.durable_step,
        "region": seen.region,
        "attempts": seen.attempt,
        "preemptions": seen.preemptions,
        "failovers": seen.failovers,
        "dollars": seen.usd,
        "dollars_on_demand": _number(bill.on_demand_usd),
        "saved_share": _number(bill.saved),
        "notional_dollars": seen.notional,
        "goodput": _share(bill.time_of("useful"), bill.billed),
        **{f"{part}_s": bill.time_of(part).total_seconds() for part in ("restart", "useful", "lost", "idle")},
    }
    return {f"now/{name}": value for name, value in told.items() if value is not None}


def without_secrets(value: Any) -> Any:
    """Plain values with every secret of this process's environment, and users in URLs, blacked out.

    There should be none in what is shown; this is for the day on which somebody puts one into a path.
    """
    if isinstance(value, Mapping):
        return {str(key): without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    if not isinstance(value, str):
        return value
    for secret in _secrets():
        value = value.replace(secret, "***")
    return _USER_IN_URL.sub("***@", value)


def _secrets() -> Iterator[str]:
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET:
            yield value


def _before_training(item: EvalRecord) -> Point:
    return Point(0, item.time, {"eval/loss": item.loss})


def _training(step: StepRecord, before: StepRecord | None) -> dict[str, float]:
    values = {
        "train/loss": step.loss,
        "train/grad_norm": step.grad_norm,
        "train/learning_rate": step.learning_rate,
        "train/tokens": float(step.tokens),
        "train/samples": float(step.samples),
        "speed/step_s": step.step_s,
    }
    if before is not None and step.step_s > 0:
        values["speed/tokens_per_s"] = (step.tokens - before.tokens) / step.step_s
    return values


def _saved(event: RunEvent | None) -> dict[str, float]:
    data = event.data if event is not None else {}
    return {
        f"checkpoint/{name}": float(data[name]) for name in _SAVE if isinstance(data.get(name), int | float)
    }


class _Bill:
    """The charges of a run, as far as they had come when a step was made."""

    def __init__(self, record: RunRecord, now: datetime) -> None:
        self._charges = record.costs(now).charges
        self._by_attempt = {charge.attempt.ordinal: charge for charge in self._charges}
        self._taken = [
            attempt.ordinal for attempt in record.attempts if was_preempted(attempt, record.events)
        ]

    def at(self, step: StepRecord) -> dict[str, float]:
        time = datetime.fromtimestamp(step.time, UTC)
        spent = [(charge, _elapsed(charge, time)) for charge in self._charges]
        useful = sum((_useful(charge, elapsed) for charge, elapsed in spent), ZERO)
        billed = sum((elapsed for _, elapsed in spent), ZERO)
        values = {
            "run/attempt": float(step.attempt),
            "run/preemptions": float(sum(ordinal < step.attempt for ordinal in self._taken)),
            "run/dollars": float(sum((c.dollars(elapsed) for c, elapsed in spent), Fraction(0))),
            "run/machine_hours": billed / timedelta(hours=1),
        }
        if (goodput := _share(useful, billed)) is not None:
            values["run/goodput"] = goodput
        charge = self._by_attempt.get(step.attempt)
        price = charge.attempt.price.usd_per_hour if charge else None
        return values if price is None else {**values, "run/usd_per_hour": float(price)}

    def resumed(self, before: StepRecord, step: StepRecord) -> tuple[dict[str, float], str]:
        """What the change from one attempt to the next cost: numbers for the curve, and a sentence."""
        old, new = self._by_attempt.get(before.attempt), self._by_attempt.get(step.attempt)
        values = {"resume/from_step": float(before.step)}
        told = f"attempt {step.attempt}{_where(new)} goes on from step {before.step}"
        if old is not None:
            values["resume/lost_s"] = old.lost.total_seconds()
            told += f"; attempt {before.attempt} ended ({_ending(old.attempt)}), {values['resume/lost_s']:.1f} s lost"
        if new is not None:
            values["resume/restart_s"] = new.restart.total_seconds()
            told += f"; restart took {values['resume/restart_s']:.1f} s"
        return values, told


def _elapsed(charge: Charge, time: datetime) -> timedelta:
    up = charge.attempt.up
    return min(max(time - up, ZERO), charge.billed) if up is not None else ZERO


def _useful(charge: Charge, elapsed: timedelta) -> timedelta:
    return min(max(elapsed - charge.restart, ZERO), charge.useful)


def _share(part: timedelta, whole: timedelta) -> float | None:
    return part / whole if whole else None


def _where(charge: Charge | None) -> str:
    return f" in {region_name(charge.attempt)}" if charge is not None else ""


def _ending(attempt: Attempt) -> str:
    return attempt.reason or "its end was not recorded"


def _number(value: Fraction | None) -> float | None:
    return None if value is None else float(value)
