"""A hand-written stand-in for torch's flash kernel: the same contract, plain arithmetic, on a CPU."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import varlen


def calls_of_the_flash_kernel() -> list[Tensor]:
    """Install the stand-in; the boundaries of each call from now on."""
    calls = _install()
    calls.clear()
    return calls


@lru_cache(maxsize=1)
def _install() -> list[Tensor]:
    calls: list[Tensor] = []

    def forward(query: Tensor, key: Tensor, value: Tensor, cu_q: Tensor, cu_k: Any, *rest: Any) -> Any:
        longest, _, causal, scale, window, *_ = rest
        _check(query, key, cu_q, longest, causal, window)
        calls.append(cu_q)
        attended = _attend(query, key, value, cu_q, scale)
        nothing = torch.zeros((2,), dtype=torch.uint64)
        return attended, torch.zeros(query.shape[1], query.shape[0]), nothing

    def backward(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Any:
        _, _, cu_q, _, _, _, _, _, scale, _ = rest
        return _differentiate(gradient, query, key, value, cu_q, scale)

    varlen._varlen_attn.register_kernel("cpu")(forward)
    varlen._varlen_attn_backward.register_kernel("cpu")(backward)
    return calls


def _check(query: Tensor, key: Tensor, starts: Tensor, longest: int, causal: bool, window: list[int]) -> None:
    """What flash_api.cpp demands of its caller."""
    assert query.stride(-1) == key.stride(-1) == 1
    assert starts.dtype == torch.int32 and starts.is_contiguous()
    assert query.shape[0] == key.shape[0] == int(starts[-1])
    assert longest == int(starts.diff().max())
    assert causal and window == [-1, 0]


def _attend(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, scale: float) -> Tensor:
    """(T, heads, head_dim), each span between two starts on its own, causally."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    pieces = [
        torch.einsum("hqk,khd->qhd", _weights(query[span], key[span], scale), value[span])
        for span in _spans(starts)
    ]
    return torch.cat(pieces)


def _differentiate(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, starts: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """By hand: autograd does not reach into a kernel."""
    groups = query.shape[1] // key.shape[1]
    wide_key, wide_value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    queries, keys, values = [], [], []
    for span in _spans(starts):
        weights = _weights(query[span], wide_key[span], scale)
        of_weights = torch.einsum("qhd,khd->hqk", gradient[span], wide_value[span])
        of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True)) * scale
        queries.append(torch.einsum("hqk,khd->qhd", of_scores, wide_key[span]))
        keys.append(torch.einsum("hqk,qhd->khd", of_scores, query[span]))
        values.append(torch.einsum("hqk,qhd->khd", weights, gradient[span]))
    grouped = (key.shape[0], key.shape[1], groups, key.shape[2])
    return (
        torch.cat(queries),
        torch.cat(keys).reshape(grouped).sum(2),
        torch.cat(values).reshape(grouped).sum(2),
    )


def _weights(query: Tensor, key: Tensor, scale: float) -> Tensor:
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    future = torch.ones(len(query), len(key), dtype=torch.bool).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(-1)


def _spans(starts: Tensor) -> list[slice]:
    return [slice(start, end) for start, end in zip(starts.tolist()[:-1], starts.tolist()[1:], strict=True)]
