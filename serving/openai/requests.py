"""What clients may ask, field by field. Whatever is not here, or not honoured, is refused by its name.

Fields and ranges are those of https://platform.openai.com/docs/api-reference; top_k, min_p, repetition_penalty,
stop_token_ids and ignore_eos are vLLM's, sent with the client's `extra_body`. null means: the default.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.engine import ModelCard, Sampling
from serving.openai.errors import ApiError
from trainer.errors import nearest

# OpenAI's own limits, but for n: each choice takes a place of the engine.
_MOST_STOPS, _MOST_CHOICES, _MOST_PROMPTS = 4, 16, 256
_MOST_BIASES, _MOST_MESSAGES, _MOST_TOOLS = 1024, 4096, 128
# No tokeniser in use packs more characters into its tokens on average; longer texts are refused unread.
_CHARACTERS_PER_TOKEN = 64

Stop = Annotated[str, Field(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
Text = str


class Part(BaseModel):
    """Strict: "1" is no number. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(Part):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class Asked(Part):
    """What chat and completions have in common."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=_MOST_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=_MOST_STOPS)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=_MOST_BIASES)] | None
    ) = None
    user: Annotated[str, Field(max_length=512)] | None = None
    """Said to be the caller's own name of its user; it changes nothing of the answer, here as at OpenAI."""
    top_k: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    ignore_eos: bool | None = None

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def with_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def most_tokens(self) -> int | None:
        return self.max_tokens

    @abstractmethod
    def alternatives(self) -> int | None:
        """How many likeliest tokens to report beside each chosen one; None: no logprobs."""

    def answer_schema(self) -> Mapping[str, object] | None:
        return None

    def sampling(self, number: int) -> Sampling:
        """How to make the choice with this number."""
        given: dict[str, Any] = {
            name: value
            for name in (
                "temperature",
                "top_p",
                "top_k",
                "min_p",
                "presence_penalty",
                "frequency_penalty",
                "repetition_penalty",
                "ignore_eos",
            )
            if (value := getattr(self, name)) is not None
        }
        return Sampling(
            max_tokens=self.most_tokens(),
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            seed=None if self.seed is None else self.seed + number,
            logit_bias=_biases(self.logit_bias or {}),
            logprobs=self.alternatives(),
            json_schema=self.answer_schema(),
            **given,
        )


class TextPart(Part):
    type: Literal["text"]
    text: Text


class FunctionCall(Part):
    name: str
    arguments: str


class ToolCall(Part):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Part):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None
    name: Annotated[str, Field(max_length=64)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=_MOST_TOOLS)] | None = None
    tool_call_id: str | None = None
    refusal: None = None  # clients send back what they were given, and that has these
    annotations: None = None
    audio: None = None
    function_call: None = None

    def plain(self) -> dict[str, object]:
        """As a template wants it: the text as one string, and only what was given."""
        content = self.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        said: dict[str, object] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": content or "",
        }
        if self.name is not None:
            said["name"] = self.name
        if self.tool_calls:
            said["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        if self.tool_call_id is not None:
            said["tool_call_id"] = self.tool_call_id
        return said


class Function(Part):
    name: Annotated[str, Field(min_length=1, max_length=64)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Literal[False] | None = None


class Tool(Part):
    type: Literal["function"]
    function: Function


class Schema(Part):
    name: Annotated[str, Field(min_length=1, max_length=64)]
    description: str | None = None
    strict: bool | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


class ResponseFormat(Part):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None


class ChatRequest(Asked):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Field(min_length=1, max_length=_MOST_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=_MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: Literal[True] | None = None

    def most_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def answer_schema(self) -> Mapping[str, object] | None:
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return None
        return (wanted.json_schema.schema_ or {}) if wanted.json_schema else {}

    def template_tools(self) -> list[Mapping[str, object]] | None:
        if not self.tools or self.tool_choice == "none":
            return None
        return [tool.model_dump(exclude_none=True) for tool in self.tools]

    def check(self, card: ModelCard) -> None:
        """Raises ApiError for what this engine cannot do."""
        if self.top_logprobs is not None and not self.logprobs:
            raise refused("top_logprobs", "it needs logprobs: true")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise refused("max_tokens", "give it or max_completion_tokens, not both")
        _need(card, "logprobs", "logprobs", self.logprobs)
        _need(card, "tools", "tools", self.template_tools())
        wanted = self.response_format
        if wanted is not None and (wanted.type == "json_schema") != (wanted.json_schema is not None):
            raise refused(
                "response_format.json_schema", "it belongs to the type json_schema, and to no other"
            )
        _need(card, "response_format", "json_schema", self.answer_schema() is not None)


class CompletionRequest(Asked):
    """POST /v1/completions"""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=_MOST_PROMPTS)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[
            list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=_MOST_PROMPTS)
        ]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=_MOST_CHOICES)] | None = None
    suffix: Literal[""] | None = None

    def alternatives(self) -> int | None:
        return self.logprobs

    def check(self, card: ModelCard) -> None:
        if self.best_of is not None and self.best_of != self.choices:
            raise refused("best_of", "all choices are returned here; leave it out or make it equal to n")
        if self.echo and not all(isinstance(prompt, str) for prompt in prompts_of(self.prompt)):
            raise refused("echo", "it needs prompts as text")
        if self.echo and self.logprobs is not None:
            raise refused("echo", "not together with logprobs")
        _need(card, "logprobs", "logprobs", self.logprobs is not None)


class EmbeddingRequest(Part):
    """POST /v1/embeddings"""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    input: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=_MOST_PROMPTS)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[
            list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=_MOST_PROMPTS)
        ]
    )
    encoding_format: Literal["float", "base64"] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None

    def check(self, card: ModelCard) -> None:
        _need(card, "model", "embeddings", True)


Prompt = str | list[int]
R = TypeVar("R", bound=Part)


def parse(kind: type[R], body: bytes) -> R:
    """The request, or ApiError 400 that names the first field that is wrong."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _first_problem(kind, error) from None


def prompts_of(given: Any) -> list[Prompt]:
    """One or many prompts, each text or token ids."""
    if isinstance(given, str):
        return [given]
    if isinstance(given[0], int):
        return [list(given)]
    return list(given)


def refuse_endless(prompt: Prompt, card: ModelCard) -> None:
    """What cannot fit is refused before a tokeniser spends seconds on it."""
    if len(prompt) > card.context * (_CHARACTERS_PER_TOKEN if isinstance(prompt, str) else 1):
        raise too_long(f"more than {card.context}", card)


def too_long(tokens: object, card: ModelCard) -> ApiError:
    return ApiError(
        400,
        f"the model's context is {card.context} tokens, and the prompt has {tokens}",
        param="messages",
        code="context_length_exceeded",
    )


def refused(param: str, why: str) -> ApiError:
    return ApiError(400, f"{param}: {why}", param=param, code="unsupported_value")


def _need(card: ModelCard, param: str, ability: str, wanted: object) -> None:
    if wanted and ability not in card.abilities:
        raise refused(param, f"the engine of {card.name} has no {ability}")


def _biases(given: Mapping[str, float]) -> dict[int, float]:
    for token in given:
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise refused("logit_bias", f"{token[:20]!r} is no token id")
    return {int(token): bias for token, bias in given.items()}


def _first_problem(kind: type[Part], error: ValidationError) -> ApiError:
    """Of the alternatives of a union, the one that got furthest is the one that was meant."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    problem = max(problems, key=lambda problem: len(_path(problem["loc"])))
    where = _path(problem["loc"])
    param = ".".join(where) or None
    if problem["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {problem['msg']}")
    if problem["type"] == "extra_forbidden":
        close = nearest(where[-1], kind.model_fields) if len(where) == 1 else None
        meant = f"; did you mean {close}?" if close else ""
        message = f"{param} is not honoured by this server{meant}"
        return ApiError(400, message, param=param, code="unsupported_parameter")
    return ApiError(400, f"{param or 'body'}: {problem['msg']}", param=param)


def _path(location: tuple[int | str, ...]) -> list[str]:
    """Fields and indices; pydantic's names for the alternatives of a union are not the client's business."""
    return [
        str(step)
        for step in location
        if isinstance(step, int) or (step.isidentifier() and step not in _BRANCHES)
    ]


_BRANCHES = ("str", "int", "float", "bool", "none")
