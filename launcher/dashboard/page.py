"""The pages: all runs in a table, and everything about one. The same drawings as in the report that can be mailed."""

from __future__ import annotations

from datetime import UTC, datetime

from launcher.dashboard.shelf import Shown
from launcher.report.amounts import total_line, usd
from launcher.report.charts import spark
from launcher.report.html import document, figure, number, run_section, saved_text, table
from launcher.report.markup import Markup, tag
from launcher.runs.costs import combine
from launcher.runs.runview import RunRecord, RunView, view

# Fetches this very page every few seconds and puts its content in place of what is shown, without a jump.
_REFRESH = """"use strict";
const again = async () => {
  let said = "";
  try {
    const answer = await fetch(location.href, {cache: "no-store"});
    if (answer.ok) {
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (!document.querySelector("svg :hover")) document.querySelector("main").replaceWith(page.querySelector("main"));
    } else said = "the dashboard answered " + answer.status;
  } catch { said = "the dashboard has been stopped; this is what it showed last"; }
  const notice = document.getElementById("notice");
  if (notice) { notice.textContent = said; notice.hidden = !said; }
  setTimeout(again, 3000);
};
setTimeout(again, 3000);
"""
_COLUMNS = (
    "Run",
    "State",
    "Loss",
    "Step",
    "Last loss",
    "Tokens/s",
    "Attempts",
    "Preemptions",
    "Dollars",
    "Saved",
)


def overview(shown: Shown, store: str) -> str:
    """Every run of the store, the newest first."""
    bills = {record.run_id: record.costs(shown.at) for record in shown.runs}
    rows = []
    for record in shown.runs:
        seen, bill = view(record, shown.at), bills[record.run_id]
        rows.append(_row(record, seen, saved_text(bill)))
    total = (
        [tag("p", total_line(combine(list(bills.values()), "all runs")) + ".", class_="lead")] if rows else []
    )
    what = tag("div", table(_COLUMNS, rows, left=3), class_="card scroll") if rows else _nothing()
    heading = tag("h1", f"{len(rows)} run{'' if len(rows) == 1 else 's'}")
    return _page("vlaunch", shown, heading, *total, what, where=store)


def one_run(shown: Shown, record: RunRecord) -> str:
    """Loss, speed, attempts and bill of one run."""
    section = run_section(record, record.costs(shown.at), view(record, shown.at), shown.at)
    back = tag("p", tag("a", "all runs", href="/"), class_="eyebrow")
    return _page(f"{record.run_id} - vlaunch", shown, back, section, where=record.uri)


def _row(record: RunRecord, seen: RunView, saved: str) -> Markup:
    state = tag("span", seen.state.value, class_=f"state {seen.state.value}")
    step = f"{seen.step:,}" + (f" of {seen.max_steps:,}" if seen.max_steps else "")
    return tag(
        "tr",
        tag("td", tag("a", seen.run_id, href=f"/runs/{seen.run_id}")),
        tag("td", state),
        tag("td", spark(record.steps)),
        number(step),
        number(figure(seen.loss)),
        number(f"{seen.tokens_per_s:,.0f}" if seen.tokens_per_s else "-"),
        number(str(seen.attempt)),
        number(str(seen.preemptions)),
        number(usd(seen.usd) + (" notional" if seen.notional else "")),
        number(saved),
    )


def _nothing() -> Markup:
    return tag("p", "There is no run in this store yet: vlaunch train starts one.", class_="lead")


def _page(title: str, shown: Shown, *parts: Markup, where: str) -> str:
    problems = [tag("p", problem, class_="problem") for problem in shown.problems]
    footer = tag("footer", f"{where}, read {_clock(shown.at)}; the page reads it again by itself.")
    notice = tag("p", "", id="notice", class_="problem", hidden="")
    return document(title, tag("main", notice, *problems, *parts, footer), _REFRESH)


def _clock(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
