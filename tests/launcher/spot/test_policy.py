"""The choice of the next place, as a pure function of what a journal remembers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from launcher.planning.plan import Candidate
from launcher.spot.policy import MEMORY_S, REFUSAL_S, Memory, choose, order, remember
from tests.launcher.lives import at, launcher, request
from trainer.artifacts.journal import RunEvent


def candidate(region: str, market: str = "spot") -> Candidate:
    return Candidate("aws", region, f"{region}a", "m", market, 1.0, 3.0, 1.0, "a test")  # type: ignore[arg-type]


A, B, C = candidate("a"), candidate("b"), candidate("c")
A_SAFE, B_SAFE = candidate("a", "on-demand"), candidate("b", "on-demand")


def lost(**times: float) -> Memory:
    return Memory({("aws", region, "spot"): at_s for region, at_s in times.items()}, {})


def test_with_nothing_lost_the_order_of_preference_holds() -> None:
    assert order([A, B, C], Memory(), 0.0) == [A, B, C]


def test_the_region_that_was_just_lost_stands_last() -> None:
    assert order([A, B, C], lost(a=10.0), 11.0) == [B, C, A]


def test_of_lost_regions_the_one_lost_longest_ago_comes_first() -> None:
    assert order([A, B], lost(a=10.0, b=50.0), 51.0) == [A, B]
    assert order([A, B], lost(a=50.0, b=10.0), 51.0) == [B, A]


def test_an_old_loss_is_forgotten() -> None:
    assert order([A, B], lost(a=10.0), 11.0 + MEMORY_S) == [A, B]


def test_a_place_that_had_no_machine_stands_back_for_a_shorter_time() -> None:
    memory = Memory({}, {("aws", "a", "spot"): 10.0})

    assert order([A, B], memory, 11.0) == [B, A]
    assert order([A, B], memory, 11.0 + REFUSAL_S) == [A, B]


def test_no_on_demand_machine_is_taken_while_another_region_may_have_a_spot_one() -> None:
    assert order([A, B, A_SAFE, B_SAFE], lost(a=10.0), 11.0) == [B, A, A_SAFE, B_SAFE]


def test_a_cluster_of_ones_own_that_took_a_machine_stands_behind_a_cloud() -> None:
    ours = Candidate("slurm", "a", "", "", "on-demand", None, None, None, "")
    memory = Memory({("slurm", "a", "on-demand"): 10.0}, {})

    assert order([ours, B], memory, 11.0) == [B, ours]


def test_a_lost_region_is_better_than_none() -> None:
    assert choose([A, B], {"aa"}, lost(a=10.0), 11.0) == A
    assert choose([A, B], set(), Memory(), 0.0) is None


def life(attempt: int, asked: float, region: str, *, taken: float | None = None) -> list[RunEvent]:
    events = [request(asked, attempt, region), launcher("running", asked + 5, attempt)]
    return events + ([launcher("ended", taken, attempt, reason="preempted")] if taken else [])


def test_a_journal_is_remembered_by_place_and_market() -> None:
    events = [
        *life(1, 0, "a", taken=50),
        request(60, 2, "b"),
        launcher("no_capacity", 70, 2, regions=["b"]),
        *life(3, 80, "c"),
    ]

    memory = remember(events)

    assert memory.lost_s == {("aws", "a", "spot"): at(50).timestamp()}
    assert memory.refused_s == {("aws", "b", "spot"): at(70).timestamp()}


def test_a_place_that_gave_a_machine_again_is_no_longer_refused() -> None:
    events = [request(0, 1, "a"), launcher("no_capacity", 10, 1, regions=["a"]), *life(2, 20, "a")]

    assert remember(events).refused_s == {}


def test_a_run_that_was_stopped_or_that_failed_blames_no_region() -> None:
    for reason in ("stopped", "failed", "finished"):
        events = [*life(1, 0, "a"), launcher("ended", 50, 1, reason=reason)]
        assert remember(events).lost_s == {}


@given(
    st.lists(st.sampled_from([A, B, C, A_SAFE, B_SAFE]), unique=True),
    st.dictionaries(st.sampled_from("abc"), st.floats(0, 1e5)),
    st.floats(0, 1e5),
)
def test_every_place_is_tried_once_and_markets_keep_their_seats(
    candidates: list[Candidate], losses: dict[str, float], now: float
) -> None:
    ranked = order(candidates, lost(**losses), now)

    assert sorted(c.place + c.market for c in ranked) == sorted(c.place + c.market for c in candidates)
    assert [c.market for c in ranked] == [c.market for c in candidates]  # all of a cloud that has both
