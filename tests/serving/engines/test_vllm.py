"""The vLLM engine against a hand-written stand-in of AsyncLLM, by its source of 2026. vLLM itself was not run here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serving.engine import Busy, ModelCard, Refused, Sampling
from serving.engines.loading import ModelOptions
from serving.engines.source import Source
from serving.engines.vllm import VllmEngine, engine_arguments
from tests.serving.engines.tiny import collect, load_reference, write_llama
from trainer.errors import ConfigError, NotReady

END = 2


@dataclass
class Fields:
    """vLLM's SamplingParams, StructuredOutputsParams and LoRARequest: what they were given."""

    given: dict[str, Any]

    @classmethod
    def named(cls, **given: Any) -> Fields:
        return cls(given)

    @classmethod
    def lora(cls, name: str, number: int, folder: str) -> Fields:
        return cls({"name": name, "number": number, "folder": folder})


VLLM = SimpleNamespace(
    SamplingParams=Fields.named,
    sampling_params=SimpleNamespace(
        StructuredOutputsParams=Fields.named, RequestOutputKind=SimpleNamespace(DELTA="delta")
    ),
    lora=SimpleNamespace(request=SimpleNamespace(LoRARequest=Fields.lora)),
)


@dataclass
class StandIn:
    """AsyncLLM as far as the engine knows it: says these tokens, some at a time, then a reason."""

    says: list[list[int]]
    reason: str = "length"
    errored: bool = False
    asked: list[tuple[list[int], dict[str, Any], Any]] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    forever: bool = False

    async def generate(
        self, prompt: dict[str, Any], params: Fields, request_id: str, *, lora_request: Any = None
    ) -> AsyncIterator[Any]:
        self.asked.append((prompt["prompt_token_ids"], params.given, lora_request))
        for place, ids in enumerate(self.says):
            last = place == len(self.says) - 1 and not self.forever
            rank = SimpleNamespace
            known = [{token: rank(logprob=-2.0, rank=5), 70: rank(logprob=-0.5, rank=1)} for token in ids]
            made = SimpleNamespace(
                token_ids=ids,
                logprobs=known if params.given["logprobs"] is not None else None,
                finish_reason=self.reason if last else None,
            )
            yield SimpleNamespace(outputs=[made], num_cached_tokens=3)
            await asyncio.sleep(0)
        while self.forever:
            await asyncio.sleep(0)

    async def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def shutdown(self) -> None:
        self.errored = True


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., VllmEngine]:
    tokeniser = load_reference(write_llama(tmp_path_factory.mktemp("llama")))[1]

    def engine(llm: StandIn, most: int = 4) -> VllmEngine:
        card = ModelCard("tiny", 100, ("other",), frozenset({"logprobs"}))
        return VllmEngine(llm, VLLM, tokeniser, card, {"other": "/a/folder"}, frozenset({END}), most)

    return engine


def ids(engine: VllmEngine, text: str) -> list[int]:
    return engine.encode(text)[1:]


def test_tokens_become_text_and_are_counted_once(make: Callable[..., VllmEngine]) -> None:
    llm = StandIn([])
    engine = make(llm)
    words = ids(engine, "quick brown fox")
    llm.says = [words[:2], words[2:], [END]]
    llm.reason = "stop"
    made = asyncio.run(collect(engine, [5], Sampling(logprobs=1)))
    assert made.text == "quick brown fox" and made.finish == "stop" and made.cached == 3
    assert made.tokens == len(words) + 1 == len(made.said)
    assert engine.load() == (0, 0) and llm.aborted == []


def test_a_stop_string_ends_the_answer_and_the_request_in_vllm(make: Callable[..., VllmEngine]) -> None:
    llm = StandIn([], forever=True)
    engine = make(llm)
    llm.says = [[token] for token in ids(engine, "quick brown fox")]
    made = asyncio.run(collect(engine, [5], Sampling(stop=("k br",))))
    assert made.text == "quic" and made.finish == "stop"
    assert len(llm.aborted) == 1 and engine.load() == (0, 0)


def test_every_parameter_reaches_vllm_under_its_name_there(make: Callable[..., VllmEngine]) -> None:
    llm = StandIn([[70]])
    engine = make(llm)
    asked = Sampling(
        max_tokens=7,
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        min_p=0.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        repetition_penalty=1.1,
        seed=4,
        stop_token_ids=(9,),
        logit_bias={8: 1.0},
        logprobs=2,
        json_schema={"type": "array"},
    )
    asyncio.run(collect(engine, [5, 6], asked, "other"))
    ((prompt, given, lora),) = llm.asked
    structured = given.pop("structured_outputs")
    assert prompt == [5, 6] and structured.given == {"json": {"type": "array"}}
    assert lora.given == {"name": "other", "number": 1, "folder": "/a/folder"}
    assert given == {
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "min_p": 0.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "repetition_penalty": 1.1,
        "seed": 4,
        "stop_token_ids": [9, END],
        "logit_bias": {8: 1.0},
        "ignore_eos": False,
        "logprobs": 2,
        "detokenize": False,
        "output_kind": "delta",
    }


@pytest.mark.parametrize(
    ("prompt", "sampling", "adapter", "said"),
    [
        ([], Sampling(), None, "no tokens"),
        ([10**6], Sampling(), None, "token ids"),
        ([5] * 99, Sampling(max_tokens=2), None, "context of 100"),
        ([5], Sampling(max_tokens=0), None, "at least one"),
        ([5], Sampling(), "nobody", "no adapter"),
    ],
)
def test_what_cannot_be_done_is_refused_before_vllm_hears_of_it(
    make: Callable[..., VllmEngine], prompt: list[int], sampling: Sampling, adapter: str | None, said: str
) -> None:
    llm = StandIn([[70]])
    with pytest.raises(Refused, match=said):
        asyncio.run(collect(make(llm), prompt, sampling, adapter))
    assert llm.asked == []


def test_a_request_that_is_given_up_is_aborted_and_a_full_engine_is_busy(
    make: Callable[..., VllmEngine],
) -> None:
    async def run() -> None:
        llm = StandIn([[70]], forever=True)
        engine = make(llm, most=1)
        stream: Any = engine.generate([5], Sampling())
        await anext(stream)
        assert engine.load() == (1, 0)
        with pytest.raises(Busy):
            await collect(engine, [5], Sampling())
        await stream.aclose()
        assert len(llm.aborted) == 1 and engine.load() == (0, 0)
        await engine.close()
        assert not engine.healthy()

    asyncio.run(run())


def test_vllm_that_is_not_installed_is_said_with_what_to_install(tmp_path: Path) -> None:
    try:
        import vllm  # noqa: F401
    except ImportError:
        with pytest.raises(NotReady, match="vLLM is not installed"):
            asyncio.run(VllmEngine.open(ModelOptions(str(tmp_path)), name="tiny"))


def test_arguments_of_vllm_follow_the_options() -> None:
    source = Source("org/base", "org/base", "abc")
    said = engine_arguments(ModelOptions("org/base", num_gpus=2, load_in="4bit"), source, adapters=3)
    assert (
        said["tensor_parallel_size"] == 2
        and said["quantization"] == "bitsandbytes"
        and said["max_loras"] == 3
    )
    assert "enable_lora" not in engine_arguments(ModelOptions("org/base"), source, adapters=0)
    with pytest.raises(ConfigError, match="8 bit"):
        engine_arguments(ModelOptions("org/base", load_in="8bit"), source, adapters=0)
