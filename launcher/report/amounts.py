"""Money, time and shares as people read them, and the bill in one line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import timedelta
from fractions import Fraction

from launcher.runs.costs import PARTS, CostReport
from launcher.runs.egress import Egress

# A shorter wait is only the time between two journal entries.
WORTH_SAYING = timedelta(seconds=1)
# The order of the one-line total: what the money was for comes first.
_SHOWN = ("useful", "restart", "lost", "idle")


def usd(amount: Fraction | float, places: int | None = None) -> str:
    """`$1,234.50`, `$0.12`, `$0.0041`: cents, or two significant figures where cents would be 0.00."""
    value = float(amount)
    if places is None:
        places = places_for(value, figures=2)
    return f"{'-' if value < 0 else ''}${abs(value):,.{places}f}"


def places_for(value: float, figures: int) -> int:
    """Decimals that show `figures` significant figures of an amount, never fewer than cents."""
    if value == 0:
        return 2
    return max(2, figures - 1 - math.floor(math.log10(abs(value))))


def duration(time: timedelta | float) -> str:
    """`41s`, `3m 52s`, `2h 05m`, `3d 04h`; tenths below ten seconds."""
    seconds = time.total_seconds() if isinstance(time, timedelta) else time
    if seconds < 9.95:
        return f"{seconds:.1f}s" if seconds else "0s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def percents(parts: Mapping[str, Fraction]) -> dict[str, int]:
    """Whole percent of each part that add up to 100 (largest remainder); all zero where there is nothing."""
    total = sum(parts.values(), Fraction(0))
    if not total:
        return dict.fromkeys(parts, 0)
    exact = {name: 100 * value / total for name, value in parts.items()}
    whole = {name: math.floor(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: whole[name] - exact[name])
    for name in by_remainder[: 100 - sum(whole.values())]:
        whole[name] += 1
    return whole


def shares(report: CostReport) -> dict[str, int]:
    """Percent of the dollars that went into each part; of the time where nothing has a price."""
    dollars = {part: report.usd_of(part) for part in PARTS}
    if any(dollars.values()):
        return percents(dollars)
    return percents({part: Fraction(report.time_of(part).total_seconds()) for part in PARTS})


def total_line(report: CostReport) -> str:
    """The bill in one line, for example:

    $0.0041 spot for 3m 52s on 4 machines (useful 81 %, restart 12 %, lost 6 %, idle 1 %); on-demand would
    have been $0.0093: saved 56 %; nothing was paid (notional prices: as AWS m6i.large, catalog 2025-12)
    """
    if not report.charges:
        wait = f"; waited {duration(report.waiting)} for one" if report.waiting >= WORTH_SAYING else ""
        return f"$0.00: no machine has run yet{wait}"
    share = shares(report)
    split = ", ".join(f"{part} {share[part]} %" for part in _SHOWN)
    count = len(report.charges)
    machines = f"{count} machine{'s' if count > 1 else ''}"
    line = f"{usd(report.usd)} {' and '.join(report.markets)} for {duration(report.billed)} on {machines}"
    return "; ".join([f"{line} ({split})", *_comparison(report), *_payment(report)])


def egress_text(egress: Egress) -> str:
    """What crossed regions and what it costs, besides the machines; empty where nothing did."""
    if not egress.bytes:
        return ""
    price = "no price is known" if egress.usd is None else f"{usd(egress.usd)} besides the machines"
    source = f" ({'; '.join(egress.sources)})" if egress.sources else ""
    return f"out of a region: {egress.bytes / 1e9:,.3f} GB, {price}{source}"


def _comparison(report: CostReport) -> list[str]:
    if report.on_demand_usd is None or report.saved is None:
        return []
    would = f"on-demand would have been {usd(report.on_demand_usd)}"
    percent = round(100 * float(report.saved))
    if percent > 0:
        return [f"{would}: saved {percent} %"]
    return [
        f"{would}: {-percent} % dearer than that, nothing saved" if percent else f"{would}: nothing saved"
    ]


def _payment(report: CostReport) -> list[str]:
    """What was not really paid: the local cloud's machines have prices only to compare with."""
    if report.notional:
        sources = ", ".join(report.price_sources)
        return [f"nothing was paid (notional prices{': ' + sources if sources else ''})"]
    unpaid = report.usd - report.paid_usd
    return [f"{usd(report.paid_usd)} of it was paid, the rest is notional"] if unpaid else []
