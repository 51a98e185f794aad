"""What `cost-report`, `runs`, `status` and `metrics` say to people."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from launcher.output import table
from launcher.report.amounts import WORTH_SAYING, duration, egress_text, places_for, total_line, usd
from launcher.report.curve import curve
from launcher.runs.attempts import region_name
from launcher.runs.costs import Charges, CostReport, combine
from launcher.runs.runview import SILENCE, RunRecord, RunView
from launcher.runs.saves import Saves
from trainer.artifacts.metrics import EvalRecord, StepRecord

if TYPE_CHECKING:
    from launcher.runs.prune import Pruning

_SHOWN = ("useful", "restart", "lost", "idle")
_BILL = ("ATTEMPT", "REGION", "MACHINE", "ENDED", "TIME", *map(str.upper, _SHOWN), "DOLLARS")
_RUNS = ("RUN", "STATE", "STEP", "LOSS", "ATTEMPT", "REGION", "PREEMPTIONS", "DOLLARS", "LAST EVENT")


def cost_text(reports: Sequence[CostReport]) -> str:
    """One run: its attempts, regions and total. Several: the same for each, then the total of all."""
    if len(reports) == 1:
        return bill_text(reports[0])
    bills = [f"{report.run_id}\n{bill_text(report)}" for report in reports]
    return "\n".join([*bills, f"{len(reports)} runs: {total_line(combine(reports, 'all runs'))}\n"])


def overview_text(reports: Sequence[CostReport]) -> str:
    """A row per run and the total, for a store with many."""
    rows = [
        (
            report.run_id,
            len(report.charges),
            duration(report.billed),
            usd(report.usd) + (" notional" if report.notional else ""),
            usd(report.on_demand_usd) if report.on_demand_usd is not None else None,
            f"{round(100 * float(report.saved))} %" if report.saved is not None else None,
        )
        for report in reports
    ]
    numbers = ("MACHINES", "TIME", "DOLLARS", "ON-DEMAND", "SAVED")
    text = table(("RUN", *numbers), rows, right=numbers)
    return f"{text}\n{len(reports)} runs: {total_line(combine(reports, 'all runs'))}\n"


def bill_text(report: CostReport) -> str:
    places = places_for(float(report.usd), figures=3)
    rows: list[tuple[object, ...]] = [
        (
            charge.attempt.ordinal,
            region_name(charge.attempt),
            f"{charge.attempt.instance} {charge.attempt.market}".strip(),
            "running" if charge.running else charge.attempt.reason or "not recorded",
            *_amounts(Charges(charges=(charge,)), places),
        )
        for charge in report.charges
    ]
    regions = report.by_region()
    if len(regions) > 1:
        rows += [("", f"in {name}", "", "", *_amounts(group, places)) for name, group in regions.items()]
    if len(report.charges) > 1:
        rows.append(("", "all", "", "", *_amounts(report, places)))
    lines = (
        [table(_BILL, rows, right=("ATTEMPT", "TIME", *map(str.upper, _SHOWN), "DOLLARS"))] if rows else []
    )
    if report.waiting >= WORTH_SAYING:
        lines.append(f"without a machine: {duration(report.waiting)}\n")
    if egress_text(report.egress):
        lines.append(f"{egress_text(report.egress)}\n")
    lines += [f"note: {note}\n" for note in report.notes]
    return "".join([*lines, total_line(report), "\n"])


def runs_text(views: Sequence[RunView], now: datetime) -> str:
    rows = [
        (
            seen.run_id,
            _state(seen, now),
            _steps(seen),
            _figure(seen.loss),
            seen.attempt,
            seen.region,
            seen.preemptions,
            usd(seen.usd) + (" notional" if seen.notional else ""),
            _event(seen, now),
        )
        for seen in views
    ]
    return table(_RUNS, rows, right=("STEP", "LOSS", "ATTEMPT", "PREEMPTIONS", "DOLLARS"))


def status_text(seen: RunView, bill: CostReport, now: datetime) -> str:
    """One fact per line."""
    durable = "nothing yet: a preemption now starts over"
    if seen.durable_step is not None and seen.durable_age is not None:
        durable = f"at step {seen.durable_step:,}, {duration(seen.durable_age)} ago"
    ends = [loss for loss in (seen.eval_first, seen.eval_last) if loss is not None]
    held_out = " -> ".join(f"{loss:.4g}" for loss in dict.fromkeys(ends)) or "-"
    facts = [
        ("run", seen.run_id),
        ("state", _state(seen, now) + (f": {seen.problem}" if seen.problem else "")),
        ("step", _steps(seen)),
        ("loss", _figure(seen.loss)),
        ("held-out loss", held_out),
        ("speed", f"{seen.tokens_per_s:,.0f} tokens/s" if seen.tokens_per_s else "-"),
        ("durable", durable),
        *_saves(seen.saves),
        ("attempt", f"{seen.attempt} in {seen.region}" if seen.attempt else "none yet"),
        ("preemptions", f"{seen.preemptions}, {seen.failovers} to another region"),
        ("dollars", total_line(bill)),
        ("last event", _event(seen, now)),
        ("store", seen.uri),
    ]
    return "".join(f"{name:<14} {value}\n" for name, value in facts)


def prune_text(found: Sequence[Pruning], *, pruned: bool = False) -> str:
    """A row per run that has something to delete, and the sum."""
    rows = [
        (each.run_id, _listed(each.kept_steps), _listed(each.steps), each.files, f"{each.bytes / 1e6:,.1f}")
        for each in found
        if each.files
    ]
    files, size = sum(each.files for each in found), sum(each.bytes for each in found)
    traces = sum(each.traces for each in found)
    unfinished = f" and {traces} unfinished uploads" if traces else ""
    total = f"{'deleted' if pruned else 'would go'}: {files:,} files with {size / 1e6:,.1f} MB{unfinished}\n"
    if not rows:
        return total if traces else "nothing to delete\n"
    heads = ("RUN", "KEPT STEPS", "DELETED STEPS" if pruned else "STEPS TO DELETE", "FILES", "MB")
    return table(heads, rows, right=("FILES", "MB")) + total


def _listed(steps: Sequence[int], shown: int = 4) -> str:
    """The newest few."""
    more = f" and {len(steps) - shown} more" if len(steps) > shown else ""
    return ", ".join(str(step) for step in reversed(steps[-shown:])) + more


def metrics_text(record: RunRecord, last: int, width: int) -> str:
    """The newest steps as a table, then the whole curve."""
    if not record.steps:
        return f"{record.run_id} has made no step yet\n"
    rows = [
        (
            s.step,
            f"{s.loss:.4f}",
            f"{s.grad_norm:.3f}",
            f"{s.learning_rate:.3g}",
            s.tokens,
            f"{s.step_s:.2f}",
            s.attempt,
        )
        for s in record.steps[-last:]
    ]
    numbers = ("STEP", "LOSS", "GRAD NORM", "RATE", "TOKENS", "SECONDS", "ATTEMPT")
    resumed = [
        before.step
        for before, after in zip(record.steps, record.steps[1:], strict=False)
        if before.attempt != after.attempt
    ]
    legend = "loss over steps" + ("; ^ an attempt resumed" if resumed else "")
    return (
        "\n".join([table(numbers, rows, right=numbers), *loss_curve(record.steps, width, resumed), legend])
        + "\n"
    )


def loss_curve(steps: Sequence[StepRecord], width: int, resumed: Sequence[int] = ()) -> list[str]:
    points = [(float(record.step), record.loss) for record in steps if math.isfinite(record.loss)]
    return curve(points, width=width, marks=[float(step) for step in resumed], unicode=shows_unicode())


def held_out_text(evals: Sequence[EvalRecord]) -> str:
    """From the first held-out loss to the last; one alone where only one was measured."""
    ends = evals[:1] if len(evals) == 1 else [evals[0], evals[-1]]
    return " -> ".join(f"{record.loss:.3f}" for record in ends)


def eval_text(evals: Sequence[EvalRecord]) -> str:
    if not evals:
        return "no held-out loss has been measured yet\n"
    rows = [(record.step, f"{record.loss:.4f}") for record in sorted(evals, key=lambda record: record.step)]
    return table(("STEP", "HELD-OUT LOSS"), rows, right=("STEP", "HELD-OUT LOSS"))


def shows_unicode() -> bool:
    """Whether stdout can carry braille."""
    return (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")


def _saves(seen: Saves) -> list[tuple[str, str]]:
    """The save under way, and how often there is one; nothing where nothing is known."""
    told = []
    if (now := seen.saving) is not None:
        sent = f"{now.sent_bytes / 1e6:,.0f} of {now.total_bytes / 1e6:,.0f} MB"
        to_go = f", {duration(now.left_s)} to go" if now.left_s is not None else ""
        told.append(("saving", f"step {now.step:,}: {sent}, {now.bytes_per_s / 1e6:,.1f} MB/s{to_go}"))
    if seen.every is not None:
        why = ": twice what the store takes for one" if seen.store_is_slow else ""
        told.append(("saves", f"every {duration(seen.every)}{why}"))
    return told


def _amounts(group: Charges, places: int) -> tuple[str, ...]:
    times = [duration(group.billed), *(duration(group.time_of(part)) for part in _SHOWN)]
    return (*times, usd(group.usd, places))


def _steps(seen: RunView) -> str:
    return f"{seen.step:,} of {seen.max_steps:,}" if seen.max_steps else f"{seen.step:,}"


def _state(seen: RunView, now: datetime) -> str:
    """The state, and how long nothing was heard of a run that should be alive."""
    silent = now - seen.last_sign_at if seen.last_sign_at else timedelta(0)
    return seen.state.value + (
        f", silent for {duration(silent)}" if seen.state.live and silent > SILENCE else ""
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _event(seen: RunView, now: datetime) -> str:
    if seen.last_event_at is None:
        return "none"
    return f"{seen.last_event} {duration(max(0.0, (now - seen.last_event_at).total_seconds()))} ago"
