"""Attention in which packed conversations cannot see one another, by construction.

A batch is one long row of conversations without padding. Each conversation is attended to on its own with
the causal kernel, so no mask exists that could leak (a collator that emits an attention_mask of ones beside
position_ids silently lets documents attend to each other: docs/decisions/004) and no work is spent
on pairs of different conversations: the cost is the sum of squared lengths, not the square of the sum.

Two ways to the same numbers: one call for each conversation, on every device, and one call of torch's flash kernel
for the whole row where choices.py says that the card runs it backward.
"""

from __future__ import annotations

from functools import lru_cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import AttentionInterface

from trainer.choices import Attention
from trainer.errors import ConfigError

NAME = "conversations"


class Hidden:
    """Boundaries as one thing without a length: compiled layers that were handed the tuple itself would be compiled
    anew for every number of conversations in a row (torch 2.13 guards the length of what it only passes on)."""

    def __init__(self, ends: tuple[int, ...]) -> None:
        self.ends = ends


def conversation_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    boundaries: tuple[int, ...] | Hidden | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each conversation of a row.

    Args:
        query, key, value: (1, heads, T, head_dim); key and value may have fewer heads.
        boundaries: where each conversation begins, then T; None is one conversation.
        sliding_window, softcap, s_aux: what some families attend with besides (Mistral, Gemma 2, gpt-oss).

    Returns:
        (1, T, heads, head_dim), as transformers' attention functions do.

    Raises:
        ConfigError: the family's attention would be another one than this.
    """
    ends = _checked(query, attention_mask, boundaries, sliding_window, softcap, s_aux)
    grouped = key.shape[1] != query.shape[1]
    lengths = [end - start for start, end in zip(ends[:-1], ends[1:], strict=True)]
    # Split, not sliced one by one: the gradient of a slice is as large as the whole row.
    parts = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    pieces = [
        scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped
        ).transpose(1, 2)
        for q, k, v in parts
    ]
    return (torch.cat(pieces, dim=1) if len(pieces) > 1 else pieces[0].contiguous()), None


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    boundaries: tuple[int, ...] | Hidden | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The same by one call of torch's flash kernel. Arguments, result and errors as `conversation_attention`'s.

    On GPUs from compute capability 8.0 on, in bfloat16 or float16. The kernel has no dropout.
    """
    ends = _checked(query, attention_mask, boundaries, sliding_window, softcap, s_aux)
    if dropout:
        raise ConfigError(
            "packed flash attention has no dropout", hint="train.attn_implementation=sdpa drops attention"
        )
    starts = _on_device(ends, query.device)
    longest = _longest(ends)
    kernel, announced = _flash()
    attended = kernel(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        starts,
        starts,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0),  # causal
        **({"enable_gqa": True} if announced and key.shape[1] != query.shape[1] else {}),
    )
    return attended[None], None


def register(attention: Attention = "sdpa", *, compiled: bool = False) -> str:
    """Make an implementation known to transformers; its name there. For such a name transformers builds no mask.

    compiled: around it the layers are compiled. It stays outside: its Python loop over boundaries would be compiled
    anew for every row, and under checkpointing even fail (torch 2.13).
    """
    function = packed_attention if attention == "varlen" else conversation_attention
    name = NAME if attention == "sdpa" else f"{NAME}-{attention}"
    if compiled:
        name, function = f"{name}-opaque", torch.compiler.disable(function)
    AttentionInterface.register(name, function)
    return name


def _checked(
    query: Tensor,
    attention_mask: Tensor | None,
    boundaries: tuple[int, ...] | Hidden | None,
    sliding_window: int | None,
    softcap: float | None,
    s_aux: Tensor | None,
) -> tuple[int, ...]:
    """The boundaries, or an error: see `conversation_attention`."""
    if attention_mask is not None:
        raise ValueError("packed rows take no attention_mask: conversations are kept apart without one")
    if softcap is not None or s_aux is not None:
        raise ConfigError("the base model caps its attention or gives it sinks, which is not supported")
    ends = boundaries.ends if isinstance(boundaries, Hidden) else boundaries or (0, query.shape[2])
    longest = _longest(ends)
    if sliding_window is not None and longest > sliding_window:
        raise ConfigError(
            f"a conversation of {longest} tokens exceeds the base model's attention window of {sliding_window}",
            hint=f"--max-length {sliding_window}",
        )
    return ends


def _longest(ends: tuple[int, ...]) -> int:
    return max(end - start for start, end in zip(ends[:-1], ends[1:], strict=True))


@lru_cache(maxsize=2)
def _on_device(ends: tuple[int, ...], device: torch.device) -> Tensor:
    """(conversations + 1,) int32. Copied once for a row: every layer asks, and again when it is recomputed."""
    return torch.tensor(ends, dtype=torch.int32, device=device)


@lru_cache(maxsize=1)
def _flash() -> tuple[Any, bool]:
    """torch's kernel, imported where it is used; and whether groups of heads have to be announced to it, as torch
    2.13 wants them: versions before it just take them."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn, "enable_gqa" in signature(varlen_attn).parameters
