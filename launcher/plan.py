"""Everything decided before anything starts: what, where, for how long, for how much.

Pure: a request in, a plan out. The figures are estimates from stated assumptions, and say so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from launcher.catalog import SOURCE, Price, offers
from launcher.values import Gpus, Infra
from trainer.cadence import young_interval_s
from trainer.config import ASSUMED_STALL_S, TrainConfig
from trainer.errors import ConfigError, UsageError
from trainer.recipes import Recipe

MarketName = Literal["spot", "on-demand"]

# Sustained rate of one CPU core in float32 training of small models, and the share of an accelerator's bf16
# peak that FSDP fine-tuning reaches: measured for the core (docs/benchmarks.md), usual for the GPU.
_CORE_FLOPS = 35e9
_GPU_UTILISATION = 0.35
# bf16 (tensor core) peak, FLOP/s, from the makers' data sheets; T4 has fp16 only.
_PEAK_FLOPS = {"A100": 312e12, "A100-80GB": 312e12, "A10G": 70e12, "T4": 65e12, "H100": 989e12}
# Vicuna's corpus: about 70,000 conversations, here taken at 800 tokens (lognormal, median 600).
_CORPUS_CONVERSATIONS = 70_000
_CORPUS_TOKENS = _CORPUS_CONVERSATIONS * 800
# Seconds from a request to the first new step: on a cloud, provisioning and set-up as well.
_RESTART_S = {"local": 8.0, "cloud": 300.0}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One place to run, with its price now."""

    cloud: str
    region: str
    zone: str
    instance: str
    market: MarketName
    usd_per_hour: float
    on_demand_usd_per_hour: float
    spot_usd_per_hour: float
    price_source: str


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What the user asked for, parsed."""

    name: str
    recipe: Recipe
    config: TrainConfig
    store: str
    infra: tuple[Infra, ...] = (Infra("local"),)
    spot: bool = False
    gpus: Gpus | None = None
    num_nodes: int = 1
    zones: tuple[tuple[str, str], ...] = ()
    """(zone, region) of spot traces, where the local market replays some."""
    cores: int = 2
    corpus_tokens: int | None = None
    """Counted in the user's files; None where none were given."""
    corpus_conversations: int | None = None
    """Likewise."""
    base_shape: Mapping[str, Any] | None = None
    """The Hugging Face config of a local base model."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A decided request. Hours are of training alone; dollars include expected restarts."""

    name: str
    recipe: str
    method: str
    accelerator: str
    """SkyPilot name and count, or "CPU"."""
    cores: int
    candidates: tuple[Candidate, ...]
    parameters: float
    steps: int
    tokens: float
    corpus_tokens: int
    corpus_assumed: bool
    hours: float
    usd_spot: float
    usd_on_demand: float
    mtbf_s: float
    checkpoint_every_s: float
    notional: bool
    problems: tuple[str, ...] = ()
    risks: tuple[str, ...] = field(default=())

    @property
    def has_accelerator(self) -> bool:
        return self.accelerator != "CPU"

    @property
    def market(self) -> MarketName:
        return self.candidates[0].market

    @property
    def regions(self) -> list[str]:
        return list(dict.fromkeys(candidate.region for candidate in self.candidates))


def make_plan(request: TrainRequest) -> Plan:
    """Decide.

    Raises:
        UsageError: an unknown accelerator or cloud, with the nearest name.
    """
    accelerator = "" if _is_local(request) else str(request.gpus or request.recipe.accelerator or "")
    candidates = tuple(_candidates(request, accelerator))
    parameters = _parameters(request)
    steps, tokens = _work(request)
    hours = 6.0 * parameters * tokens / _rate(accelerator, request) / 3600.0
    mtbf_s = request.config.checkpoint.mtbf_s
    restart_s = _RESTART_S["local" if _is_local(request) else "cloud"]
    interval_s = young_interval_s(ASSUMED_STALL_S, mtbf_s)
    overhead = 1.0 + (restart_s + interval_s / 2) / mtbf_s
    return Plan(
        name=request.name,
        recipe=request.config.recipe,
        method=request.config.train.method,
        accelerator=accelerator or "CPU",
        cores=request.cores,
        candidates=candidates,
        parameters=parameters,
        steps=steps,
        tokens=tokens,
        corpus_tokens=request.corpus_tokens or _CORPUS_TOKENS,
        corpus_assumed=request.corpus_tokens is None,
        hours=hours,
        usd_spot=hours * overhead * min(c.spot_usd_per_hour for c in candidates) * request.num_nodes,
        usd_on_demand=hours * min(c.on_demand_usd_per_hour for c in candidates) * request.num_nodes,
        mtbf_s=mtbf_s,
        checkpoint_every_s=min(interval_s, request.config.checkpoint.max_interval_s),
        notional=_is_local(request),
        problems=tuple(_problems(request)),
        risks=tuple(_risks(request, candidates, restart_s, mtbf_s)),
    )


def _is_local(request: TrainRequest) -> bool:
    return all(infra.cloud == "local" for infra in request.infra)


def _candidates(request: TrainRequest, accelerator: str) -> Sequence[Candidate]:
    prices = offers(accelerator)
    if _is_local(request):
        return _local_candidates(request, prices)
    wanted = [infra for infra in request.infra if infra.cloud != "local"]
    fitting = [
        price
        for infra in wanted
        for price in prices
        if infra.cloud == price.cloud
        and infra.region in (None, price.region)
        and infra.zone in (None, price.zone)
    ]
    if not fitting:
        places = ", ".join(str(infra) for infra in wanted)
        known = ", ".join(sorted({f"{price.cloud}/{price.region}" for price in prices}))
        raise UsageError(
            f"no known price of {accelerator or 'a CPU machine'} in {places}", hint=f"known: {known}"
        )
    return [_priced(price, request, price.cloud, price.zone, SOURCE) for price in fitting]


def _local_candidates(request: TrainRequest, prices: Sequence[Price]) -> Sequence[Candidate]:
    """This machine, playing regions. Each has the price that a small cloud machine has there."""
    source = f"as AWS {prices[0].instance}, {SOURCE}"
    by_region = {price.region: price for price in prices}
    if request.zones:
        placed = [(by_region.get(region, prices[0]), zone, region) for zone, region in request.zones]
    else:
        asked = [infra.region for infra in request.infra if infra.region]
        placed = [
            (by_region.get(region, prices[0]), region, region)
            for region in asked or [price.region for price in prices[:3]]
        ]
    return [_priced(price, request, "local", zone, source, region) for price, zone, region in placed]


def _priced(
    price: Price, request: TrainRequest, cloud: str, zone: str, source: str, region: str | None = None
) -> Candidate:
    return Candidate(
        cloud=cloud,
        region=region or price.region,
        zone=zone,
        instance=price.instance,
        market="spot" if request.spot else "on-demand",
        usd_per_hour=price.spot if request.spot else price.on_demand,
        on_demand_usd_per_hour=price.on_demand,
        spot_usd_per_hour=price.spot,
        price_source=source,
    )


def _parameters(request: TrainRequest) -> float:
    """Weights of the model: exact for a shape, by name otherwise."""
    shape = request.config.model.shape or request.base_shape
    if shape is None:
        return _named_size(request.config.model.base or "")
    missing = [name for name in ("hidden_size", "num_hidden_layers") if name not in shape]
    if missing:
        raise ConfigError(
            f"model.shape has no {missing[0]}", hint="it holds the fields of a Hugging Face config"
        )
    hidden, layers = int(shape["hidden_size"]), int(shape["num_hidden_layers"])
    heads = int(shape.get("num_attention_heads", 1))
    kv_share = int(shape.get("num_key_value_heads", heads)) / heads
    attention = hidden * hidden * (2 + 2 * kv_share)
    mlp = 3 * hidden * int(shape.get("intermediate_size", 4 * hidden))
    embeddings = hidden * int(request.config.model.vocab_size or shape.get("vocab_size", 32_000))
    return layers * (attention + mlp) + embeddings * (1 if shape.get("tie_word_embeddings") else 2)


def _named_size(base: str) -> float:
    """Weights by the size in a model's name: llama-13b-hf has 13 billion. LLaMA's own sizes are known exactly."""
    found = re.search(r"(\d+(?:\.\d+)?)b\b", base.lower())
    billions = float(found[1]) if found else 7.0
    return {7.0: 6.74e9, 13.0: 13.02e9}.get(billions, billions * 1e9)


def _work(request: TrainRequest) -> tuple[int, float]:
    """Optimiser steps and tokens of the whole run."""
    train, data = request.config.train, request.config.data
    corpus = float(request.corpus_tokens or _CORPUS_TOKENS)
    # Packed rows are all but full; else a row is a conversation.
    rows = corpus / data.max_length
    if not data.packing:
        rows = float(request.corpus_conversations or _CORPUS_CONVERSATIONS)
    per_step = train.global_batch_size
    steps = train.max_steps if train.max_steps >= 0 else max(1, round(rows * train.num_train_epochs / per_step))
    return steps, steps * per_step * min(corpus / rows, data.max_length)


def _rate(accelerator: str, request: TrainRequest) -> float:
    """FLOP/s of one attempt."""
    if not accelerator:
        return _CORE_FLOPS * request.cores * request.num_nodes
    name, _, count = accelerator.partition(":")
    return _PEAK_FLOPS.get(name, 100e12) * _GPU_UTILISATION * int(count or 1) * request.num_nodes


def _problems(request: TrainRequest) -> list[str]:
    """What has to be mended before this plan can run."""
    if not _is_local(request) and request.store.startswith("file:"):
        return [f"the store {request.store} is on this machine: give --store s3://... or gs://..."]
    return []


def _risks(
    request: TrainRequest, candidates: Sequence[Candidate], restart_s: float, mtbf_s: float
) -> list[str]:
    risks = []
    if request.spot and restart_s > mtbf_s / 4:
        risks.append(f"a restart takes {restart_s:.0f} s of the {mtbf_s:.0f} s between two preemptions")
    if request.spot and len({candidate.region for candidate in candidates}) == 1:
        risks.append("only one region: when it has no machines, the run waits; a second --infra lets it move")
    return risks
