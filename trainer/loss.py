"""Cross-entropy that keeps no second copy of the logits.

The logits of a pass are its largest tensor: trained positions times vocabulary. torch's cross_entropy keeps their
log-probabilities in float32 beside them, and two gradients of that size come on top. Here the logits are looked at in
parts, and the gradient takes their place: what lives is the logits, in the number format of the computation, and a
part. It is also quicker, since a part stays in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from trainer.memory import LOSS_PART


def summed_cross_entropy(logits: Tensor, targets: Tensor, part: int = LOSS_PART) -> Tensor:
    """The sum over positions of -log softmax(logits)[target], in float32.

    Args:
        logits: (N, V), of any floating dtype; the backward pass overwrites them with their gradient, so nobody may
            look at them again.
        targets: (N,) int64.
        part: numbers looked at together.
    """
    summed: Tensor = _SummedCrossEntropy.apply(logits, targets, max(1, part // logits.shape[1]))
    return summed


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, rows: int) -> Tensor:
        # Of each position's sum of exponentials: with it the logits are the softmax.
        logarithms = torch.empty(len(targets), dtype=torch.float32, device=logits.device)
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        for part in _parts(len(logits), rows):
            wide = logits[part].float()
            logarithms[part] = wide.logsumexp(1)
            total += (logarithms[part] - wide.gather(1, targets[part, None])[:, 0]).sum()
        ctx.save_for_backward(logits, targets, logarithms)
        ctx.rows = rows
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits, targets, logarithms = ctx.saved_tensors
        one = torch.ones((), dtype=torch.float32, device=logits.device)
        for part in _parts(len(logits), ctx.rows):
            softmax = (logits[part] - logarithms[part, None]).exp_()  # float32, as the logarithms are
            softmax.scatter_add_(1, targets[part, None], -one.expand(len(softmax), 1))
            logits[part] = softmax.mul_(gradients[0])
        return logits, None, None


def _parts(count: int, rows: int) -> Iterator[slice]:
    return (slice(begin, begin + rows) for begin in range(0, count, rows))
