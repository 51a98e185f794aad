"""What a worker asks of whatever makes tokens: the one door between HTTP and models.

An Engine lives in a worker process, inside its asyncio loop, and answers many requests at a time. It knows token ids,
sampling and text; it knows nothing of HTTP, of OpenAI's JSON, of keys or of other workers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose the next token. The defaults are those of OpenAI's API where it has the parameter.

    Attributes:
        max_tokens: most tokens to make; None means up to the context's end.
        temperature: 0 is greedy (argmax, ties to the lowest id).
        top_p, top_k, min_p: filters, applied in the order top_k, top_p, min_p; 1.0, 0 and 0.0 switch them off.
        presence_penalty, frequency_penalty: OpenAI's, over tokens made so far.
        repetition_penalty: transformers' (over prompt and answer); 1.0 switches it off.
        seed: same seed, same prompt, same answer, whatever else is in the batch; None draws one.
        stop: strings that end the answer and are not part of it; they may span tokens.
        stop_token_ids: ids that end the answer beside the model's own end token.
        logit_bias: token id -> added to its logit (-100..100).
        ignore_eos: go on to max_tokens (for benchmarks).
        logprobs: None for none, else how many alternatives (0..20) to report beside the chosen token.
        json_schema: the answer must be one JSON value of this schema ({} for any object); engines that cannot raise.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    ignore_eos: bool = False
    logprobs: int | None = None
    json_schema: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Logprob:
    """One token's natural-log probability, its bytes (not always whole UTF-8), and its likeliest alternatives."""

    token: str
    token_bytes: bytes
    logprob: float
    top: tuple[Logprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of an answer.

    Attributes:
        text: whole characters only, without anything that may still become part of a stop string; may be empty.
        tokens: tokens made since the last delta (counted once, exact).
        logprobs: one for each of those tokens where Sampling.logprobs asked for them.
        finish: set on the last delta alone: "stop" (end token or stop string) or "length".
        cached_tokens: on the first delta, prompt tokens whose keys and values were reused.
    """

    text: str
    tokens: int
    logprobs: tuple[Logprob, ...] = ()
    finish: Literal["stop", "length"] | None = None
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What an engine serves: its name, context in tokens, the names of its adapters, and what it can do.

    places: requests that can run at a time; the controller balances by requests per place.
    """

    name: str
    context: int
    adapters: tuple[str, ...] = ()
    abilities: frozenset[str] = frozenset()  # of "logprobs", "json_schema", "embeddings", "tools"
    places: int = 16


class Refused(Exception):
    """The request cannot be done by this engine as asked; the message says which part and why (HTTP 400)."""


class Busy(Exception):
    """No room for another request now; `retry_after_s` says when to ask again (HTTP 429)."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Engine(Protocol):
    """A model that makes tokens for many requests at a time.

    `generate` is an async generator: closing it (aclose, or cancelling its task) frees the request's place and memory
    at the next step. Errors: Refused before the first delta, Busy before the first delta, anything else is a fault of
    the engine after which `healthy()` says so.
    """

    @property
    def card(self) -> ModelCard: ...

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of a text. `special` reads special tokens out of it; never for what a user wrote."""
        ...

    def encode_chat(
        self, messages: list[Mapping[str, object]], *, tools: list[Mapping[str, object]] | None = None
    ) -> list[int]:
        """Token ids of a dialogue in the template the model was trained with, open for the assistant's answer.

        Special tokens inside messages stay text.
        """
        ...

    def generate(
        self, prompt: list[int], sampling: Sampling, *, adapter: str | None = None
    ) -> AsyncIterator[Delta]: ...

    async def embed(self, prompts: list[list[int]]) -> list[list[float]]:
        """One unit vector per prompt. Raises Refused where the engine has no "embeddings"."""
        ...

    def load(self) -> tuple[int, int]:
        """(requests running, requests waiting): what the controller balances by."""
        ...

    def healthy(self) -> bool: ...

    async def close(self) -> None: ...
