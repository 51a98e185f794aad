"""Tokens are drawn as transformers' own filters would have it, and nobody's draw depends on anybody else's."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from serving.engine import Sampling
from serving.engines import sampling as sampling_module
from serving.engines.request import Request
from serving.engines.sampling import choose


def request(sampling: Sampling, prompt: list[int] | None = None, made: list[int] | None = None) -> Request:
    """Without an answer and a writer: sampling needs neither."""
    asked = Request(prompt or [1], sampling, 10, None, None, None)  # type: ignore[arg-type]
    asked.tokens += made or []
    asked.counts = dict(Counter(made or []))
    return asked


def scores(seed: int, vocabulary: int) -> torch.Tensor:
    return torch.randn(vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


def allowed_by_transformers(row: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The odds of each token."""
    filters = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        filters.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        filters.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        filters.append(MinPLogitsWarper(sampling.min_p))
    return torch.softmax(filters(torch.tensor([[0]]), row[None].clone()), dim=-1)[0]


FILTERED = st.builds(
    Sampling,
    temperature=st.sampled_from([0.3, 0.7, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 5, 50, 400]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.1]),
    min_p=st.sampled_from([0.0, 0.02, 0.3]),
    seed=st.integers(0, 50),
)


@given(FILTERED, st.integers(0, 30), st.sampled_from([7, 300, 1000]))
@settings(max_examples=200, deadline=None)
def test_only_tokens_that_transformers_filters_leave_are_drawn(
    sampling: Sampling, seed: int, vocabulary: int
) -> None:
    row = scores(seed, vocabulary)
    odds = allowed_by_transformers(row, sampling)
    asked = request(sampling)
    for _ in range(5):
        (chosen,) = choose(row[None].clone(), [asked])
        assert odds[chosen.token] > 0


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(seed=0),
        Sampling(seed=1, temperature=0.7, top_p=0.8),
        Sampling(seed=2, temperature=1.5, top_k=6),
        Sampling(seed=3, temperature=2.0, top_k=9, top_p=0.9, min_p=0.05),
    ],
)
def test_tokens_are_drawn_as_often_as_their_odds_say(sampling: Sampling) -> None:
    row = scores(5, 20)
    odds = allowed_by_transformers(row, sampling)
    asked, times = request(sampling), 4000
    counts = Counter(choose(row[None].clone(), [asked])[0].token for _ in range(times))
    for token, chance in enumerate(odds.tolist()):
        spread = math.sqrt(times * chance * (1 - chance))
        assert abs(counts[token] - times * chance) <= 5 * spread + 1e-9


@given(FILTERED, st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_a_seed_draws_the_same_tokens_alone_and_in_any_company(sampling: Sampling, seed: int) -> None:
    rows = torch.stack([scores(seed + number, 500) for number in range(4)])
    alone = request(sampling)
    expected = [choose(rows[1:2].clone(), [alone])[0].token for _ in range(4)]
    company = [
        request(Sampling()),
        request(sampling),
        request(Sampling(temperature=0)),
        request(Sampling(top_k=2)),
    ]
    assert [choose(rows.clone(), company)[1].token for _ in range(4)] == expected


def test_where_a_filter_reaches_beyond_the_likeliest_all_tokens_are_looked_at() -> None:
    flat = torch.zeros(4 * sampling_module._LIKELIEST)
    asked = request(Sampling(top_p=0.9, seed=0))
    drawn = {choose(flat[None].clone(), [asked])[0].token for _ in range(400)}
    assert len(drawn) > sampling_module._LIKELIEST


def test_penalties_and_bias_are_those_of_transformers_and_openai() -> None:
    row = scores(3, 30)
    prompt, made = [4, 5, 5], [7, 7, 9]
    repeated = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt + made]), row[None].clone())[0]
    asked = request(Sampling(temperature=0, repetition_penalty=1.7), prompt, made)
    changed = row[None].clone()
    assert choose(changed, [asked])[0].token == int(repeated.argmax()) and torch.equal(changed[0], repeated)

    changed = row[None].clone()
    choose(
        changed,
        [request(Sampling(temperature=0, presence_penalty=0.5, frequency_penalty=0.25), prompt, made)],
    )
    expected = row.clone()
    expected[7] -= 0.5 + 2 * 0.25
    expected[9] -= 0.5 + 0.25
    assert torch.allclose(changed[0], expected)

    worst = int(row.argmin())
    (chosen,) = choose(row[None].clone(), [request(Sampling(temperature=0, logit_bias={worst: 100.0}))])
    assert chosen.token == worst


def test_greedy_takes_the_lowest_id_of_equals() -> None:
    row = torch.tensor([[0.0, 2.0, 2.0, 1.0]])
    assert choose(row, [request(Sampling(temperature=0))])[0].token == 1


def test_logprobs_are_of_the_models_own_distribution_whatever_was_asked_besides() -> None:
    row = scores(8, 50)
    natural = torch.log_softmax(row, dim=-1)
    asked = request(Sampling(temperature=0.3, top_k=3, logit_bias={4: -50.0}, logprobs=5, seed=1))
    (chosen,) = choose(row[None].clone(), [asked])
    assert chosen.logprob == pytest.approx(float(natural[chosen.token]))
    best = natural.topk(5)
    assert [token for token, _ in chosen.top] == best.indices.tolist()
    assert [logprob for _, logprob in chosen.top] == pytest.approx(best.values.tolist())


def test_logits_that_are_no_numbers_are_a_fault() -> None:
    with pytest.raises(FloatingPointError, match="not numbers"):
        choose(torch.full((1, 4), float("nan")), [request(Sampling(temperature=0))])
