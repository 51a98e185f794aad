"""How much memory answering takes on each card, term by term, before there is a process.

Weights as transformers loads them (16 bit; linear layers in 8 or 4 bit through bitsandbytes, the rest in 16), the
keys and values of all tokens that are held at once, and what one prompt needs on its way through. Light and pure: the
laptop asks before it rents, the worker before it loads. Letters as in trainer/memory.py, whose terms these are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainer.memory import CONTEXT, FRAGMENTED, NF4, NF4_SCALES, Term
from trainer.shape import Shape

Bits = Literal[16, 8, 4]

# Bytes of a number of the computation: float16 and bfloat16 alike.
_NUMBER = 2


@dataclass(frozen=True, slots=True)
class Answering:
    """What one worker has to hold."""

    bits: Bits = 16
    cards: int = 1
    """Layers are shared out over them, as transformers' device_map and vLLM do."""
    tokens: int = 2048
    """Of all conversations that are answered at once, prompts and answers."""


def serving_terms(shape: Shape, load: Answering) -> tuple[Term, ...]:
    """Memory of the fullest card. Microseconds."""
    linear = shape.layers * shape.linear
    rest = _NUMBER * (shape.parameters - linear)
    weights, constants, unpacked = _NUMBER * linear, 0.0, 0.0
    if load.bits == 8:
        rows = sum(outputs for _, outputs in shape.linears.values()) * shape.layers
        weights, constants = linear, 4.0 * rows
    elif load.bits == 4:
        weights, constants = int(NF4 * linear), NF4_SCALES * linear
    if load.bits != 16:
        unpacked = _NUMBER * max(inputs * outputs for inputs, outputs in shape.linears.values())
    cache = key_value_bytes(shape) * load.tokens
    # A prompt on its way through one layer: the gated MLP's three, the residual, the norm's float32 copy and the input
    # of attention with its three projections; and one row of logits in float32.
    wide = shape.heads * shape.head_dim
    passing = load.tokens * (_NUMBER * (3 * shape.intermediate + shape.hidden + 4 * wide) + 4 * shape.hidden)
    passing += 4 * shape.vocabulary
    moving = cache / load.cards + passing + unpacked
    terms = (
        Term("weights", int((weights + rest) / load.cards), f"{load.bits} bit"),
        Term("quantisation constants", int(constants / load.cards), "scales of the quantised weights"),
        Term("KV cache", int(cache / load.cards), f"keys and values of {load.tokens:,} tokens"),
        Term("activations", int(passing), "a prompt on its way through one layer"),
        Term("unpacked weights", int(unpacked), "the largest quantised matrix, as numbers"),
        # Weights stay where they were put: only what comes and goes leaves holes.
        Term("fragmentation", int(FRAGMENTED * moving), "held by the allocator and not usable"),
        Term("CUDA context", CONTEXT, "kernels and libraries"),
    )
    return tuple(term for term in terms if term.bytes > 0)


def key_value_bytes(shape: Shape) -> int:
    """Keys and values of one token in all layers."""
    return 2 * _NUMBER * shape.layers * shape.key_value_heads * shape.head_dim


def room_for_tokens(shape: Shape, load: Answering, card_bytes: int) -> int:
    """The most tokens that a card holds at once; 0 where the weights alone do not fit. Linear in the tokens."""
    none, some = (_total(shape, load, tokens) for tokens in (0, 4096))
    return max(0, int((card_bytes - none) / ((some - none) / 4096)))


def _total(shape: Shape, load: Answering, tokens: int) -> int:
    return sum(term.bytes for term in serving_terms(shape, Answering(load.bits, load.cards, tokens)))
