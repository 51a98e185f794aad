"""The same engine on vLLM, for GPUs: its scheduler, its paged memory, its kernels; our protocol.

Written against vLLM's AsyncLLM (`vllm.v1.engine.async_llm`), which lives in the extra [vllm] and never beside [sky].
Text, stop strings and templates are ours (text.py, prompts.py), so an answer reads the same whatever made its tokens:
vLLM hands over token ids.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal

from transformers import PreTrainedTokenizerFast

from serving.engine import Busy, Delta, Logprob, ModelCard, Refused, Sampling
from serving.engines.loading import ModelOptions, load_tokeniser, template_ends
from serving.engines.prompts import Prompts, takes_tools
from serving.engines.source import Source, locate
from serving.engines.text import Vocabulary, Writer
from trainer.errors import ConfigError, NotReady


class VllmEngine:
    """See serving.engine.Engine. Make one with `open`.

    Args:
        llm: vLLM's AsyncLLM, or what behaves like it.
        vllm: the module vllm, of which the parameters of a request come.
        adapters: name -> folder; one that bears the model's own name is used where none is asked for.
        ends: ids that end an answer beside those that vLLM knows of.
        most: requests at a time; more are told that the engine is busy.
    """

    def __init__(
        self,
        llm: Any,
        vllm: Any,
        tokeniser: PreTrainedTokenizerFast,
        card: ModelCard,
        adapters: Mapping[str, str],
        ends: frozenset[int],
        most: int,
    ) -> None:
        self._llm = llm
        self._vllm = vllm
        self._prompts = Prompts(tokeniser)
        self._vocabulary = Vocabulary(tokeniser.backend_tokenizer)
        self._size = len(tokeniser)
        self._card = card
        self._loras = {
            name: vllm.lora.request.LoRARequest(name, number, folder)
            for number, (name, folder) in enumerate(adapters.items(), 1)
        }
        self._ends = ends
        self._most = most
        self._open: dict[str, bool] = {}  # requests that are not over: whether their first token has come
        self._stopped = False

    @classmethod
    async def open(cls, options: ModelOptions, *, name: str, most: int = 320) -> VllmEngine:
        """Load a model into vLLM.

        Raises:
            NotReady: vLLM is not installed.
            ConfigError: it cannot hold the model as asked.
        """
        try:
            import vllm
            import vllm.lora.request
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError:
            raise NotReady("vLLM is not installed", hint='pip install "vlaunch[serve,train,vllm]"') from None
        source = locate(options.model, options.cache.expanduser())
        own = {} if source.adapter is None else {name: source.adapter}
        adapters = {name: str(folder) for name, folder in {**own, **options.adapters}.items()}
        arguments = engine_arguments(options, source, len(adapters))
        llm = AsyncLLM.from_engine_args(vllm.AsyncEngineArgs(**arguments))
        tokeniser = load_tokeniser(options, source)
        abilities = {"logprobs", "json_schema"} | ({"tools"} if takes_tools(tokeniser) else set())
        context = int(llm.model_config.max_model_len)
        card = ModelCard(name, context, tuple(options.adapters), frozenset(abilities), places=most)
        return cls(llm, vllm, tokeniser, card, adapters, template_ends(options, source, tokeniser), most)

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
        params = self._params(prompt, sampling, adapter)
        if len(self._open) >= self._most:
            raise Busy(f"{len(self._open)} requests are being answered", 2.0)
        number = uuid.uuid4().hex
        writer = Writer(self._vocabulary, prompt, sampling.stop)
        self._open[number] = False
        outputs = self._llm.generate(
            {"prompt_token_ids": prompt},
            params,
            number,
            lora_request=self._loras.get(adapter or self._card.name),
        )
        ended = False
        try:
            async for output in outputs:
                first = not self._open[number]
                self._open[number] = True
                ended = output.outputs[0].finish_reason is not None
                delta = self._delta(output, writer, first, sampling.logprobs or 0)
                yield delta
                if delta.finish is not None:
                    return
        finally:
            del self._open[number]
            if not ended:  # given up, or ended by a stop string, of which vLLM does not know
                await self._llm.abort(number)

    async def embed(self, prompts: list[list[int]]) -> list[list[float]]:
        raise Refused(
            "embeddings: vLLM makes them only of models that were made for it; serve with --engine hf"
        )

    def load(self) -> tuple[int, int]:
        running = sum(self._open.values())
        return running, len(self._open) - running

    def healthy(self) -> bool:
        return not self._stopped and not self._llm.errored

    async def close(self) -> None:
        self._stopped = True
        self._llm.shutdown()

    def _params(self, prompt: Sequence[int], sampling: Sampling, adapter: str | None) -> Any:
        """vLLM's SamplingParams. Raises Refused for what vLLM would only find out later."""
        asked = sampling.max_tokens
        if not prompt:
            raise Refused("the prompt has no tokens")
        if any(not 0 <= token < self._size for token in (*prompt, *sampling.logit_bias)):
            raise Refused(f"token ids go from 0 to {self._size - 1}")
        if adapter is not None and adapter not in self._loras:
            raise Refused(f"there is no adapter {adapter!r}")
        if asked is not None and asked < 1:
            raise Refused(f"max_tokens is {asked}, but an answer has at least one token")
        if len(prompt) + (asked or 1) > self._card.context:
            raise Refused(
                f"the prompt has {len(prompt)} tokens and the answer up to {asked or 1}; together that is more than "
                f"this model's context of {self._card.context}"
            )
        extra = {}
        if sampling.json_schema is not None:
            extra["structured_outputs"] = self._vllm.sampling_params.StructuredOutputsParams(
                json=dict(sampling.json_schema) or {"type": "object"}
            )
        return self._vllm.SamplingParams(
            max_tokens=self._card.context - len(prompt) if asked is None else asked,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            repetition_penalty=sampling.repetition_penalty,
            seed=sampling.seed,
            stop_token_ids=[*sampling.stop_token_ids, *(() if sampling.ignore_eos else sorted(self._ends))],
            logit_bias=dict(sampling.logit_bias) or None,
            ignore_eos=sampling.ignore_eos,
            logprobs=sampling.logprobs,
            detokenize=False,  # text.py does it, the same for every engine
            output_kind=self._vllm.sampling_params.RequestOutputKind.DELTA,
            **extra,
        )

    def _delta(self, output: Any, writer: Writer, first: bool, alternatives: int) -> Delta:
        """One of vLLM's outputs as ours. A stop string may end it before vLLM's last token."""
        made = output.outputs[0]
        ended_by_token = made.finish_reason == "stop"
        text, used = "", 0
        for place, token in enumerate(made.token_ids):
            used += 1
            if ended_by_token and place == len(made.token_ids) - 1:
                break  # the end token is no text
            text += writer.push(token)
            if writer.stopped:
                break
        if made.finish_reason is not None:
            text += writer.end()
        finish: Literal["stop", "length"] | None = "length" if made.finish_reason is not None else None
        if writer.stopped or ended_by_token:
            finish = "stop"
        logprobs = [
            self._logprob(token, known, alternatives)
            for token, known in zip(made.token_ids[:used], made.logprobs or (), strict=False)
        ]
        return Delta(text, used, tuple(logprobs), finish, (output.num_cached_tokens or 0) if first else 0)

    def _logprob(self, token: int, known: Mapping[int, Any], alternatives: int) -> Logprob:
        """vLLM reports the chosen token together with its likeliest alternatives, each with its rank from 1 on."""
        ranked = sorted(known.items(), key=lambda item: item[1].rank)
        top = tuple(self._token(other, one.logprob) for other, one in ranked if one.rank <= alternatives)
        return self._token(token, known[token].logprob, top)

    def _token(self, token: int, logprob: float, top: tuple[Logprob, ...] = ()) -> Logprob:
        said = self._vocabulary.bytes(token)
        return Logprob(said.decode("utf-8", "replace"), said, logprob, top)


def engine_arguments(options: ModelOptions, source: Source, adapters: int) -> dict[str, Any]:
    """Arguments of vLLM's AsyncEngineArgs."""
    arguments: dict[str, Any] = {
        "model": source.base,
        "revision": source.revision,
        "tokenizer": source.tokeniser,
        "dtype": options.dtype,
        "tensor_parallel_size": options.num_gpus,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "trust_remote_code": False,
    }
    if options.load_in == "8bit":
        raise ConfigError("vLLM does not quantise to 8 bit as it loads", hint="--load-4bit, or --engine hf")
    if options.load_in == "4bit":
        arguments["quantization"] = "bitsandbytes"
    if adapters:
        arguments |= {"enable_lora": True, "max_loras": adapters, "max_lora_rank": 64}
    return arguments
