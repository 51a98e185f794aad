"""Every accepted request ends, whatever comes and goes, and memory never exceeds its budget."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.engine import Sampling
from serving.engines.cache import BLOCK, Cache, KeyValues
from serving.engines.request import Request
from serving.engines.scheduler import Limits, Part, Scheduler


def asked(prompt: list[int], most: int = 5, adapter: str | None = None) -> Request:
    """A request without an answer and a writer: scheduling needs neither."""
    return Request(prompt, Sampling(), most, KeyValues(), None, None, adapter)  # type: ignore[arg-type]


def compute(scheduler: Scheduler, parts: list[Part]) -> None:
    """What a step does, without a model: some keys, some values, and the token 9."""
    for part in parts:
        kv, count = part.request.kv, len(part.tokens)
        assert part.tokens and kv.length + count <= kv.capacity
        ids = torch.tensor(part.tokens, dtype=torch.float32)
        kv.write(0, kv.length, ids.reshape(1, 1, -1, 1), -ids.reshape(1, 1, -1, 1))
        kv.length += count
        if part.chooses:
            stored = kv.write(0, kv.length, torch.empty(1, 1, 0, 1), torch.empty(1, 1, 0, 1))[0]
            assert stored.flatten().tolist() == part.request.tokens  # whoever's keys they were
            part.request.tokens.append(9)
            if part.request.made >= part.request.most:
                scheduler.remove(part.request)


def held(scheduler: Scheduler, cache: Cache) -> int:
    return sum(kv.capacity for kv in [r.kv for r in scheduler.running] + [kept.kv for kept in cache._kept])


@given(st.integers(0, 10**6), st.integers(4, 12), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_every_request_ends_and_memory_stays_within_its_budget(seed: int, blocks: int, running: int) -> None:
    draw = random.Random(seed)
    budget = blocks * BLOCK
    cache = Cache(budget)
    scheduler = Scheduler(
        Limits(running=running, kv_tokens=budget, step_tokens=draw.choice([16, 64, 300])), cache
    )
    common = [draw.randrange(3) for _ in range(100)]
    requests = []
    for _ in range(25):
        prompt = common[: draw.randrange(100)] + [draw.randrange(3) for _ in range(draw.randrange(1, 80))]
        requests.append(asked(prompt, draw.randint(1, budget - len(prompt)), draw.choice([None, "other"])))
    coming = list(requests)
    for _ in range(100_000):
        while coming and draw.random() < 0.3:
            scheduler.add(coming.pop())
        if draw.random() < 0.02:
            draw.choice(requests).cancelled = True
        compute(scheduler, scheduler.step())
        assert cache.used == held(scheduler, cache) <= budget and len(scheduler.running) <= running
        if not coming and not scheduler.everything():
            break
    assert not scheduler.everything()
    assert all(request.cancelled or request.made == request.most for request in requests)


def test_a_long_prompt_does_not_hold_up_answers_nor_shorter_prompts() -> None:
    scheduler = Scheduler(Limits(kv_tokens=8192, step_tokens=64), Cache(8192))
    answering, long, short = asked([1]), asked([2] * 4000, 1), asked([3] * 30, 1)
    scheduler.add(answering)
    compute(scheduler, scheduler.step())
    scheduler.add(long)
    compute(scheduler, scheduler.step())
    scheduler.add(short)
    parts = {id(part.request): part for part in scheduler.step()}
    assert len(parts[id(answering)].tokens) == 1
    assert parts[id(short)].chooses and 16 <= len(parts[id(long)].tokens) <= 64 - 30


def test_steps_that_last_too_long_take_fewer_prompt_tokens() -> None:
    scheduler = Scheduler(Limits(kv_tokens=8192), Cache(8192))
    scheduler.add(asked([2] * 4000, 1))
    for _ in range(6):
        parts = scheduler.step()
        compute(scheduler, parts)
        scheduler.took(parts, seconds=0.01 * len(parts[0].tokens))
    assert 16 <= len(scheduler.step()[0].tokens) <= 30  # at 10 ms a token, 0.2 s are twenty tokens


def test_a_continued_conversation_takes_over_what_its_last_turn_left() -> None:
    cache = Cache(1024)
    scheduler = Scheduler(Limits(kv_tokens=1024), cache)
    first = asked([1] * 60, 4)
    scheduler.add(first)
    while scheduler.everything():
        compute(scheduler, scheduler.step())
    kept = first.kv
    scheduler.add(asked([*first.tokens[:-1], 5, 6], 1))
    (part,) = scheduler.step()
    assert part.request.kv is kept and part.tokens == [5, 6] and part.request.cached_tokens == 63


def test_another_adapter_never_gets_a_models_keys_and_values() -> None:
    scheduler = Scheduler(Limits(kv_tokens=1024), Cache(1024))
    scheduler.add(asked([1] * 60, 4))
    while scheduler.everything():
        compute(scheduler, scheduler.step())
    scheduler.add(asked([1] * 60, 1, "other"))
    (part,) = scheduler.step()
    assert len(part.tokens) == 60


@pytest.mark.parametrize("tokens", [63, 64, 65])
def test_room_is_given_in_blocks_and_refused_beyond_the_budget(tokens: int) -> None:
    cache = Cache(64)
    assert (cache.fresh(tokens) is not None) == (tokens <= 64)
    assert cache.used == (64 if tokens <= 64 else 0)
