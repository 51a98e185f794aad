"""The next token of each request, out of the logits of a step.

Every request has its own parameters and its own random numbers, one for each token, so an answer does not depend on
what else is in the batch. The order is that of transformers: bias and penalties, temperature, top_k, top_p, min_p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from serving.engine import Sampling
from serving.engines.request import Request

# So many of the likeliest tokens are sorted; where a filter may reach beyond them, all are.
_LIKELIEST = 256
_ALL = 1 << 40  # more than any vocabulary


@dataclass(frozen=True, slots=True)
class Chosen:
    """A token with its natural-log probability, and the likeliest tokens with theirs; of the model's own distribution,
    before bias, penalties and temperature. Without logprobs asked for, 0.0 and nothing."""

    token: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


def choose(logits: Tensor, requests: Sequence[Request]) -> list[Chosen]:
    """Choose one token for each request.

    Args:
        logits: (requests, vocabulary), any dtype; may be changed.

    Raises:
        FloatingPointError: the model's logits are not numbers.
    """
    scores = logits.float()
    reported = [row for row, request in enumerate(requests) if request.sampling.logprobs is not None]
    natural = torch.log_softmax(scores[reported], dim=-1) if reported else None
    for row, request in enumerate(requests):
        if _adjusts(request.sampling):
            _adjust(scores[row], request)
        if request.follower is not None:
            request.follower.rule_out(scores[row])
    best, tokens = scores.max(dim=-1)
    if not bool(torch.isfinite(best).all()):
        raise FloatingPointError("the model's logits are not numbers; its weights or its dtype are broken")
    chosen = tokens.tolist()
    drawn = [row for row, request in enumerate(requests) if request.sampling.temperature > 0]
    if drawn:
        asked = [requests[row] for row in drawn]
        for row, token in zip(drawn, _draw(scores[drawn], asked), strict=True):
            chosen[row] = token
    out = [Chosen(token) for token in chosen]
    if natural is not None:
        for row, logs in zip(reported, natural, strict=True):
            out[row] = _told(chosen[row], logs, requests[row].sampling.logprobs or 0)
    return out


def _told(token: int, logs: Tensor, alternatives: int) -> Chosen:
    likeliest = torch.topk(logs, min(alternatives, len(logs)))
    top = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    return Chosen(token, float(logs[token]), tuple(top))


def _adjusts(sampling: Sampling) -> bool:
    return bool(
        sampling.logit_bias
        or sampling.repetition_penalty != 1.0
        or sampling.presence_penalty
        or sampling.frequency_penalty
    )


def _adjust(scores: Tensor, request: Request) -> None:
    """Bias and penalties, in place on one row. Costs the number of distinct tokens that they concern."""
    sampling, device = request.sampling, scores.device
    if sampling.logit_bias:
        ids = torch.tensor(list(sampling.logit_bias), device=device)
        scores[ids] += torch.tensor(list(sampling.logit_bias.values()), device=device)
    if sampling.repetition_penalty != 1.0:
        ids = torch.tensor(sorted(set(request.tokens)), device=device)
        known = scores[ids]
        penalty = sampling.repetition_penalty
        scores[ids] = torch.where(known < 0, known * penalty, known / penalty)
    if request.counts and (sampling.presence_penalty or sampling.frequency_penalty):
        ids = torch.tensor(list(request.counts), device=device)
        counts = torch.tensor(list(request.counts.values()), device=device, dtype=scores.dtype)
        scores[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts


def _draw(scores: Tensor, requests: Sequence[Request]) -> list[int]:
    """One token for each row of (n, vocabulary) by its temperature and filters."""
    temperatures = [request.sampling.temperature for request in requests]
    scores = scores / torch.tensor(temperatures, device=scores.device)[:, None]
    marks = [request.draw.random() for request in requests]
    filtered = [row for row, request in enumerate(requests) if _filters(request.sampling)]
    free = [row for row, request in enumerate(requests) if not _filters(request.sampling)]
    tokens = [0] * len(requests)
    if free:
        odds = torch.softmax(scores[free].double(), dim=-1)
        at = _fall(odds, [marks[row] for row in free])
        for row, token in zip(free, at.tolist(), strict=True):
            tokens[row] = token
    if filtered:
        drawn = _draw_filtered(
            scores[filtered], [requests[row].sampling for row in filtered], [marks[row] for row in filtered]
        )
        for row, token in zip(filtered, drawn, strict=True):
            tokens[row] = token
    return tokens


def _filters(sampling: Sampling) -> bool:
    return sampling.top_k > 0 or sampling.top_p < 1.0 or sampling.min_p > 0.0


def _fall(odds: Tensor, marks: Sequence[float]) -> Tensor:
    """Where each mark (0..1) falls on the odds (n, k) float64 laid end to end; (n,)."""
    ends = odds.cumsum(dim=-1)
    at = torch.tensor(marks, dtype=ends.dtype, device=ends.device)[:, None] * ends[:, -1:]
    found = torch.searchsorted(ends, at, right=True)[:, 0]
    # Rounding may put a mark behind the last token that has any odds.
    return torch.minimum(found, (odds > 0).long().cumsum(dim=-1).argmax(dim=-1))


def _draw_filtered(scores: Tensor, samplings: Sequence[Sampling], marks: Sequence[float]) -> list[int]:
    whole = torch.logsumexp(scores.double(), dim=-1)  # (n,)
    count = min(_LIKELIEST, scores.shape[-1])
    likeliest = torch.topk(scores, count)
    odds, complete = _allowed(likeliest.values, whole, samplings)
    places = _fall(odds, marks)
    tokens: list[int] = likeliest.indices.gather(1, places[:, None])[:, 0].tolist()
    if count < scores.shape[-1]:
        for row, enough in enumerate(complete):
            if not enough:
                order = scores[row : row + 1].sort(dim=-1, descending=True)
                odds, _ = _allowed(order.values, whole[row : row + 1], samplings[row : row + 1])
                tokens[row] = int(order.indices[0, _fall(odds, marks[row : row + 1])[0]])
    return tokens


def _allowed(likeliest: Tensor, whole: Tensor, samplings: Sequence[Sampling]) -> tuple[Tensor, list[bool]]:
    """The odds of the likeliest tokens after the filters; and whether these cannot reach beyond them.

    Args:
        likeliest: (n, k) scores, falling.
        whole: (n,) log-sum-exp of all scores.
    """
    device = likeliest.device
    odds = torch.exp(likeliest.double() - whole[:, None])
    k = torch.tensor([sampling.top_k or _ALL for sampling in samplings], device=device)[:, None]
    kept = torch.arange(likeliest.shape[1], device=device)[None, :] < k
    odds = odds * kept
    cut = (k <= likeliest.shape[1])[:, 0]
    # After top_k what is left is the whole distribution.
    total = torch.where(cut, odds.sum(dim=-1), torch.ones_like(whole))[:, None]
    p = torch.tensor([sampling.top_p for sampling in samplings], dtype=odds.dtype, device=device)[:, None]
    before = odds.cumsum(dim=-1) - odds
    nucleus = (before < p * total) | (p >= 1.0)
    nucleus[:, 0] = True
    least = torch.tensor([sampling.min_p for sampling in samplings], dtype=odds.dtype, device=device)[:, None]
    likely = odds >= least * odds[:, :1]
    # Enough were looked at if a filter has cut among them; what top_p keeps depends on all that top_k keeps.
    complete = cut | ((k >= _ALL)[:, 0] & (~nucleus[:, -1] | ~likely[:, -1]))
    return odds * (nucleus & likely), complete.tolist()
