"""Markets and traces, as pure functions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.spot.market import Interval, Traces
from launcher.spot.trace import SpotTrace, load_trace
from trainer.errors import UsageError


@given(st.integers(1, 10_000), st.floats(0, 1e6), st.floats(1, 100), st.floats(0, 0.99))
def test_an_interval_market_is_repeatable_and_keeps_to_its_jitter(
    attempt: int, since: float, every: float, share: float
) -> None:
    market = Interval(every, every * share)

    taken = market.taken_at("z", since, attempt)

    assert taken == Interval(every, every * share).taken_at("z", since, attempt)
    assert every * (1 - share) - 1e-6 <= taken - since <= every * (1 + share) + 1e-6


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=30),
    st.floats(0, 500),
    st.integers(1, 3),
    st.floats(0.5, 20),
)
def test_a_machine_of_a_trace_stays_until_the_first_tick_without_it(
    counts: list[int], at: float, machines: int, scale: float
) -> None:
    trace = SpotTrace("z", "z", 10.0, tuple(counts))
    market = Traces([trace], scale, machines)
    if not market.available("z", at):
        return

    taken = market.taken_at("z", at, 1)

    if all(count >= machines for count in counts):
        assert taken == float("inf")
    else:
        first = int(at * scale / 10.0) + 1
        tick = next(t for t in range(first, first + len(counts)) if counts[t % len(counts)] < machines)
        assert taken == tick * 10.0 / scale


def test_a_recorded_trace_names_its_zone_and_region(tmp_path: Path) -> None:
    path = tmp_path / "us-west-2a_v100_1.json"
    path.write_text(json.dumps({"metadata": {"gap_seconds": 195}, "data": [0, 1]}))

    trace = load_trace(path)

    assert (trace.zone, trace.region, trace.gap_s) == ("us-west-2a", "us-west-2", 195.0)


@pytest.mark.parametrize("name", ["us-central1-a_c3-88.json", "us-central1-b_c3-88.json"])
def test_zones_of_google_are_understood(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(json.dumps({"metadata": {"gap_seconds": 30}, "data": [1]}))

    assert load_trace(path).region == "us-central1"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"metadata": {"gap_seconds": 0}, "data": [1]}', '{"data": 3}']
)
def test_what_is_no_trace_is_refused_with_the_form_of_one(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)

    with pytest.raises(UsageError) as error:
        load_trace(path)

    assert "gap_seconds" in (error.value.hint or "")
