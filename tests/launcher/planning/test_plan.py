"""A plan's verdicts, hours and dollars against what the documents' authors saw."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import UsageError
from launcher.planning.alternatives import cheaper_machines
from launcher.planning.catalog import Catalog, Offer, Source
from launcher.planning.lives import expected_life_s
from launcher.planning.places import EGRESS_USD_PER_GB, LEAST_USEFUL, Machine, MarketName, Workload, expect
from launcher.planning.plan import Plan, make_plan
from launcher.planning.throughput import flops_per_token
from launcher.values import Infra
from tests.launcher.planned import PRICES, plan, request
from trainer.config import Method
from trainer.fitting import Case
from trainer.hardware import CARDS
from trainer.shape import LLAMA_7B, LLAMA_13B

ONE_ROW = "train.per_device_train_batch_size=1"

# (document, size, method, cards, settings, whether it fits). Documents: 000 Antrea's Vicuna page, 001 the Chinese
# notes, 002 ChatServer, 004 fine-tuning on a single 16 GB GPU.
SEEN: list[tuple[str, str, Method, str, tuple[str, ...], bool]] = [
    ("001: out of memory", "13", "full", "A100-80GB:2", (ONE_ROW,), False),
    ("001, 002: trains", "13", "full", "A100-80GB:8", (), True),
    ("001: 17 minutes", "7", "full", "A100-80GB:2", (ONE_ROW,), True),
    ("000: recommended", "7", "full", "A100-80GB:4", (), True),
    ("001: recommended", "7", "full", "A100:4", (ONE_ROW,), True),
    ("001: did not run", "13", "full", "RTX4090:8", (), False),
    ("000: one A10", "7", "qlora", "A10:1", (), True),
    ("004: 13 GB of a T4", "7", "lora", "T4:1", (), True),
    ("004: 13.5 GB of a P100", "7", "lora", "P100:1", (), True),
]


@pytest.mark.parametrize(
    "seen", SEEN, ids=[f"{size} {method} {gpus}" for _, size, method, gpus, _, _ in SEEN]
)
def test_what_the_documents_ran_fits_and_what_they_could_not_run_does_not(
    seen: tuple[str, str, Method, str, tuple[str, ...], bool],
) -> None:
    _, size, method, gpus, settings, fits = seen
    made = plan(size, method, *settings, gpus=gpus)
    assert made.fits is fits
    assert any("does not fit" in problem.what for problem in made.problems) is not fits
    assert made.fit and made.fit.terms and bool(made.fit.changes) is not fits


def test_the_recipe_of_the_16_gb_document_keeps_its_base_in_8_bit_at_512_tokens() -> None:
    asked = request("7", "lora")
    assert asked.config.lora.load_8bit and asked.config.data.max_length == 512


def test_a_p40_is_refused_for_bf16_and_flash_attention_with_what_it_can_do() -> None:
    """Document 001: fine-tuning failed on a Tesla P40."""
    p40 = Infra("slurm", "mine")
    bf16 = plan("7", "qlora", "train.bf16=true", gpus="P40:1", infra=(p40,))
    assert bf16.fits is False
    assert "compute capability 6.1) has no bfloat16" in bf16.problems[0].what
    assert "float32" in bf16.problems[0].fix
    flash = plan("7", "qlora", "train.attn_implementation=varlen", gpus="P40:1", infra=(p40,))
    assert "flash attention needs compute capability 8.0" in flash.problems[0].what
    assert "attn_implementation=auto" in flash.problems[0].fix
    left_to_the_card = plan("7", "qlora", gpus="P40:1", infra=(p40,))
    assert left_to_the_card.fits and any("float32, not bfloat16" in risk for risk in left_to_the_card.risks)
    assert any("CUDA 12.6" in risk for risk in left_to_the_card.risks)
    assert plan("7", "full", gpus="P40:1", infra=(p40,)).fits is False


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed"])
def test_every_method_and_strategy_has_its_terms_and_the_box_would_compute_the_same(
    method: Method, strategy: str
) -> None:
    made = plan("7", method, f"parallel.strategy={strategy}", gpus="A100-80GB:8")
    assert made.fit is not None
    asked = request("7", method, f"parallel.strategy={strategy}", gpus="A100-80GB:8")
    on_the_box = Case(asked.config, CARDS["A100-80GB"].of(8), LLAMA_7B, 8).estimate()
    assert made.fit.terms == on_the_box.terms and made.fit.moment == on_the_box.moment
    names = {term.name for term in made.fit.terms}
    assert {"optimiser", "activations", "CUDA context", "fragmentation", "communication"} <= names


def test_logits_and_activations_without_checkpointing_are_terms_of_their_own() -> None:
    kept = plan("7", "full", "train.gradient_checkpointing=false", gpus="A100-80GB:8").fit
    recomputed = plan("7", "full", gpus="A100-80GB:8").fit
    assert kept and recomputed
    activations = [next(t.bytes for t in fit.terms if t.name == "activations") for fit in (kept, recomputed)]
    assert activations[0] > 5 * activations[1]
    small = plan("tiny", "full", gpus="A100-80GB:1").fit
    assert small and any(term.name == "logits" for term in small.terms)


# --- hours


def test_operations_per_token_are_those_of_the_literature() -> None:
    """Six a weight, and attention a few per cent at 2,048 tokens (Chowdhery et al. 2022, appendix B)."""
    assert 1.0 < flops_per_token(LLAMA_13B, "full", 2048) / (6 * LLAMA_13B.parameters) < 1.05
    assert flops_per_token(LLAMA_7B, "lora", 2048) / flops_per_token(LLAMA_7B, "full", 2048) == pytest.approx(
        4 / 6
    )


def hours(size: str, method: Method, gpus: str, tokens: int, *settings: str) -> float:
    settings = ("train.num_train_epochs=1", *settings)
    infra = (Infra("slurm", "mine"),)  # has as many cards as it has; AWS sells some by eight alone
    return plan(size, method, *settings, gpus=gpus, corpus_tokens=tokens, infra=infra).hours


def test_hours_are_within_a_factor_of_two_of_those_that_the_documents_report() -> None:
    # 002 and 003: 13B in one day on eight A100. FastChat cut 70,000 conversations of 2,960 tokens into pieces of at
    # most 2,048, 1.95 of each, and padded each: three times 279 million tokens went through the model.
    padded = 3 * 70_000 * (2_960 / 2_048 + 0.5) * 2_048
    assert 0.5 < hours("13", "full", "A100-80GB:8", int(padded)) / 24 < 2
    # 004: one pass of 16 hours on one A100, base in 8 bit, rows of 1,024 tokens, 90,000 conversations.
    assert 0.5 < hours("7", "lora", "A100:1", 90_000 * 1_024, "data.max_length=1024") / 16 < 2
    # 001: two passes over 910 padded conversations in 17 minutes on two A100-80GB, with loading and saving.
    assert 0.5 < (hours("7", "full", "A100-80GB:2", 2 * 910 * 2_048) * 60 + 5) / 17 < 2


# --- dollars


def dollars(made: Plan) -> tuple[float, float]:
    assert made.usd_spot is not None and made.usd_on_demand is not None
    return made.usd_spot, made.usd_on_demand


def test_13b_costs_half_of_the_documents_300_and_1000_dollars_at_the_prices_of_2023() -> None:
    """Documents 002 and 003: about $300 on spot, $1,000 on demand, one day; at the prices of early 2023 ($12.64 and
    $40.24 an hour) both are 24 hours. This program is expected to need less by two factors: rows are packed, not padded
    (1.35), and 42 % of the peak is reckoned with, where 24 hours are 31 % of it (1.33). Together 1.8, so the plan has
    to lie between a half and once the documents' figures; on spot a sixth is added for preemptions."""
    spot, on_demand = dollars(plan("13", "full", spot=True, infra=(Infra("gcp"),), prices="2023"))
    assert 0.5 < on_demand / 1000 < 1
    assert 0.5 < spot / 300 < 1
    assert spot / on_demand == pytest.approx(300 / 1000, rel=0.35)


def test_13b_at_the_catalogs_prices_is_within_a_factor_of_two_of_that() -> None:
    """A100s have become cheaper: AWS asks two thirds of 2023's price on demand."""
    then = dollars(plan("13", "full", spot=True, infra=(Infra("gcp"),), prices="2023"))
    now = dollars(plan("13", "full", spot=True))
    for before, after in zip(then, now, strict=True):
        assert 0.5 < after / before < 2


def test_7b_costs_half_of_13b_as_in_the_documents() -> None:
    """$140 and $500 against $300 and $1,000."""
    larger, smaller = plan("13", spot=True), plan("7", spot=True, gpus="A100-80GB:8")
    for one, other in zip(dollars(smaller), dollars(larger), strict=True):
        assert 0.4 < one / other < 0.6


def test_spot_places_over_two_clouds_are_in_the_order_of_expected_cost_with_reasons() -> None:
    made = plan("13", spot=True)
    costs = [place.usd for place in made.candidates]
    assert {place.cloud for place in made.candidates} == {"aws", "gcp"}
    assert {place.market for place in made.candidates} == {"spot"}
    assert costs == sorted(costs) and len(costs) == 14
    assert made.candidates[0].zone == "euc1-az2" and made.candidates[0].reason.startswith("the cheapest")
    assert all("times the cheapest" in place.reason for place in made.candidates[1:])
    assert all(place.price_source for place in made.candidates)


def test_the_expected_cost_is_price_times_hours_plus_egress() -> None:
    made = plan("13", spot=True)
    first, bill = made.candidates[0], made.bill
    assert bill and first.usd and first.usd_per_hour and first.hours
    assert first.usd == pytest.approx(first.usd_per_hour * first.hours + bill.egress_usd)
    assert bill.egress_usd == pytest.approx(
        first.preemptions * 12 * LLAMA_13B.parameters / 1e9 * EGRESS_USD_PER_GB
    )
    assert bill.hours == pytest.approx(first.hours)


def test_preemptions_follow_from_the_lives_of_machines() -> None:
    made = plan("13", spot=True)
    life_h = expected_life_s("aws", "eu-central-1", 8) / 3600
    assert made.candidates[0].preemptions == pytest.approx(made.candidates[0].hours / life_h, rel=0.05)  # type: ignore[operator]
    known = plan("13", "full", "checkpoint.mtbf_s=86400", spot=True)
    assert known.candidates[0].life_s == 86400 and known.candidates[0].preemptions < 1
    assert known.usd_spot and made.usd_spot and known.usd_spot < made.usd_spot


@given(
    life_s=st.floats(60, 1e6),
    rate=st.floats(0.01, 100),
    longer=st.floats(1.0, 10),
    dearer=st.floats(1.0, 10),
    state=st.floats(0, 2e11),
    nodes=st.integers(1, 16),
)
def test_longer_lives_never_cost_more_and_dearer_machines_never_less(
    life_s: float, rate: float, longer: float, dearer: float, state: float, nodes: int
) -> None:
    def cost(life: float, price: float, market: MarketName = "spot") -> float:
        offer = Offer("aws", "r", "z", "m", "X:8", price, price, Source("a test", "today"))
        work = Workload(1e19, state, 1e10, nodes, life, 1.0, 300.0)
        bill = expect(offer, market, work, Machine(1e15, 8, 300.0), 0.02)
        assert LEAST_USEFUL <= bill.useful <= 1 and bill.usd is not None and math.isfinite(bill.usd)
        return bill.usd

    base = cost(life_s, rate)
    assert cost(life_s * longer, rate) <= base * (1 + 1e-9)
    assert cost(life_s, rate * dearer) >= base * (1 - 1e-9)
    assert (
        cost(life_s, rate, "on-demand") <= base
    )  # at the same price nobody would take a machine that is taken away


def test_lives_are_counted_from_the_public_traces() -> None:
    assert expected_life_s("aws", "us-east-1", 1) / 3600 == pytest.approx(1.47, abs=0.01)
    assert expected_life_s("aws", "us-west-2", 1) / 3600 == pytest.approx(5.39, abs=0.01)
    assert expected_life_s("gcp", "us-central1", 1) == expected_life_s("azure", "eastus", 1)
    assert expected_life_s("aws", "us-west-2", 8) / 3600 == pytest.approx(0.90, abs=0.01)


def test_the_interval_between_saves_is_youngs_and_not_shorter_than_two_uploads() -> None:
    made = plan("13", spot=True)
    stall = 12 * LLAMA_13B.parameters / 8 / 10e9
    assert made.checkpoint_every_s == pytest.approx(math.sqrt(2 * stall * made.mtbf_s))
    adapters = plan("7", "qlora", spot=True)
    assert adapters.checkpoint_every_s == pytest.approx(math.sqrt(2 * 0.2 * adapters.mtbf_s))


def test_with_a_deadline_on_demand_machines_stand_in_the_list_too() -> None:
    assert {place.market for place in plan("13", spot=True, deadline_s=48 * 3600.0).candidates} == {
        "spot",
        "on-demand",
    }


def test_a_deadline_that_no_place_can_keep_is_a_problem() -> None:
    made = plan("13", spot=True, deadline_s=5 * 3600.0)
    quickest = min(place.hours or 0 for place in made.candidates)
    said = f"it takes {quickest:.1f} h at the quickest place, longer than --deadline 5h"
    assert [problem.what for problem in made.problems] == [said]


def test_a_limit_below_the_cheapest_place_is_a_problem() -> None:
    made = plan("13", spot=True, max_cost_usd=100.0)
    assert "more than --max-cost 100" in made.problems[0].what
    assert not plan("13", spot=True, max_cost_usd=300.0).problems


def test_places_of_ones_own_have_no_price_and_come_first_in_the_given_order() -> None:
    infra = (Infra("slurm", "us-west"), Infra("slurm", "us-east"), Infra("aws"))
    made = plan("tiny", infra=infra)
    assert [place.region for place in made.candidates[:2]] == ["us-west", "us-east"]
    assert made.candidates[0].usd is None and made.candidates[2].usd is not None
    assert made.fits is None and not made.problems


def test_spot_where_a_cloud_has_none_is_refused() -> None:
    with pytest.raises(UsageError, match="slurm has no spot machines"):
        plan("tiny", spot=True, infra=(Infra("slurm", "x"),))


def test_a_card_of_ones_own_cluster_may_have_any_name_and_is_not_judged() -> None:
    made = plan("7", gpus="gtx-of-the-basement:4", infra=(Infra("slurm", "x"),))
    assert made.fits is None and not made.problems
    assert any("is not known here" in risk for risk in made.risks)


def test_a_card_that_nobody_sells_is_judged_and_has_no_place() -> None:
    made = plan("13", gpus="RTX4090:8")
    assert made.candidates == () and made.bill is None
    assert ["does not fit" in problem.what for problem in made.problems] == [True, False]
    assert made.problems[1].what == "no known place in aws, gcp has RTX4090:8"


def test_what_is_proposed_instead_fits_and_costs_less() -> None:
    asked = request("13", spot=True)
    catalog = Catalog(PRICES / "v8")
    made = make_plan(asked, catalog)
    for other in cheaper_machines(asked, made, catalog):
        option, gpus = other.options.split()
        again = plan("13", spot=True, gpus=gpus)
        assert option == "--gpus" and again.fits and again.candidates[0].usd == other.usd
        assert other.usd < (made.candidates[0].usd or 0)
    on_demand = request("13")
    proposed = cheaper_machines(on_demand, make_plan(on_demand, catalog), catalog)
    assert "--spot" in [other.options for other in proposed]


def test_where_it_does_not_fit_machines_that_it_fits_are_proposed() -> None:
    asked = request("13", gpus="A100-80GB:2")
    catalog = Catalog(PRICES / "v8")
    proposed = [other.options for other in cheaper_machines(asked, make_plan(asked, catalog), catalog)]
    assert "--gpus A100-80GB:8" in proposed


def test_a_cloud_that_sells_by_eight_is_paid_and_used_by_eight() -> None:
    four, eight = plan("7", gpus="A100-80GB:4"), plan("7", gpus="A100-80GB:8")
    assert {place.accelerator for place in four.candidates} == {"A100-80GB:8"}
    assert four.hours == eight.hours
    assert any("sells A100-80GB by 8" in risk for risk in four.risks)


def test_more_machines_share_the_work_and_the_state() -> None:
    one, two = plan("13"), plan("13", num_nodes=2)
    assert two.hours == pytest.approx(one.hours / 2)
    assert one.fit and two.fit and two.fit.bytes < one.fit.bytes
    assert two.candidates[0].usd == pytest.approx(one.candidates[0].usd, rel=0.05)


def test_a_model_known_by_its_name_alone_says_what_was_assumed() -> None:
    asked = request("7")
    model = asked.config.model.model_copy(update={"base": "acme/bear-8b"})
    made = make_plan(
        replace(asked, config=asked.config.model_copy(update={"model": model})), Catalog(PRICES / "v8")
    )
    assert made.parameters == 8_030_261_248
    assert any("acme/bear-8b is reckoned as a LLaMA of 8B" in risk for risk in made.risks)
