"""The bill as rows: the same numbers for the terminal, JSON, CSV and HTML."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Any

from launcher.report.amounts import total_line
from launcher.runs.costs import PARTS, Charge, Charges, CostReport
from trainer.artifacts.metrics import EvalRecord, StepRecord

CSV_COLUMNS = (
    "run", "attempt", "cloud", "region", "zone", "instance", "market", "up", "end", "ended", "usd_per_hour",
    "on_demand_usd_per_hour", "price_source", "notional", "billed_s", "usd",
    *(f"{part}_{unit}" for part in PARTS for unit in ("s", "usd")),
)  # fmt: skip


def as_dict(report: CostReport) -> dict[str, Any]:
    """One run's bill as plain values; seconds and dollars are decimal numbers."""
    return {
        "run": report.run_id,
        **total(report),
        "regions": [_region(name, group) for name, group in report.by_region().items()],
        "attempts": [_attempt(charge) for charge in report.charges],
        "notes": list(report.notes),
    }


def total(report: CostReport) -> dict[str, Any]:
    """The sums of a bill, of one run or of several."""
    return {
        "total": total_line(report),
        "usd": float(report.usd),
        "paid_usd": float(report.paid_usd),
        "notional": report.notional,
        "price_sources": list(report.price_sources),
        "machines": len(report.charges),
        "billed_s": report.billed.total_seconds(),
        "waiting_s": report.waiting.total_seconds(),
        "parts": {part: _amounts(report.time_of(part), report.usd_of(part)) for part in PARTS},
        "on_demand_usd": None if report.on_demand_usd is None else float(report.on_demand_usd),
        "egress_bytes": report.egress.bytes,
        "egress_usd": _float(report.egress.usd),
        "egress_sources": list(report.egress.sources),
        "saved_share": None if report.saved is None else float(report.saved),
    }


def as_csv(reports: Sequence[CostReport]) -> str:
    """One line per attempt, RFC 4180."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS)
    writer.writeheader()
    for report in reports:
        for charge in report.charges:
            row = _attempt(charge)
            parts = row.pop("parts")
            row["run"] = report.run_id
            row.update({f"{part}_{unit}": parts[part][unit] for part in PARTS for unit in ("s", "usd")})
            writer.writerow({name: row[name] for name in CSV_COLUMNS})
    return out.getvalue()


def step_lines(steps: Iterable[StepRecord]) -> Iterator[str]:
    """A JSON object per optimiser step. Equal hex means equal bits; the decimals are for people."""
    for step in steps:
        line = {
            "step": step.step,
            **_float_twice("loss", step.loss),
            **_float_twice("grad_norm", step.grad_norm),
            **_float_twice("learning_rate", step.learning_rate),
            "tokens": step.tokens,
            "samples": step.samples,
            "batch": step.batch,
            "attempt": step.attempt,
        }
        yield json.dumps(line)


def eval_lines(evals: Iterable[EvalRecord]) -> Iterator[str]:
    """A JSON object per held-out loss, in order of steps."""
    for record in sorted(evals, key=lambda record: record.step):
        yield json.dumps({"step": record.step, **_float_twice("loss", record.loss)})


def _float_twice(name: str, value: float) -> dict[str, Any]:
    """JSON has no NaN: the decimal is null then, and the hex says what it was."""
    return {name: value if math.isfinite(value) else None, f"{name}_hex": value.hex()}


def _attempt(charge: Charge) -> dict[str, Any]:
    attempt, price = charge.attempt, charge.attempt.price
    return {
        "attempt": attempt.ordinal,
        "cloud": attempt.cloud,
        "region": attempt.region,
        "zone": attempt.zone,
        "instance": attempt.instance,
        "market": attempt.market,
        "up": _iso(attempt.up),
        "end": _iso(attempt.end),
        "ended": "running" if charge.running else attempt.reason or "unknown",
        "resumed_from": attempt.resumed_from,
        "usd_per_hour": _float(price.usd_per_hour),
        "on_demand_usd_per_hour": _float(price.on_demand_usd_per_hour),
        "price_source": price.source,
        "notional": price.notional,
        "sent_bytes": attempt.sent_bytes,
        "egress_bytes": charge.egress.bytes,
        "egress_usd": _float(charge.egress.usd),
        "billed_s": charge.billed.total_seconds(),
        "usd": float(charge.usd),
        "parts": {part: _amounts(charge.time_of(part), charge.usd_of(part)) for part in PARTS},
    }


def _region(name: str, group: Charges) -> dict[str, Any]:
    return {
        "region": name,
        "attempts": len(group.charges),
        "billed_s": group.billed.total_seconds(),
        "usd": float(group.usd),
        "parts": {part: _amounts(group.time_of(part), group.usd_of(part)) for part in PARTS},
    }


def _amounts(time: timedelta, usd: Fraction) -> dict[str, float]:
    return {"s": time.total_seconds(), "usd": float(usd)}


def _float(value: Fraction | None) -> float | None:
    return None if value is None else float(value)


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat().replace("+00:00", "Z")
