"""Attention of many sequences in one row of tokens, each over its own keys and values.

A step of the engine is one forward pass over a row that holds one token of each sequence that is being answered and
pieces of prompts. Everything but attention treats the tokens of a row alike; here each sequence is attended to on its
own, with the very call that transformers makes for it alone, so what shares a row cannot show in an answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import AttentionInterface

from serving.engines.cache import KeyValues

NAME = "vlaunch-sequences"


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens `first` to `last` of the row are those of one sequence from position `start` on."""

    kv: KeyValues
    start: int
    first: int
    last: int


class Row:
    """The pieces of a row, and the masks that all its layers share."""

    def __init__(self, pieces: list[Piece]) -> None:
        self.pieces = pieces
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}

    def mask(self, start: int, new: int, window: int | None, device: torch.device) -> Tensor:
        """(new, start + new) bool: what each new token sees: itself, and what came before it within the window."""
        known = self._masks.get((start, new, window))
        if known is None or known.device != device:
            at = torch.arange(start, start + new, device=device)[:, None]
            seen = torch.arange(start + new, device=device)[None, :]
            known = seen <= at
            if window is not None:
                known &= seen > at - window
            self._masks[start, new, window] = known
        return known


def sequence_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    row: Row | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of each piece over its sequence so far, whose keys and values are stored on the way.

    Args:
        query, key, value: (1, heads, T, head_dim); key and value may have fewer heads.
        row: what the T tokens belong to.
        sliding_window, softcap, s_aux: what some families attend with besides (Mistral, Gemma 2, gpt-oss).

    Returns:
        (1, T, heads, head_dim), as transformers' attention functions do.

    Raises:
        NotImplementedError: the model's attention is another one than this.
    """
    if row is None or softcap is not None or s_aux is not None or attention_mask is not None:
        raise NotImplementedError("attention with a mask of its own, a cap or sinks")
    layer: int = getattr(module, "layer_idx")  # noqa: B009  (nn.Module types its attributes as modules)
    out = [_attend(row, piece, layer, query, key, value, sliding_window, scaling) for piece in row.pieces]
    joined = torch.cat(out, dim=2) if len(out) > 1 else out[0]
    return joined.transpose(1, 2).contiguous(), None


def _attend(
    row: Row,
    piece: Piece,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int | None,
    scaling: float | None,
) -> Tensor:
    """(1, heads, n, head_dim): the n tokens of one piece. The arguments are those of the whole row."""
    new, count = slice(piece.first, piece.last), piece.last - piece.first
    keys, values = piece.kv.write(layer, piece.start, key[:, :, new], value[:, :, new])
    mask = None
    if count == 1 and window is not None:
        keys, values = keys[:, :, -window:], values[:, :, -window:]
    elif count > 1 and (piece.start or (window is not None and count > window)):
        mask = row.mask(piece.start, count, window, query.device)
    return scaled_dot_product_attention(
        query[:, :, new],
        keys,
        values,
        attn_mask=mask,
        is_causal=count > 1 and mask is None,
        scale=scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    )


def register() -> str:
    """Make it known to transformers, which builds no mask for such a name; its name there."""
    AttentionInterface.register(NAME, sequence_attention)
    return NAME
