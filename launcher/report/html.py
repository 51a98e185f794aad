"""Runs as one self-contained HTML file: loss curve, attempts over time, the bill.

Nothing is fetched (a Content-Security-Policy tells the browser too), so the file can be mailed or archived.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

from launcher.report.amounts import WORTH_SAYING, duration, places_for, shares, total_line, usd
from launcher.report.charts import colour_of, definitions, loss_chart, speed_chart, timeline
from launcher.report.markup import Markup, tag
from launcher.report.theme import CSS
from launcher.runs.attempts import region_name
from launcher.runs.costs import Charge, Charges, CostReport, combine
from launcher.runs.runview import RunRecord, RunView, view

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_AXIS = "Time counts from the first request; a tick is a checkpoint, a cross a preemption."
_MEANING = {
    "useful": "steps the run kept",
    "restart": "machine up until its first new step",
    "lost": "work after the last checkpoint, done again",
    "idle": "machine still there with nothing to do",
}


def page(records: Sequence[RunRecord], now: datetime) -> str:
    """The whole file."""
    bills = [(record, record.costs(now)) for record in records]
    title = records[0].run_id if len(records) == 1 else f"{len(records)} runs"
    several = [_overview([bill for _, bill in bills], title)] if len(records) > 1 else []
    made = f"Made by vlaunch from the journals in the store, {now.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC."
    body = tag(
        "main",
        *several,
        *(run_section(record, bill, view(record, now), now) for record, bill in bills),
        tag("footer", made),
    )
    return document(f"{title} - vlaunch cost report", body)


def document(title: str, body: Markup, script: str = "") -> str:
    """An HTML file around its content. `script` is the only one that the browser may run."""
    policy = _POLICY
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'; connect-src 'self'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(CSS)),
    )
    scripts = [tag("script", Markup(script))] if script else []
    return (
        "<!DOCTYPE html>\n" + tag("html", head, tag("body", definitions(), body, *scripts), lang="en") + "\n"
    )


def _overview(bills: Sequence[CostReport], title: str) -> Markup:
    header = ["Run", "Machines", "Time", "Dollars", "On demand", "Saved"]
    rows = [
        tag("tr",
            tag("td", tag("a", bill.run_id, href=f"#{bill.run_id}")),
            number(str(len(bill.charges))), number(duration(bill.billed)), number(usd(bill.usd)),
            number(usd(bill.on_demand_usd) if bill.on_demand_usd else "-"), number(saved_text(bill)))
        for bill in bills
    ]  # fmt: skip
    return tag(
        "section",
        tag("h1", title),
        tag("p", total_line(combine(bills, title)), class_="lead"),
        tag("div", table(header, rows, left=1), class_="card scroll"),
        class_="run",
    )


def run_section(record: RunRecord, bill: CostReport, seen: RunView, now: datetime) -> Markup:
    """Everything about one run: tiles, loss, speed, attempts, bill."""
    began = seen.created or now
    return tag(
        "section",
        tag("p", f"{began.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC, {record.uri}", class_="eyebrow"),
        tag(
            "header",
            tag("h1", record.run_id),
            tag("span", seen.state.value, class_=f"state {seen.state.value}"),
        ),
        tag("p", total_line(bill) + ".", class_="lead"),
        *([tag("p", seen.problem, class_="problem")] if seen.problem else []),
        _tiles(bill, seen),
        _loss_card(record, seen),
        _speed_card(record, seen),
        *([_timeline_card(bill, now), _bill_card(bill)] if bill.charges else []),
        class_="run",
        id=record.run_id,
    )


def _tiles(bill: CostReport, seen: RunView) -> Markup:
    of = f" of {seen.max_steps:,}" if seen.max_steps else ""
    tiles = [
        (f"{seen.step:,}", f"steps{of}"),
        (figure(seen.loss), "training loss, last step"),
        (figure(seen.eval_last), f"held-out loss, first {figure(seen.eval_first)}"),
        (str(seen.preemptions), f"preemptions, {seen.failovers} to another region"),
        (usd(bill.usd), "notional dollars" if bill.notional else "dollars"),
        (saved_text(bill), "saved against on-demand"),
    ]
    return tag(
        "div",
        *(tag("div", tag("b", value), tag("span", label), class_="tile") for value, label in tiles),
        class_="tiles",
    )


def _loss_card(record: RunRecord, seen: RunView) -> Markup:
    where = {attempt.ordinal: region_name(attempt) for attempt in record.attempts}
    attempts = len({step.attempt for step in record.steps})
    note = "Each step once, in the order of training." if record.steps else ""
    if attempts > 1:
        note = f"Each step once. Colours change where one of {attempts} attempts went on from a checkpoint."
    line = tag("svg", tag("path", d="M1 6h20", class_="smooth stroke-a0"), viewBox="0 0 22 12")
    ring = tag("svg", tag("circle", cx=11, cy=6, r=4, class_="held"), viewBox="0 0 22 12")
    mark = tag("svg", tag("path", d="M7 2h8l-4 7z", class_="fill-a1"), viewBox="0 0 22 12")
    key = [tag("li", line, "training loss (running mean)")]
    key += [tag("li", ring, "held-out loss")] if record.evals else []
    key += [tag("li", mark, "an attempt resumes")] if attempts > 1 else []
    return tag(
        "div",
        tag("h2", "Loss"),
        tag("p", note, class_="caption"),
        tag("div", loss_chart(record.steps, record.evals, where), class_="scroll"),
        tag("ul", *key, class_="key"),
        class_="card",
    )


def _speed_card(record: RunRecord, seen: RunView) -> Markup:
    now = f"{seen.tokens_per_s:,.0f} tokens a second in the last steps." if seen.tokens_per_s else ""
    return tag(
        "div",
        tag("h2", "Speed"),
        tag("p", now, class_="caption"),
        tag("div", speed_chart(record.steps), class_="scroll"),
        class_="card",
    )


def _timeline_card(bill: CostReport, now: datetime) -> Markup:
    began = min(charge.attempt.asked for charge in bill.charges)
    regions = len(bill.by_region())
    waited = f", {duration(bill.waiting)} without a machine" if bill.waiting >= WORTH_SAYING else ""
    note = f"{len(bill.charges)} attempts in {regions} region{'s' if regions > 1 else ''}{waited}."
    return tag(
        "div",
        tag("h2", "Attempts"),
        tag("p", f"{note} {_AXIS}", class_="caption"),
        tag("div", timeline(bill, began, now), class_="scroll"),
        tag(
            "ul", *(tag("li", _swatch(part), f"{part}: {_MEANING[part]}") for part in _MEANING), class_="key"
        ),
        class_="card",
    )


def _bill_card(bill: CostReport) -> Markup:
    share, places = shares(bill), places_for(float(bill.usd), figures=3)
    bar = [
        tag("div", class_="lostbar" if part == "lost" else part, style=f"flex:{share[part]} 0 0",
            title=f"{part} {share[part]} %")
        for part in _MEANING if share[part]
    ]  # fmt: skip
    split = [
        tag("li", _swatch(part), f"{part} {share[part]} %, {usd(bill.usd_of(part), places)}")
        for part in _MEANING
    ]
    notes = [*_payment(bill), *bill.notes, "storage and transfer between regions are not in these dollars"]
    return tag(
        "div",
        tag("h2", "Bill"),
        tag("div", *bar, class_="bar"),
        tag("ul", *split, class_="key"),
        tag("div", _bill_table(bill, places), class_="scroll"),
        tag("ul", *(tag("li", note) for note in notes), class_="notes"),
        class_="card",
    )


def _payment(bill: CostReport) -> list[str]:
    sources = ", ".join(bill.price_sources)
    if bill.notional:
        return [f"nothing was paid: the prices are notional{', ' + sources if sources else ''}"]
    return [f"prices when each machine was asked for: {sources}"] if sources else []


def _bill_table(bill: CostReport, places: int) -> Markup:
    header = [
        "Attempt",
        "Region",
        "Machine",
        "Ended",
        "$ per hour",
        "Time",
        *map(str.capitalize, _MEANING),
        "Dollars",
    ]
    rows = [_charge_row(charge, places) for charge in bill.charges]
    regions = bill.by_region()
    if len(regions) > 1:
        rows += [_sum_row(f"in {name}", group, places, "sum") for name, group in regions.items()]
    rows.append(_sum_row("all attempts", bill, places, "total"))
    if bill.on_demand_usd is not None and bill.saved is not None:
        words = "the same work on demand, with one restart and no preemption"
        rows.append(
            tag(
                "tr",
                tag("td", words, colspan=len(header) - 1),
                number(usd(bill.on_demand_usd, places)),
                class_="other",
            )
        )
    return table(header, rows, left=4)


def _charge_row(charge: Charge, places: int) -> Markup:
    attempt, price = charge.attempt, charge.attempt.price.usd_per_hour
    return tag(
        "tr",
        tag("td", tag("span", class_=f"chip bg-{colour_of(attempt.ordinal)}"), str(attempt.ordinal)),
        tag("td", region_name(attempt)),
        tag("td", f"{attempt.instance} {attempt.market}".strip()),
        tag("td", "running" if charge.running else attempt.reason or "not recorded"),
        number(usd(price, places_for(float(price), figures=3)) if price is not None else "-"),
        number(duration(charge.billed)),
        *(number(duration(charge.time_of(part))) for part in _MEANING),
        number(usd(charge.usd, places)),
    )


def _sum_row(name: str, group: Charges, places: int, class_: str) -> Markup:
    return tag(
        "tr",
        tag("td", str(len(group.charges))),
        tag("td", name, colspan=4),
        number(duration(group.billed)),
        *(number(duration(group.time_of(part))) for part in _MEANING),
        number(usd(group.usd, places)),
        class_=class_,
    )


def table(header: Sequence[str], rows: Sequence[Markup], left: int) -> Markup:
    """A table whose first `left` columns are text and the others numbers."""
    cells = [tag("th", name, class_=None if i < left else "n", scope="col") for i, name in enumerate(header)]
    return tag("table", tag("thead", tag("tr", *cells)), tag("tbody", *rows))


def number(text: str) -> Markup:
    return tag("td", text, class_="n")


def _swatch(part: str) -> Markup:
    return tag("i", class_=part)


def saved_text(bill: CostReport) -> str:
    return "-" if bill.saved is None else f"{round(100 * float(bill.saved))} %"


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
