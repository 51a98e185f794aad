"""What a run has to do, and what a kind of machine makes of it: the numbers that places.py reckons with. Pure."""

from __future__ import annotations

import math
from typing import Literal

from launcher.planning.places import CARD_BYTES_S, SETUP_S, STORE_BYTES_S, Machine, Workload
from launcher.planning.throughput import card_flops, cpu_flops, flops_per_token
from launcher.values import Gpus
from trainer import methods
from trainer.choices import choose
from trainer.config import ASSUMED_STALL_S, CheckpointSection, TrainConfig
from trainer.hardware import CARDS
from trainer.memory import Load, adapter_weights
from trainer.shape import Shape

# Vicuna's corpus: about 70,000 conversations (the documents), of 2,960 tokens each as in its later form, 125,000
# conversations with 370 million tokens (Zheng et al. 2023, appendix on training details).
CORPUS_CONVERSATIONS = 70_000
CORPUS_TOKENS = CORPUS_CONVERSATIONS * 2_960
# What a card whose speed is not known here is taken to reach, FLOP/s: about an A10's share.
_UNKNOWN_FLOPS = 40e12
# Of a checkpoint, for each weight that is trained: itself and two moments in float32.
_STATE_BYTES = 12


def steps_and_tokens(
    config: TrainConfig, corpus_tokens: int | None, conversations: int | None
) -> tuple[int, float]:
    """Optimiser steps and tokens of the whole run. Without a corpus, of Vicuna's."""
    train, data = config.train, config.data
    corpus = float(corpus_tokens or CORPUS_TOKENS)
    # Packed rows are all but full; else a row is a conversation.
    rows = corpus / data.max_length
    if not data.packing:
        rows = float(conversations or CORPUS_CONVERSATIONS)
    per_step = train.global_batch_size
    steps = (
        train.max_steps if train.max_steps >= 0 else max(1, round(rows * train.num_train_epochs / per_step))
    )
    return steps, steps * per_step * min(corpus / rows, data.max_length)


def workload(
    config: TrainConfig, shape: Shape, tokens: float, cards: int, nodes: int, *, local: bool
) -> Workload:
    """Of a run on machines with so many cards; 0 cards are CPUs."""
    state = _STATE_BYTES * _trained_weights(config, shape, cards)
    # A save stands still for the copy from the cards; each card of each machine copies its own share.
    stall_s = max(ASSUMED_STALL_S, state / (CARD_BYTES_S * cards * nodes)) if cards else ASSUMED_STALL_S
    # The same rule as the box's (trainer/checkpoint.py, Cadence), before a save has been measured.
    optimum_s = max(math.sqrt(2 * stall_s * config.checkpoint.mtbf_s), 2 * state / (STORE_BYTES_S * nodes))
    known = local or config.checkpoint.mtbf_s != CheckpointSection().mtbf_s
    return Workload(
        flops=flops_per_token(shape, methods.kind(config), config.data.max_length) * tokens,
        state_bytes=state,
        weights_bytes=0.0 if local else 2.0 * shape.parameters,  # a base in 16 bit
        nodes=nodes,
        mtbf_s=config.checkpoint.mtbf_s if known else None,
        stall_s=stall_s,
        interval_s=min(optimum_s, config.checkpoint.max_interval_s),
    )


def cpu_machine(cores: int, place: Literal["local", "cloud"]) -> Machine:
    return Machine(cpu_flops(cores), 0, SETUP_S[place])


def gpu_machine(config: TrainConfig, gpus: Gpus, nodes: int, place: Literal["own", "cloud"]) -> Machine:
    card = CARDS.get(gpus.name)
    bf16 = config.train.bf16 and (card is None or card.bf16)
    flops = card_flops(gpus.name, gpus.number * nodes, methods.kind(config), bf16) or _UNKNOWN_FLOPS
    return Machine(flops * gpus.number, gpus.number, SETUP_S[place])


def _trained_weights(config: TrainConfig, shape: Shape, cards: int) -> float:
    if config.train.method == "full":
        return float(shape.parameters)
    # Which card does not matter to the number of an adapter's weights.
    load = Load.of(config, choose(CARDS["A100"], config, None, shape.head_dim), shape, max(1, cards))
    return float(shape.layers * adapter_weights(shape, load))
