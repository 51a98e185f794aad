"""The engine on transformers: many requests in one batch, on a CPU or on GPUs, for every model it can prove itself on.

The event loop accepts requests and hands out deltas; one thread owns the model (steps.py) and does all that costs time.

    engine = await HfEngine.open(ModelOptions("runs/first/export"), name="first")
    async for delta in engine.generate(engine.encode("Once"), Sampling(max_tokens=20)):
        print(delta.text, end="")
    await engine.close()
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

import torch

from serving.engine import Busy, Delta, ModelCard, Refused, Sampling
from serving.engines import schema
from serving.engines.adapters import Adapters
from serving.engines.cache import BLOCK, Cache, KeyValues, token_bytes
from serving.engines.loading import Loaded, ModelOptions, load
from serving.engines.network import Network
from serving.engines.prompts import Prompts, takes_tools
from serving.engines.request import Answer, Request
from serving.engines.scheduler import Limits, Scheduler
from serving.engines.steps import Steps
from serving.engines.text import Vocabulary, Writer
from trainer.errors import ConfigError
from trainer.kernels import free_host_bytes

# Of the memory that is free once the model is loaded. On a GPU the rest is for activations; a host has other uses.
_SHARE = {"cuda": 0.85, "cpu": 0.25}
# More than this many tokens at a time help nobody.
_MOST_TOKENS = 1 << 20


class HfEngine:
    """See serving.engine.Engine. Make one with `open`; it answers in the event loop in which it was opened."""

    def __init__(self, loaded: Loaded, options: ModelOptions, name: str, limits: Limits) -> None:
        """Proves that the model can be served; blocks. Raises ConfigError where it cannot."""
        folders = dict(options.adapters)
        self._own = None
        if loaded.adapter is not None:
            self._own = name
            folders = {name: loaded.adapter, **folders}
        if "" in folders or (name in options.adapters):
            raise ConfigError(f"an adapter needs a name of its own, not {name!r}")
        network = Network(loaded.model)
        network.prove()
        self._adapters = Adapters(loaded.model, folders)
        self._limits = limits
        tokens = _affordable(loaded, network.device) if limits.kv_tokens is None else limits.kv_tokens
        if tokens < BLOCK:
            raise ConfigError(f"room for {tokens} tokens is too little: at least {BLOCK}")
        cache = Cache(tokens)
        self._context = min(loaded.context, cache.budget)
        self._vocabulary = Vocabulary(loaded.tokeniser.backend_tokenizer)
        self._size = network.vocabulary
        self._ends = loaded.ends
        self._prompts = Prompts(loaded.tokeniser)
        self._schemas = schema.Schemas(loaded.tokeniser, self._size, self._ends)
        abilities = {"logprobs", "embeddings"}
        abilities |= {"tools"} if takes_tools(loaded.tokeniser) else set()
        abilities |= {"json_schema"} if schema.available() else set()
        self._card = ModelCard(
            name, self._context, tuple(options.adapters), frozenset(abilities), places=self._limits.running
        )
        scheduler = Scheduler(self._limits, cache)
        self._steps = Steps(network, self._adapters, scheduler, self._vocabulary)

    @classmethod
    async def open(cls, options: ModelOptions, *, name: str, limits: Limits | None = None) -> HfEngine:
        """Load a model and start its thread."""
        engine = await asyncio.to_thread(lambda: cls(load(options), options, name, limits or Limits()))
        engine._steps.start(asyncio.get_running_loop())
        return engine

    @property
    def card(self) -> ModelCard:
        return self._card

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        return self._prompts.encode(text, special=special)

    def encode_chat(
        self, messages: list[Mapping[str, object]], *, tools: list[Mapping[str, object]] | None = None
    ) -> list[int]:
        return self._prompts.encode_chat(messages, tools)

    async def generate(
        self, prompt: list[int], sampling: Sampling, *, adapter: str | None = None
    ) -> AsyncIterator[Delta]:
        request = self._request(prompt, sampling, adapter)
        if sampling.json_schema is not None:
            request.follower = await asyncio.to_thread(self._schemas.follow, sampling.json_schema)
        self._steps.submit(request)
        try:
            while True:
                delta = await request.answer.next()
                yield delta
                if delta.finish is not None:
                    return
        finally:
            self._steps.cancel(request)

    async def embed(self, prompts: list[list[int]]) -> list[list[float]]:
        requests = []
        for prompt in prompts:
            request = self._request(prompt, Sampling(max_tokens=1), None)
            request.pooled = []
            requests.append(request)
        try:
            for request in requests:
                self._steps.submit(request)
            for request in requests:
                await request.answer.next()
        finally:
            for request in requests:
                self._steps.cancel(request)
        return [_unit(request.pooled or []) for request in requests]

    def load(self) -> tuple[int, int]:
        return self._steps.load()

    def healthy(self) -> bool:
        return self._steps.healthy()

    async def close(self) -> None:
        await asyncio.to_thread(self._steps.stop)

    def _request(self, prompt: list[int], sampling: Sampling, adapter: str | None) -> Request:
        self._check(prompt, sampling, adapter)
        running, waiting = self._steps.load()
        if running + waiting >= self._limits.running + self._limits.waiting:
            raise Busy(
                f"{running} requests are being answered and {waiting} wait", self._steps.retry_after_s()
            )
        room = self._context - len(prompt)
        most = room if sampling.max_tokens is None else sampling.max_tokens
        ends = frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else self._ends)
        return Request(
            prompt=prompt,
            sampling=sampling,
            most=most,
            kv=KeyValues(),
            writer=Writer(self._vocabulary, prompt, sampling.stop),
            answer=Answer(),
            adapter=self._own if adapter is None else adapter,
            ends=ends,
        )

    def _check(self, prompt: list[int], sampling: Sampling, adapter: str | None) -> None:
        """Raises Refused with what to change. Everything that a step could stumble over is refused here."""
        if not prompt:
            raise Refused("the prompt has no tokens")
        if any(not 0 <= token < self._size for token in prompt):
            raise Refused(f"the prompt has token ids beyond this model's 0 to {self._size - 1}")
        if adapter is not None and adapter not in self._adapters:
            raise Refused(f"there is no adapter {adapter!r}")
        if sampling.json_schema is not None and not schema.available():
            raise Refused('response_format: JSON schemas need llguidance: pip install "vlaunch[serve]"')
        asked = sampling.max_tokens
        if asked is not None and asked < 1:
            raise Refused(f"max_tokens is {asked}, but an answer has at least one token")
        if len(prompt) + (1 if asked is None else asked) > self._context:
            raise Refused(
                f"the prompt has {len(prompt)} tokens and the answer up to {1 if asked is None else asked}; "
                f"together that is more than this model's context of {self._context}"
            )
        if any(not 0 <= token < self._size for token in sampling.logit_bias):
            raise Refused(f"logit_bias: token ids go from 0 to {self._size - 1}")


def _affordable(loaded: Loaded, device: torch.device) -> int:
    """Tokens whose keys and values fit into the memory that is left."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_host_bytes()
    each = token_bytes(loaded.model.config.get_text_config(), loaded.model.dtype)
    return min(int(free * _SHARE[device.type]) // each, _MOST_TOKENS)


def _unit(vector: list[float]) -> list[float]:
    length = sum(value * value for value in vector) ** 0.5
    return [value / length for value in vector] if length else vector
