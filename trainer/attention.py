"""Attention in which packed conversations cannot see one another, by construction.

A batch is one long row of conversations without padding. Each conversation is attended to on its own with
the causal kernel, so no mask exists that could leak (a collator that emits an attention_mask of ones beside
position_ids silently lets documents attend to each other: docs/decisions/004) and no work is spent
on pairs of different conversations: the cost is the sum of squared lengths, not the square of the sum.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import AttentionInterface

from trainer.errors import ConfigError

NAME = "conversations"


def conversation_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    boundaries: tuple[int, ...] | None = None,
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
    if attention_mask is not None:
        raise ValueError("packed rows take no attention_mask: conversations are kept apart without one")
    if softcap is not None or s_aux is not None:
        raise ConfigError("the base model caps its attention or gives it sinks, which is not supported")
    ends = boundaries or (0, query.shape[2])
    longest = max(end - start for start, end in zip(ends[:-1], ends[1:], strict=True))
    if sliding_window is not None and longest > sliding_window:
        raise ConfigError(
            f"a conversation of {longest} tokens exceeds the base model's attention window of {sliding_window}",
            hint=f"--max-length {sliding_window}",
        )
    grouped = key.shape[1] != query.shape[1]
    pieces = [
        scaled_dot_product_attention(
            query[:, :, start:end],
            key[:, :, start:end],
            value[:, :, start:end],
            dropout_p=dropout,
            is_causal=True,
            scale=scaling,
            enable_gqa=grouped,
        )
        for start, end in zip(ends[:-1], ends[1:], strict=True)
    ]
    joined = torch.cat(pieces, dim=2) if len(pieces) > 1 else pieces[0]
    return joined.transpose(1, 2).contiguous(), None


def register() -> str:
    """Make the function known to transformers under NAME; for a name it has no mask for, it builds none."""
    AttentionInterface.register(NAME, conversation_attention)
    return NAME
