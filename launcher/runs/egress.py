"""Bytes that left a region: how many, and what a cloud takes for that.

Bytes into a cloud cost nothing; out of a region they do. A run pays when an attempt reads its checkpoint from another
region, when it sends checkpoints to a store in another region, and for copies that it asked for.

Pure: from the journal. List prices of the first tier, in USD per GB (10^9 bytes); they differ for some regions (from
Asia and South America more), so every figure says where it comes from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from launcher.runs.attempts import Attempt
from trainer.artifacts.journal import RunEvent

# cloud: to another of its regions, to anywhere else, and the source of both.
_USD_PER_GB = {
    "aws": (
        "0.02",
        "0.09",
        "AWS list prices, us-east-1 to us-west-2 (AWS re:Post, January 2026) and to the internet",
    ),
    # cloud.google.com/storage/pricing, read on 2026-09-20 (transcribed in api-evangelist/gcp-cloud-storage): $0.12 per
    # GiB to the internet, below 10 TiB. Between regions of one continent: price guides of 2026 say $0.01 to 0.02;
    # Google's own table was not seen. It bills GiB, so these figures are up to 7 % high.
    "gcp": (
        "0.02",
        "0.12",
        "Google Cloud list prices, to the internet (September 2026) and within a continent (price guides, 2026)",
    ),
}


@dataclass(frozen=True, slots=True)
class Egress:
    """What was moved out of regions; `usd` is None where the price of some of it is not known."""

    bytes: int = 0
    usd: Fraction | None = Fraction(0)
    sources: tuple[str, ...] = ()
    unplaced_bytes: int = 0
    """Moved between a store and a machine of which one has no known region: perhaps no egress."""

    def __add__(self, other: Egress) -> Egress:
        usd = None if self.usd is None or other.usd is None else self.usd + other.usd
        sources = tuple(dict.fromkeys((*self.sources, *other.sources)))
        return Egress(self.bytes + other.bytes, usd, sources, self.unplaced_bytes + other.unplaced_bytes)


def egress_of(attempt: Attempt, events: Iterable[RunEvent]) -> Egress:
    """Of one attempt: what it read from other regions, and what it sent to them."""
    total, store_region = Egress(), ""
    here = f"{attempt.cloud}/{attempt.region}" if attempt.cloud else attempt.region
    for event in events:
        if event.attempt != attempt.ordinal:
            continue
        data = event.data
        if event.kind == "started":
            store_region = _text(data.get("store_region"))
            nodes = data.get("nodes") if isinstance(data.get("nodes"), int) else 1
            for read in data.get("read") or ():
                total += _moved(_text(read.get("region")), here, _count(read.get("bytes")) * (nodes or 1))
        elif event.kind == "checkpoint":
            total += _moved(here, store_region, _count(data.get("sent_bytes")))
        elif event.kind == "replicated":
            total += _moved(here, _text(data.get("region")), _count(data.get("bytes")))
    return total


def _moved(out_of: str, into: str, size: int) -> Egress:
    (cloud, region), (to_cloud, to_region) = _parts(out_of), _parts(into)
    if not size or not region or not to_region:
        return Egress(unplaced_bytes=size)
    # The local cloud plays regions of a real one: their names are those of the other side's cloud.
    cloud = to_cloud if cloud in ("", "local") else cloud
    to_cloud = cloud if to_cloud in ("", "local") else to_cloud
    if (cloud, region) == (to_cloud, to_region):
        return Egress()
    if cloud not in _USD_PER_GB:
        return Egress(size, None)
    within, outside, source = _USD_PER_GB[cloud]
    rate = Fraction(within if cloud == to_cloud else outside)
    return Egress(size, rate * size / 10**9, (source,))


def _parts(region: str) -> tuple[str, str]:
    """("aws", "us-east-1"); a region without a cloud has none."""
    cloud, _, name = region.rpartition("/")
    return cloud, name


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0
