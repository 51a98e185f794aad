"""A model, its tokeniser and what ends its answers, from wherever it lies."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from serving.engines import Device, Dtype
from serving.engines.source import Source, locate
from trainer.conversation import get_template
from trainer.errors import ConfigError, NotReady
from trainer.tokenize import carry_template

log = logging.getLogger("vlaunch.engine")

# Positions that change with the longest sequence: answers would depend on what else is in the batch.
_RESTLESS = ("dynamic", "longrope")
# Where a configuration does not say how long a text may be.
_SHORT = 2048


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """What to serve and how to hold it.

    Attributes:
        model: a run's URI, a folder, or a Hugging Face id.
        device: "cpu" or "cuda".
        dtype: of the weights; "auto" is as stored, but float32 for float16 on a CPU.
        load_in: 8 or 4 bit by bitsandbytes: LLM.int8(), NF4 with double quantisation.
        num_gpus: over how many GPUs the layers are spread.
        template: the chat template, where the model brings none or a wrong one.
        adapters: name -> PEFT folder.
        cache: where runs' exports are fetched to.
        threads: torch's threads on a CPU; None leaves torch's choice.
    """

    model: str
    device: Device = "cpu"
    dtype: Dtype = "auto"
    load_in: Literal["8bit", "4bit"] | None = None
    num_gpus: int = 1
    template: str | None = None
    adapters: dict[str, Path] = field(default_factory=dict)
    cache: Path = Path("~/.cache/vlaunch/models")
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to compute. `ends`: ids that end an answer. `context`: most tokens of prompt and answer."""

    model: PreTrainedModel
    tokeniser: PreTrainedTokenizerFast
    ends: frozenset[int]
    context: int
    adapter: Path | None


def load(options: ModelOptions) -> Loaded:
    """Load it. Costs reading every weight once.

    Raises:
        ConfigError: it cannot be loaded, or not be served by this engine; with the reason.
        NotReady: no GPU, or a run that is not finished.
    """
    transformers_logging.disable_progress_bar()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.device == "cuda" and torch.cuda.device_count() < options.num_gpus:
        raise NotReady(
            f"{options.num_gpus} GPU(s) asked for, torch sees {torch.cuda.device_count()}",
            hint="--device cpu",
        )
    source = locate(options.model, options.cache.expanduser())
    try:
        config = AutoConfig.from_pretrained(source.base, revision=source.revision)
        model = AutoModelForCausalLM.from_pretrained(
            source.base, revision=source.revision, use_safetensors=True, **_held(options, config)
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(f"{options.model} cannot be loaded: {_short(error)}") from None
    _check_positions(config)
    tokeniser = load_tokeniser(options, source)
    ends = template_ends(options, source, tokeniser) | _ends(model)
    return Loaded(model, tokeniser, ends, _context(config, tokeniser), source.adapter)


def _held(options: ModelOptions, config: Any) -> dict[str, Any]:
    """How weights are held: arguments of from_pretrained."""
    dtype: Any = "auto" if options.dtype == "auto" else getattr(torch, options.dtype)
    stored = getattr(config, "dtype", None)
    if dtype == "auto" and options.device == "cpu" and stored in (torch.float16, None):
        dtype = torch.float32
    held: dict[str, Any] = {"dtype": dtype, "device_map": {"": "cpu"}}
    if options.device == "cuda":
        held["device_map"] = {"": 0}
        if options.num_gpus > 1:
            free = {number: torch.cuda.mem_get_info(number)[0] for number in range(options.num_gpus)}
            held |= {"device_map": "balanced", "max_memory": free}
    if options.load_in is not None:
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        computed = dtype if isinstance(dtype, torch.dtype) else stored
        held["quantization_config"] = (
            BitsAndBytesConfig(load_in_8bit=True)
            if options.load_in == "8bit"
            else BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=computed,
            )
        )
    return held


def _check_positions(config: Any) -> None:
    rope = getattr(config.get_text_config(), "rope_parameters", None)
    kind = rope.get("rope_type") if isinstance(rope, dict) else None
    if kind in _RESTLESS:
        raise ConfigError(
            f"the model's positions ({kind}) depend on the longest text in a batch",
            hint="serve it with --engine vllm",
        )


def load_tokeniser(options: ModelOptions, source: Source) -> PreTrainedTokenizerFast:
    """The model's tokeniser with its chat template, or with the one that was asked for."""
    try:
        tokeniser: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source.tokeniser)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(f"the tokeniser of {source.tokeniser} cannot be loaded: {_short(error)}") from None
    if not isinstance(tokeniser, PreTrainedTokenizerFast):
        raise ConfigError(
            f"the tokeniser of {source.tokeniser} has no fast form", hint="save it with tokenizer.json"
        )
    if options.template is not None:
        carry_template(tokeniser, get_template(options.template), tokeniser.model_max_length)
    return tokeniser


def template_ends(
    options: ModelOptions, source: Source, tokeniser: PreTrainedTokenizerFast
) -> frozenset[int]:
    """Ids that end an answer by the tokeniser and by the template that the model was trained with."""
    ends = set() if tokeniser.eos_token_id is None else {int(tokeniser.eos_token_id)}
    name = options.template or source.template
    if name is not None:
        vocabulary = tokeniser.get_vocab()
        ends |= {vocabulary[stop] for stop in get_template(name).stop_strings if stop in vocabulary}
    return frozenset(ends)


def _ends(model: PreTrainedModel) -> set[int]:
    ends: set[int] = set()
    for said in (model.generation_config.eos_token_id, model.config.get_text_config().eos_token_id):
        ends |= set(said if isinstance(said, list) else [] if said is None else [said])
    return ends


def _context(config: Any, tokeniser: PreTrainedTokenizerFast) -> int:
    said = getattr(config.get_text_config(), "max_position_embeddings", None)
    if isinstance(said, int) and said > 0:
        return said
    longest = tokeniser.model_max_length
    return int(longest) if longest < 10_000_000 else _SHORT  # transformers writes 1e30 for "no limit"


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
