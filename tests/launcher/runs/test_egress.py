"""Bytes that left a region, and what a bill says of them."""

from __future__ import annotations

from fractions import Fraction

from launcher.report.tables import as_dict
from launcher.report.terminal import bill_text
from launcher.runs.costs import combine, cost_report
from launcher.runs.egress import Egress, egress_of
from tests.launcher.lives import at, event, life
from trainer.artifacts.journal import RunEvent

GB = 10**9


def started(attempt: int, store: str = "aws/us-east-1", nodes: int = 1, **read: int) -> RunEvent:
    places = [
        {"region": name.replace("__", "/").replace("_", "-"), "bytes": size} for name, size in read.items()
    ]
    return event("started", 7 + attempt, attempt, epoch=attempt, store_region=store, nodes=nodes, read=places)


def moved(*events: RunEvent, region: str = "us-east-1", **prices: object) -> Egress:
    """Of an attempt on AWS, or where `prices` say."""
    lived = [item for item in life(1, 0, region=region, trained=15, **prices) if item.kind != "started"]  # type: ignore[arg-type]
    report = cost_report("r", [*lived, *events], at(60))
    return egress_of(report.charges[0].attempt, [*lived, *events])


def test_what_stays_in_its_region_costs_nothing() -> None:
    sent = event("checkpoint", 20, step=1, sent_bytes=GB)
    assert moved(started(1, aws__us_east_1=5 * GB), sent) == Egress()


def test_a_restore_from_another_region_is_charged_for_every_node() -> None:
    found = moved(started(1, "aws/us-west-2", nodes=2, aws__us_west_2=5 * GB))
    assert (found.bytes, found.usd) == (10 * GB, Fraction("0.02") * 10)
    assert found.sources and "us-east-1 to us-west-2" in found.sources[0]


def test_saves_and_copies_that_leave_the_region_are_charged_too() -> None:
    saves = event("checkpoint", 20, step=1, sent_bytes=3 * GB)
    copies = event("replicated", 21, step=1, store="gs://y", region="gcp/us-central1", bytes=GB)
    found = moved(started(1, "aws/us-west-2"), saves, copies)
    assert found.usd == 3 * Fraction("0.02") + Fraction("0.09"), (
        "from one cloud to another it goes over the internet"
    )


def test_where_a_region_or_a_price_is_not_known_no_dollars_are_invented() -> None:
    unknown = moved(event("started", 8, epoch=1, read=[{"region": "", "bytes": GB}]))
    assert (unknown.bytes, unknown.usd, unknown.unplaced_bytes) == (0, 0, GB)
    other = moved(started(1, "oci/frankfurt", oci__frankfurt=GB), cloud="oci", region="phoenix")
    assert (other.bytes, other.usd) == (GB, None)


def test_the_local_cloud_plays_the_regions_of_the_stores_cloud() -> None:
    found = moved(started(1, "aws/us-west-2", aws__us_west_2=GB), cloud="local")
    assert found.usd == Fraction("0.02")
    assert moved(started(1, "aws/us-east-1", aws__us_east_1=GB), cloud="local") == Egress()


def test_a_damaged_event_is_no_egress() -> None:
    assert moved(event("started", 8, epoch=1, read=[{"bytes": "many"}], nodes="two")) == Egress()


def test_the_bill_tells_it_beside_the_machines() -> None:
    events = [*life(1, 0, trained=15), started(1, "aws/us-west-2", aws__us_west_2=5 * GB)]
    report = cost_report("r", events, at(60))
    assert "out of a region: 5.000 GB, $0.10 besides the machines (AWS list prices" in bill_text(report)
    told = as_dict(report)
    assert (told["egress_bytes"], told["egress_usd"]) == (5 * GB, 0.1)
    assert told["attempts"][0]["egress_usd"] == 0.1
    assert report.usd == cost_report("r", life(1, 0, trained=15), at(60)).usd
    assert combine([report, report], "both").egress.bytes == 10 * GB
    assert "out of a region" not in bill_text(cost_report("r", life(1, 0, trained=15), at(60)))
