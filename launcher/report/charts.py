"""The drawings of the HTML report as inline SVG: loss and speed over steps, attempts over time, a loss in small."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from launcher.report.amounts import duration, usd
from launcher.report.markup import Markup, tag
from launcher.report.theme import ATTEMPT_COLOURS
from launcher.runs.attempts import region_name
from launcher.runs.costs import PARTS, Charge, CostReport
from trainer.artifacts.metrics import EvalRecord, StepRecord

_WIDTH = 1000.0
_LEFT, _RIGHT = 52.0, 14.0
_TIMES_S = (
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    10800,
    21600,
    43200,
    86400,
    172800,
    604800,
)
# More points than pixels only make the file larger.
_MOST_POINTS = 1200
_HITS = 150
_HALF = 11.0  # half the height of an attempt's bar


@dataclass(frozen=True, slots=True)
class Scale:
    """Numbers -> pixels along one axis."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / ((self.high - self.low) or 1.0) * (self.stop - self.start)


def colour_of(attempt: int) -> str:
    return f"a{(attempt - 1) % ATTEMPT_COLOURS}"


def definitions() -> Markup:
    """Once per page. Lost work is hatched, so that it is not told by its colour alone."""
    line = tag("path", d="M-1 7L7 -1M3 11L11 3", class_="hatch")
    pattern = tag("pattern", line, id="hatch", width=8, height=8, patternUnits="userSpaceOnUse")
    return tag("svg", tag("defs", pattern), width=0, height=0, class_="defs", aria_hidden="true")


def loss_chart(steps: Sequence[StepRecord], evals: Sequence[EvalRecord], where: dict[int, str]) -> Markup:
    """Training loss by attempt, held-out loss, and where each attempt took over.

    where: attempt -> what to call the place it ran in.
    """
    steps = [record for record in steps if math.isfinite(record.loss)]
    evals = sorted((record for record in evals if math.isfinite(record.loss)), key=lambda record: record.step)
    if not steps and not evals:
        return tag("p", "No step has been made yet.", class_="caption")
    height, top, bottom = 340.0, 30.0, 306.0
    losses = [record.loss for record in steps] + [record.loss for record in evals]
    ticks = nice_ticks(min(losses), max(losses), 6)
    last = max([record.step for record in steps[-1:]] + [record.step for record in evals[-1:]])
    x = Scale(0, last, _LEFT, _WIDTH - _RIGHT)
    y = Scale(ticks[0], ticks[-1], bottom, top)
    return tag(
        "svg",
        tag("title", f"Loss over {last} steps"),
        *_axes(x, y, ticks, "loss", bottom),
        *_lines(steps, [record.loss for record in steps], x, y),
        *_held_out(evals, x, y),
        *_resumes(steps, where, x, top, bottom),
        *_hits(steps, x, top, bottom),
        viewBox=f"0 0 {_WIDTH:g} {height:g}",
        role="img",
    )


def speed_chart(steps: Sequence[StepRecord]) -> Markup:
    """Tokens per second of each step, by attempt; nothing before the second step."""
    timed = [
        (b, (b.tokens - a.tokens) / b.step_s) for a, b in zip(steps, steps[1:], strict=False) if b.step_s > 0
    ]
    if not timed:
        return tag("p", "Two steps are needed for a speed.", class_="caption")
    shown, speeds = [record for record, _ in timed], [speed for _, speed in timed]
    top, bottom = 30.0, 166.0
    ticks = nice_ticks(0, max(smoothed(speeds)), 4)  # a single fast step may stick out
    x = Scale(0, shown[-1].step, _LEFT, _WIDTH - _RIGHT)
    y = Scale(0, ticks[-1], bottom, top)
    return tag(
        "svg",
        tag("title", f"Speed over {shown[-1].step} steps"),
        *_axes(x, y, ticks, "tok/s", bottom),
        *_lines(shown, [min(speed, ticks[-1]) for speed in speeds], x, y),
        viewBox=f"0 0 {_WIDTH:g} 200",
        role="img",
    )


def spark(steps: Sequence[StepRecord]) -> Markup:
    """The loss without numbers, for a row of a table."""
    steps = [record for record in steps if math.isfinite(record.loss)]
    if len(steps) < 2:
        return Markup("")
    means = smoothed([record.loss for record in steps])
    x, y = Scale(0, steps[-1].step, 1, 119), Scale(min(means), max(means), 21, 3)
    points = _thinned([(x(r.step), y(mean)) for r, mean in zip(steps, means, strict=True)], 10 * len(steps))
    line = tag("path", d=_path(points), class_="smooth stroke-a0")
    return tag("svg", line, viewBox="0 0 120 24", class_="spark", aria_hidden="true")


def timeline(report: CostReport, began: datetime, now: datetime) -> Markup:
    """Attempts as bars of restart, useful, lost and idle time, one lane per region."""
    lanes = list(report.by_region())
    lane_height, top = 64.0, 10.0
    bottom = top + lane_height * len(lanes)
    spans = {charge.attempt.ordinal: _span(charge, now) for charge in report.charges}
    last = max((end - began).total_seconds() for _, end in spans.values())
    left = max(_LEFT, 20 + 7.2 * max(len(lane) for lane in lanes))
    x = Scale(0, last, left, _WIDTH - _RIGHT - 8)

    def place(time: datetime) -> float:
        return x((time - began).total_seconds())

    middles = {lane: top + lane_height * (index + 0.5) for index, lane in enumerate(lanes)}
    return tag(
        "svg",
        tag("title", "Attempts over time"),
        *_time_axis(x, last, bottom),
        *(tag("text", lane, x=4, y=middles[lane] + 4, class_="name") for lane in lanes),
        *_hops(report.charges, spans, place, middles),
        *_attempt_bars(report.charges, spans, place, middles),
        viewBox=f"0 0 {_WIDTH:g} {bottom + 30:g}",
        role="img",
    )


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers that enclose low..high, about `count` of them."""
    span = (high - low) or abs(high) or 1.0
    raw = span / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, final = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(final, first + 1) + 1)]


def smoothed(values: Sequence[float]) -> list[float]:
    """Centred running mean over about a fortieth of the points."""
    half = max(1, len(values) // 80)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    bounds = [(max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values))]
    return [(sums[high] - sums[low]) / (high - low) for low, high in bounds]


def _axes(x: Scale, y: Scale, ticks: Sequence[float], name: str, bottom: float) -> list[Markup]:
    """Grid and numbers; steps below, what is measured on the left."""
    last, parts = x.high, []
    for tick in ticks:
        parts.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y(tick), y2=y(tick), class_="grid"))
        parts.append(tag("text", f"{tick:g}", x=_LEFT - 8, y=y(tick) + 4, text_anchor="end"))
    for step in nice_ticks(0, last, 8):
        if step <= last:
            parts.append(tag("text", f"{step:g}", x=x(step), y=bottom + 18, text_anchor="middle"))
    parts.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=bottom, y2=bottom, class_="axis"))
    parts.append(tag("text", "step", x=_WIDTH - _RIGHT, y=bottom + 32, text_anchor="end"))
    parts.append(tag("text", name, x=_LEFT - 8, y=14, text_anchor="end"))
    return parts


def _lines(steps: Sequence[StepRecord], measured: Sequence[float], x: Scale, y: Scale) -> list[Markup]:
    """Each step's value faintly, its running mean clearly; a line reaches back to where it continues from."""
    means = smoothed(measured)
    parts = []
    for first, end in _stretches(steps):
        colour = f"stroke-{colour_of(steps[first].attempt)}"
        begin = max(0, first - 1)
        for name, values in (("raw", measured), ("smooth", means)):
            points = _thinned([(x(steps[i].step), y(values[i])) for i in range(begin, end)], len(steps))
            parts.append(tag("path", d=_path(points), class_=f"{name} {colour}"))
    return parts


def _stretches(steps: Sequence[StepRecord]) -> list[tuple[int, int]]:
    """Index ranges [first, end) of steps that one attempt made."""
    starts = [i for i, record in enumerate(steps) if i == 0 or record.attempt != steps[i - 1].attempt]
    return list(zip(starts, [*starts[1:], len(steps)], strict=True))


def _thinned(points: Sequence[tuple[float, float]], of: int) -> list[tuple[float, float]]:
    """The lowest and the highest point of every few, so that spikes survive."""
    size = -(-2 * of // _MOST_POINTS)
    if size <= 2:
        return list(points)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), size):
        group = points[start : start + size]
        kept.extend(sorted({min(group, key=lambda p: p[1]), max(group, key=lambda p: p[1])}))
    return kept


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in points)


def _held_out(evals: Sequence[EvalRecord], x: Scale, y: Scale) -> list[Markup]:
    if not evals:
        return []
    points = [(x(record.step), y(record.loss)) for record in evals]
    rings = [
        tag("circle", tag("title", f"held-out loss {record.loss:.4f} after step {record.step}"),
            cx=px, cy=py, r=4, class_="held")
        for record, (px, py) in zip(evals, points, strict=True)
    ]  # fmt: skip
    return [tag("path", d=_path(points), class_="heldline"), *rings]


def _resumes(
    steps: Sequence[StepRecord], where: dict[int, str], x: Scale, top: float, bottom: float
) -> list[Markup]:
    """A dashed line where an attempt took over, with its number as far as there is room."""
    parts: list[Markup] = []
    free = 0.0
    for first, _ in _stretches(steps)[1:]:
        attempt = steps[first].attempt
        at, colour = x(steps[first - 1].step), colour_of(attempt)
        note = f"attempt {attempt}{' in ' + where[attempt] if attempt in where else ''} went on from step"
        parts.append(
            tag("line", tag("title", f"{note} {steps[first - 1].step}"), x1=at, x2=at, y1=top, y2=bottom,
                class_=f"resume stroke-{colour}")
        )  # fmt: skip
        parts.append(tag("path", d=f"M{at - 4:.1f} {top - 8:g}h8l-4 7z", class_=f"fill-{colour}"))
        if at - 8 >= free:
            parts.append(
                tag("text", str(attempt), x=at, y=top - 12, text_anchor="middle", class_=f"fill-{colour}")
            )
            free = at + 10
    return parts


def _hits(steps: Sequence[StepRecord], x: Scale, top: float, bottom: float) -> list[Markup]:
    """Invisible columns that show the numbers under the pointer, without a script."""
    size = max(1, -(-len(steps) // _HITS))
    parts = []
    for start in range(0, len(steps), size):
        record = steps[min(start + size // 2, len(steps) - 1)]
        left = x(steps[start].step - 0.5)
        right = x(steps[min(start + size, len(steps)) - 1].step + 0.5)
        words = f"step {record.step}: loss {record.loss:.4f}, rate {record.learning_rate:.3g}"
        words += f", attempt {record.attempt}"
        parts.append(
            tag(
                "rect",
                tag("title", words),
                x=left,
                y=top,
                width=right - left,
                height=bottom - top,
                class_="hit",
            )
        )
    return parts


def _time_axis(x: Scale, last: float, bottom: float) -> list[Markup]:
    step = next((size for size in _TIMES_S if last / size <= 9), _TIMES_S[-1])
    parts = []
    for index in range(int(last // step) + 1):
        at = x(index * step)
        parts.append(tag("line", x1=at, x2=at, y1=4, y2=bottom, class_="grid"))
        parts.append(tag("text", _clock(index * step), x=at, y=bottom + 18, text_anchor="middle"))
    parts.append(tag("line", x1=x.start, x2=x.stop, y1=bottom, y2=bottom, class_="axis"))
    return parts


def _clock(seconds: int) -> str:
    days, rest = divmod(seconds, 86400)
    hours, minutes, secs = rest // 3600, rest // 60 % 60, rest % 60
    if days:
        return f"{days}d {hours}h" if hours else f"{days}d"
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


def _span(charge: Charge, now: datetime) -> tuple[datetime, datetime]:
    up = charge.attempt.up or now
    return up, up + charge.billed


def _hops(
    charges: Sequence[Charge],
    spans: dict[int, tuple[datetime, datetime]],
    place: Callable[[datetime], float],
    middles: dict[str, float],
) -> list[Markup]:
    """From the end of one machine to the start of the next: the wait, and the change of region."""
    parts = []
    for before, after in zip(charges, charges[1:], strict=False):
        start, end = spans[before.attempt.ordinal][1], spans[after.attempt.ordinal][0]
        y1, y2 = middles[region_name(before.attempt)], middles[region_name(after.attempt)]
        d = f"M{place(start):.1f} {y1:.1f}L{place(end):.1f} {y2:.1f}"
        words = f"no machine for {duration(max(end - start, timedelta(0)))}"
        parts.append(tag("path", tag("title", words), d=d, class_="hop"))
    return parts


def _attempt_bars(
    charges: Sequence[Charge],
    spans: dict[int, tuple[datetime, datetime]],
    place: Callable[[datetime], float],
    middles: dict[str, float],
) -> list[Markup]:
    """Each attempt's bar, with its number above where the one before leaves room."""
    bars = []
    free: dict[float, float] = {}
    for charge in charges:
        span, middle = spans[charge.attempt.ordinal], middles[region_name(charge.attempt)]
        parts = [*_segments(charge, span[0], place, middle), *_moments(charge, span, place, middle)]
        left = place(span[0])
        if left >= free.get(middle, 0.0):
            number = str(charge.attempt.ordinal)
            colour = f"fill-{colour_of(charge.attempt.ordinal)}"
            parts.append(tag("text", number, x=left, y=middle - _HALF - 5, class_=f"number {colour}"))
            free[middle] = left + 9 * len(number) + 4
        bars.append(tag("g", *parts))
    return bars


def _segments(
    charge: Charge, start: datetime, place: Callable[[datetime], float], middle: float
) -> list[Markup]:
    parts = []
    for part in PARTS:
        size = charge.time_of(part)
        if size:
            words = f"attempt {charge.attempt.ordinal}: {part} {duration(size)}, {usd(charge.usd_of(part))}"
            left, width = place(start), place(start + size) - place(start)
            box = {"x": left, "y": middle - _HALF, "width": width, "height": 2 * _HALF}
            parts.append(tag("rect", tag("title", words), class_=f"part {part}", **box))
            if part == "lost":
                parts.append(tag("rect", fill="url(#hatch)", pointer_events="none", **box))
        start += size
    return parts


def _moments(
    charge: Charge, span: tuple[datetime, datetime], place: Callable[[datetime], float], middle: float
) -> list[Markup]:
    """A tick under the bar for each checkpoint, a cross at the end where the machine was taken."""
    parts = []
    for mark in charge.attempt.marks:
        if span[0] <= mark.taken_at <= span[1]:
            at, low = place(mark.taken_at), middle + _HALF + 2
            title = tag("title", f"checkpoint of step {mark.step}")
            parts.append(tag("line", title, x1=at, x2=at, y1=low, y2=low + 6, class_="save"))
    if charge.attempt.reason == "preempted":
        d = f"M{place(span[1]) + 3:.1f} {middle - 4:.1f}l8 8m0 -8l-8 8"
        parts.append(tag("path", tag("title", "the machine was taken"), d=d, class_="taken"))
    return parts
