"""Keys and values: one growing piece of memory for each sequence, a budget for all, and finished ones kept.

Each sequence has its own contiguous keys and values, so attention reads them where they lie. On CPUs that is up to
six times as fast as gathering pages (docs/decisions/020). What a finished sequence leaves is kept until its room is
needed: the next turn of a conversation begins with it and only computes what is new.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Room is given out in steps of this many tokens.
BLOCK = 64
# Growing a sequence copies it; by an eighth at a time a token is copied eight times at most.
_GROWTH = 8
# Fewer common tokens are sooner computed than looked after.
_WORTHWHILE = 16
# Finished sequences that are kept at most: each is looked at when a request comes in.
_MOST_KEPT = 512


class KeyValues:
    """Keys and values of one sequence: for each layer (1, heads, capacity, head_dim), of which `length` are computed.

    Memory is taken layer by layer when it is first written, on the layer's device and in its dtype.
    """

    __slots__ = ("length", "capacity", "_keys", "_values")

    def __init__(self) -> None:
        self.length = 0
        self.capacity = 0
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def write(self, layer: int, start: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store key and value (1, heads, n, head_dim) from position `start` on; all up to there, as views."""
        stop = start + key.shape[2]
        keys = self._written(self._keys, layer, start, stop, key)
        values = self._written(self._values, layer, start, stop, value)
        return keys[:, :, :stop], values[:, :, :stop]

    def copy_from(self, other: KeyValues, length: int) -> None:
        """Begin with the first `length` tokens of another sequence. The capacity must have been reserved."""
        for layer, key in other._keys.items():
            self.write(layer, 0, key[:, :, :length], other._values[layer][:, :, :length])
        self.length = length

    def _written(self, stored: dict[int, Tensor], layer: int, start: int, stop: int, new: Tensor) -> Tensor:
        whole = stored.get(layer)
        if whole is None or whole.shape[2] < stop:
            grown = new.new_empty((1, new.shape[1], self.capacity, new.shape[3]))
            if whole is not None:
                grown[:, :, :start] = whole[:, :, :start]
            stored[layer] = whole = grown
        whole[:, :, start:stop] = new
        return whole


@dataclass(slots=True, eq=False)
class Kept:
    """What a finished sequence left. `head`: its first tokens, by which most others are told apart at once."""

    tokens: NDArray[np.int64]
    head: bytes
    adapter: str | None
    kv: KeyValues


class Cache:
    """The budget in tokens, over running and kept sequences; kept ones go, longest unused first, when room is short."""

    def __init__(self, budget: int) -> None:
        self.budget = budget // BLOCK * BLOCK
        self.used = 0
        self._kept: list[Kept] = []  # longest unused first

    def reserve(self, kv: KeyValues, tokens: int) -> bool:
        """Room for `tokens` in this sequence, with some to spare if there is; False if even that many do not fit."""
        if tokens <= kv.capacity:
            return True
        least = _blocks(tokens)
        wanted = min(_blocks(tokens + tokens // _GROWTH), self.budget)
        free = self.budget - self.used + kv.capacity
        while free < least and self._kept:
            self._drop(self._kept[0])
            free = self.budget - self.used + kv.capacity
        if free < least:
            return False
        capacity = wanted if free >= wanted else least
        self.used += capacity - kv.capacity
        kv.capacity = capacity
        return True

    def release(self, kv: KeyValues) -> None:
        """Take a sequence's room back; what it computed is lost."""
        self.used -= kv.capacity
        kv.length = kv.capacity = 0
        kv._keys, kv._values = {}, {}

    def keep(self, tokens: Sequence[int], adapter: str | None, kv: KeyValues) -> None:
        """Keep a finished sequence for whoever goes on with it."""
        if kv.length < _WORTHWHILE:
            self.release(kv)
            return
        array = np.asarray(tokens[: kv.length], dtype=np.int64)
        head = array[:_WORTHWHILE].tobytes()
        for other in self._like(head, adapter):
            if len(other.tokens) <= len(array) and _common(other.tokens, array) == len(other.tokens):
                self._drop(other)
        self._kept.append(Kept(array, head, adapter, kv))
        if len(self._kept) > _MOST_KEPT:
            self._drop(self._kept[0])

    def fresh(self, tokens: int) -> KeyValues | None:
        """Empty keys and values with room for so many tokens, or None."""
        kv = KeyValues()
        return kv if self.reserve(kv, tokens) else None

    def begin(
        self,
        tokens: Sequence[int],
        adapter: str | None,
        running: Iterable[tuple[Sequence[int], str | None, KeyValues]],
    ) -> KeyValues | None:
        """Keys and values to begin `tokens` with, with room for all of them, or None where there is no room.

        The longest common beginning of all that is kept or running is reused, but for the last token, whose logits
        are wanted. A kept sequence is taken over where the new one goes on with all of it or room is short, else
        copied.
        """
        array = np.asarray(tokens, dtype=np.int64)[:-1]
        best: Kept | None = None
        source: KeyValues | None = None
        most = _WORTHWHILE - 1
        for kept in self._like(array[:_WORTHWHILE].tobytes(), adapter):
            if (common := _common(kept.tokens, array)) > most:
                best, source, most = kept, kept.kv, common
        for others, other_adapter, kv in running:
            alike = other_adapter == adapter and others[:_WORTHWHILE] == tokens[:_WORTHWHILE]
            if alike and kv.length > most:
                common = _common(np.asarray(others[: kv.length], dtype=np.int64), array)
                if common > most:
                    best, source, most = None, kv, common
        if best is not None and (most == len(best.tokens) or not self._fits(len(tokens))):
            return self._taken_over(best, most, len(tokens))
        fresh = self.fresh(len(tokens))
        if fresh is not None and source is not None:
            fresh.copy_from(source, most)
        return fresh

    def _like(self, head: bytes, adapter: str | None) -> list[Kept]:
        return [kept for kept in self._kept if kept.head == head and kept.adapter == adapter]

    def _fits(self, tokens: int) -> bool:
        return self.used + _blocks(tokens) <= self.budget

    def _taken_over(self, kept: Kept, common: int, tokens: int) -> KeyValues | None:
        self._kept.remove(kept)
        if self.reserve(kept.kv, tokens):
            kept.kv.length = common
            return kept.kv
        self._kept.append(kept)
        return None

    def _drop(self, kept: Kept) -> None:
        self._kept.remove(kept)
        self.release(kept.kv)


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK) * BLOCK


def _common(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    """Length of the common beginning."""
    length = min(len(one), len(other))
    differ = np.nonzero(one[:length] != other[:length])[0]
    return int(differ[0]) if len(differ) else length


def token_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes of keys and values of one token over all layers, by the sizes in a model's configuration."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * dtype.itemsize)
