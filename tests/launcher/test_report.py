"""The HTML report is one valid file that fetches nothing; the terminal's curve shows what it was given."""

from __future__ import annotations

import math
from html.parser import HTMLParser

import pytest

from launcher.report import html
from launcher.report.charts import nice_ticks, smoothed
from launcher.report.curve import curve
from launcher.report.markup import Markup, tag
from launcher.runs.runview import RunRecord
from tests.launcher.lives import at, event, life
from trainer.artifacts.journal import RunEvent
from trainer.artifacts.metrics import EvalRecord, StepRecord

VOID = {"meta", "br"}
NASTY = "eu<script>alert(1)</script>&\"'"


class Page(HTMLParser):
    """Reads a page strictly: every element closed in order, ids unique; keeps what it saw."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open
        ids = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        assert len(ids) == len(set(ids))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, name: str, class_: str = "") -> list[dict[str, str | None]]:
        return [
            a for tag, a in self.tags if tag == name and class_ in (a.get("class") or "").split(" ") + [""]
        ]


def steps(first: int, last: int, attempt: int, loss: float | None = None) -> list[StepRecord]:
    return [
        StepRecord(n, 3 + 5 / n if loss is None else loss, 1.0, 1e-3, 500 * n, 8 * n, "ab", attempt, attempt,
                   at(n).timestamp(), 0.2)
        for n in range(first, last + 1)
    ]  # fmt: skip


def three_attempts(run_id: str = "tiny", region: str = "eu-west-1") -> RunRecord:
    events: list[RunEvent] = [
        *life(1, 0, trained=15, saved=[(20, 40)], taken=60),
        *life(2, 70, region=region, resumed_from=20, trained=85, saved=[(40, 110)], taken=120),
        *life(3, 130, region=region, resumed_from=40, trained=145, finished=(60, 170)),
    ]
    return RunRecord(
        run_id=run_id,
        uri=f"file:///store/runs/{run_id}",
        events=tuple(events),
        steps=(*steps(1, 20, 1), *steps(21, 40, 2), *steps(41, 60, 3)),
        evals=(EvalRecord(0, 9.0, 0.0), EvalRecord(60, 3.2, 0.0)),
    )


def test_the_page_is_valid_and_fetches_nothing() -> None:
    text = html.page([three_attempts()], at(300))
    page = Page(text)
    assert "http:" not in text and "https:" not in text and "//" not in text.replace("file:///", "")
    assert not page.all("script") and not page.all("link") and not page.all("img") and not page.all("iframe")
    assert not any(name in ("src", "srcset", "xlink:href") or name.startswith("on")
                   for _, attributes in page.tags for name in attributes)  # fmt: skip
    assert "@import" not in text and text.count("url(") == text.count("url(#hatch)")
    assert {"http-equiv": "Content-Security-Policy", "content": html._POLICY} in page.all("meta")


def test_the_page_has_the_curve_the_timeline_and_the_bill() -> None:
    page = Page(html.page([three_attempts()], at(300)))
    assert (
        len(page.all("path", "smooth")) == 3 + 3 + 1
    )  # a line per attempt for loss and speed, and the key's
    assert len(page.all("line", "resume")) == 2
    assert len(page.all("circle", "held")) == 2 + 1
    parts = {name: len(page.all("rect", name)) for name in ("useful", "restart", "lost", "idle")}
    assert parts == {"useful": 3, "restart": 3, "lost": 2, "idle": 1}
    assert len(page.all("path", "taken")) == 2
    for words in (
        "aws/us-east-1",
        "aws/eu-west-1",
        "all attempts",
        "on-demand would have been",
        "attempt 2 in",
    ):
        assert words in page.text


def test_text_from_a_run_stays_text() -> None:
    page = Page(html.page([three_attempts(region=NASTY)], at(300)))
    assert not page.all("script")
    assert f"aws/{NASTY}" in page.text


def test_what_went_wrong_is_on_the_page() -> None:
    failed = RunRecord("tiny", "file:///s", (*life(1, 0), event("failed", 30, error="a < b & c")))
    assert "a < b & c" in Page(html.page([failed], at(60))).text


@pytest.mark.parametrize(
    "record",
    [
        RunRecord("empty", "file:///s", ()),
        RunRecord("asked", "file:///s", tuple(life(1, 0)[:1])),
        RunRecord("up", "file:///s", tuple(life(1, 0)[:2])),
        RunRecord("one-step", "file:///s", tuple(life(1, 0, trained=15)), tuple(steps(1, 1, 1))),
        RunRecord("diverged", "file:///s", tuple(life(1, 0, trained=15)), tuple(steps(1, 9, 1, math.nan))),
        RunRecord("flat", "file:///s", tuple(life(1, 0, trained=15)), tuple(steps(1, 9, 1, 0.0))),
    ],
    ids=lambda record: record.run_id,
)
def test_a_run_with_little_to_show_makes_a_valid_page(record: RunRecord) -> None:
    page = Page(html.page([record], at(5)))
    assert page.all("h1")
    assert not any("nan" in (value or "") for _, attributes in page.tags for value in attributes.values())


def test_several_runs_share_one_page_and_one_total() -> None:
    page = Page(html.page([three_attempts("one"), three_attempts("two")], at(300)))
    assert {a["href"] for a in page.all("a")} == {"#one", "#two"}
    assert {a.get("id") for a in page.all("section")} >= {"one", "two"}


def test_a_long_run_does_not_make_a_long_file() -> None:
    many = RunRecord("long", "file:///s", tuple(life(1, 0, trained=15)), tuple(steps(1, 50_000, 1)))
    assert len(html.page([many], at(300))) < 200_000


def test_only_markup_is_not_escaped() -> None:
    assert tag("b", "<i>", Markup("<i></i>"), title='"<') == '<b title="&quot;&lt;">&lt;i&gt;<i></i></b>'


def test_the_terminals_curve_falls_when_the_loss_falls() -> None:
    drawn = curve([(n, 10 - n) for n in range(10)], width=30, height=5, marks=[4.5], unicode=False)
    columns = [line.index("*") for line in drawn[:5]]
    assert columns == sorted(columns) and len(set(columns)) == 5
    assert drawn[5].strip() == "^"
    assert "10" in drawn[0] and "1" in drawn[4] and drawn[6].split() == ["0", "9"]


def test_the_curve_leaves_out_what_is_not_a_number() -> None:
    assert curve([(1, math.nan), (2, math.inf)]) == ["(no points yet)"]
    assert len(curve([(1, 3.0)], height=4)) == 5


def test_the_curve_needs_only_ascii_where_the_terminal_has_only_ascii() -> None:
    assert "".join(curve([(n, n * n) for n in range(99)], unicode=False)).isascii()


@pytest.mark.parametrize(("low", "high"), [(2.93, 9.1), (0, 600), (1e-5, 2e-5), (3.0, 3.0), (0.0, 0.0)])
def test_ticks_are_few_and_enclose_the_values(low: float, high: float) -> None:
    ticks = nice_ticks(low, high, 6)
    assert ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9
    assert 2 <= len(ticks) <= 9


def test_smoothing_keeps_the_mean_of_a_straight_line() -> None:
    values = [float(n) for n in range(400)]
    assert smoothed(values)[200] == 200.0 and len(smoothed(values)) == 400
