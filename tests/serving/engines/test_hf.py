"""The hf engine as a worker sees it: requests that come, are refused, are given up, and share what they know."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from serving.engine import Busy, Delta, Refused, Sampling
from serving.engines.hf import HfEngine
from serving.engines.scheduler import Limits
from tests.serving.engines.tiny import Made, collect, load_reference, prompts, with_engine, write_llama

ENDLESS = Sampling(temperature=0.0, max_tokens=400, ignore_eos=True)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("llama"))


def started(engine: HfEngine, prompt: list[int], sampling: Sampling) -> AsyncGenerator[Delta]:
    return cast("AsyncGenerator[Delta]", engine.generate(prompt, sampling))


async def until(engine: HfEngine, running: int, waiting: int) -> None:
    while engine.load() != (running, waiting):
        await asyncio.sleep(0.001)  # only lets the model's thread have its turn


def test_a_request_that_is_given_up_frees_its_place_while_others_go_on(llama: Path) -> None:
    async def work(engine: HfEngine) -> Made:
        other = asyncio.create_task(collect(engine, [5, 6, 7], ENDLESS))
        given_up = started(engine, [8, 9], ENDLESS)
        await anext(given_up)
        assert engine.load()[0] >= 1
        await given_up.aclose()
        cancelled = asyncio.create_task(collect(engine, [8, 9], ENDLESS))
        await asyncio.sleep(0)
        cancelled.cancel()
        made = await other
        await until(engine, 0, 0)
        return made

    made = with_engine(llama, work)
    assert made.tokens == 400 and made.finish == "length" and made.deltas > 1


def test_a_full_queue_is_busy_and_says_when_to_come_again(llama: Path) -> None:
    async def work(engine: HfEngine) -> None:
        streams = [started(engine, [5], ENDLESS) for _ in range(3)]
        tasks = [asyncio.create_task(anext(stream)) for stream in streams]
        await until(engine, 1, 2)
        with pytest.raises(Busy) as busy:
            await collect(engine, [6], ENDLESS)
        assert 1 <= busy.value.retry_after_s <= 60
        for stream, task in zip(streams, tasks, strict=True):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await stream.aclose()
        await until(engine, 0, 0)
        assert (await collect(engine, [6], Sampling(max_tokens=2, ignore_eos=True))).tokens == 2

    with_engine(llama, work, limits=Limits(running=1, waiting=2, kv_tokens=4096))


@pytest.mark.parametrize(
    ("prompt", "sampling", "adapter", "said"),
    [
        ([], Sampling(), None, "no tokens"),
        ([5, 10**6], Sampling(), None, "token ids beyond"),
        ([5] * 600, Sampling(), None, "context of 512"),
        ([5] * 500, Sampling(max_tokens=13), None, "context of 512"),
        ([5], Sampling(max_tokens=0), None, "at least one token"),
        ([5], Sampling(logit_bias={-1: 1.0}), None, "logit_bias"),
        ([5], Sampling(), "nobody", "no adapter 'nobody'"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    llama: Path, prompt: list[int], sampling: Sampling, adapter: str | None, said: str
) -> None:
    async def work(engine: HfEngine) -> None:
        with pytest.raises(Refused, match=said):
            await collect(engine, prompt, sampling, adapter)
        assert engine.load() == (0, 0) and engine.healthy()

    with_engine(llama, work)


def test_the_next_turn_of_a_conversation_computes_only_what_is_new(llama: Path) -> None:
    async def work(engine: HfEngine) -> list[Made]:
        greedy = Sampling(temperature=0.0, max_tokens=20, ignore_eos=True)
        first = await collect(engine, list(range(10, 110)), greedy)
        fresh = await collect(engine, list(range(200, 260)), greedy)
        again = await collect(engine, list(range(10, 110)), greedy)
        return [first, fresh, again]

    first, fresh, again = with_engine(llama, work)
    assert (first.cached, fresh.cached, again.cached) == (0, 0, 99)
    assert again.text == first.text


def test_a_seed_makes_the_same_answer_alone_and_in_a_batch(llama: Path) -> None:
    sampling = Sampling(temperature=1.0, top_p=0.95, max_tokens=30, seed=7, logprobs=2)

    async def work(engine: HfEngine) -> tuple[Made, Made, Made]:
        alone = await collect(engine, [5, 6, 7], sampling)
        others = [collect(engine, prompt, Sampling(max_tokens=30)) for prompt in prompts(20, 300)]
        company = (await asyncio.gather(collect(engine, [5, 6, 7], sampling), *others))[0]
        another = await collect(
            engine, [5, 6, 7], Sampling(temperature=1.0, max_tokens=30, seed=8, logprobs=0)
        )
        return alone, company, another

    alone, company, another = with_engine(llama, work)
    assert alone.said == company.said != another.said


def test_the_end_token_ends_an_answer_unless_it_is_ignored(llama: Path) -> None:
    end = 2

    async def work(engine: HfEngine) -> list[Made]:
        biased = {end: 100.0}
        return [
            await collect(engine, [5], Sampling(temperature=0, max_tokens=5, logit_bias=biased)),
            await collect(
                engine, [5], Sampling(temperature=0, max_tokens=5, logit_bias=biased, ignore_eos=True)
            ),
            await collect(
                engine,
                [5],
                Sampling(temperature=0, max_tokens=5, logit_bias={70: 100.0}, stop_token_ids=(70,)),
            ),
        ]

    ended, ignored, stopped = with_engine(llama, work)
    assert (ended.text, ended.tokens, ended.finish) == ("", 1, "stop")
    assert (ignored.text, ignored.tokens, ignored.finish) == ("", 5, "length")
    assert (stopped.text, stopped.tokens, stopped.finish) == ("", 1, "stop")


def test_embeddings_are_means_of_the_last_hidden_states_of_length_one(llama: Path) -> None:
    asked = prompts(6, 300)
    model, _ = load_reference(llama)

    async def work(engine: HfEngine) -> list[list[float]]:
        await collect(
            engine, asked[1], Sampling(max_tokens=2, ignore_eos=True)
        )  # what it leaves must not be reused
        vectors, _ = await asyncio.gather(engine.embed(asked), collect(engine, [5], ENDLESS))
        return vectors

    vectors = with_engine(llama, work, limits=Limits(kv_tokens=4096, step_tokens=32))
    for prompt, vector in zip(asked, vectors, strict=True):
        with torch.no_grad():
            mean = model.model(torch.tensor([prompt])).last_hidden_state[0].mean(dim=0)
        assert torch.allclose(torch.tensor(vector), mean / mean.norm(), atol=1e-4)
        assert math.isclose(sum(value * value for value in vector), 1.0, rel_tol=1e-9)


def test_a_slow_reader_gets_everything_in_few_deltas(llama: Path) -> None:
    async def work(engine: HfEngine) -> tuple[int, int]:
        stream = started(engine, [5, 6], ENDLESS)
        first = await anext(stream)
        await collect(engine, [5, 6], ENDLESS)
        rest = [delta async for delta in stream]
        return first.tokens + sum(delta.tokens for delta in rest), len(rest)

    tokens, deltas = with_engine(llama, work)
    assert tokens == 400 and deltas < 50


def test_a_fault_of_the_model_reaches_every_request_and_the_engine_says_so(llama: Path) -> None:
    async def work(engine: HfEngine) -> None:
        weights: Any = engine._steps._network.model.get_output_embeddings().weight
        waiting = [asyncio.create_task(collect(engine, [5], ENDLESS)) for _ in range(3)]
        await until(engine, 3, 0)
        with torch.no_grad():
            weights.fill_(float("nan"))
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(outcome, RuntimeError) and "not numbers" in str(outcome)
        assert not engine.healthy()
        with pytest.raises(RuntimeError, match="stopped"):
            await collect(engine, [5], ENDLESS)

    with_engine(llama, work)


def test_closing_an_engine_ends_its_requests_with_an_error(llama: Path) -> None:
    async def work(engine: HfEngine) -> None:
        running = asyncio.create_task(collect(engine, [5], ENDLESS))
        await until(engine, 1, 0)
        await engine.close()
        with pytest.raises(RuntimeError, match="has stopped"):
            await running
        assert not engine.healthy()

    with_engine(llama, work)


SCHEMA = {
    "type": "object",
    "properties": {
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "name": {"enum": ["fox", "dog"]},
        "legs": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["age", "name", "legs"],
    "additionalProperties": False,
}


def test_an_answer_keeps_to_its_json_schema_beside_answers_that_need_not(llama: Path) -> None:
    async def work(engine: HfEngine) -> list[Made]:
        assert "json_schema" in engine.card.abilities
        bounded = {"x-guidance": {"whitespace_flexible": False}, **SCHEMA}
        asked = [
            Sampling(seed=seed, max_tokens=200, json_schema=bounded, temperature=0.5 * seed)
            for seed in range(4)
        ]
        free = collect(engine, [5], Sampling(max_tokens=20, ignore_eos=True))
        made = await asyncio.gather(free, *(collect(engine, [5, 6], sampling) for sampling in asked))
        with pytest.raises(Refused, match="response_format"):
            await collect(engine, [5], Sampling(json_schema={"type": "no such type"}))
        return made[1:]

    for made in with_engine(llama, work):
        value = json.loads(made.text)
        assert made.finish == "stop" and sorted(value) == ["age", "legs", "name"]
        assert 0 <= value["age"] <= 99 and value["name"] in ("fox", "dog") and len(value["legs"]) <= 2
