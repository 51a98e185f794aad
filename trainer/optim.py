"""AdamW and its learning rate, as functions of the config and the step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from trainer.config import TrainSection


def adamw(parameters: Iterable[nn.Parameter], train: TrainSection) -> torch.optim.AdamW:
    """AdamW with state allocated (zeros), so that a checkpoint can be loaded into it before the first step."""
    optimiser = adamw_without_moments(parameters, train)
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            allocate_moments(optimiser, parameter)
    return optimiser


def adamw_without_moments(parameters: Iterable[nn.Parameter], train: TrainSection) -> torch.optim.AdamW:
    """For who will put parts of the parameters in their place: moments of whole ones never take memory.

    Fused: one pass over the weights instead of a dozen, on CPUs too.
    """
    return torch.optim.AdamW(
        parameters,
        lr=train.learning_rate,
        betas=(train.adam_beta1, train.adam_beta2),
        eps=train.adam_epsilon,
        weight_decay=train.weight_decay,
        fused=True,
    )


def allocate_moments(optimiser: torch.optim.AdamW, parameter: Tensor) -> None:
    optimiser.state[parameter] = {
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }


def set_steps_taken(optimiser: torch.optim.Optimizer, steps: int) -> None:
    """Bias correction counts every step of the run: it follows from the position, so it is not saved."""
    for state in optimiser.state.values():
        state["step"].fill_(float(steps))


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def learning_rate(train: TrainSection, step: int, total: int) -> float:
    """Rate of optimiser step `step` (from 0) of `total`: linear warm-up, then the schedule's shape to zero.

    The same rule as transformers' get_cosine_schedule_with_warmup, with ceil(total * warmup_ratio) steps.
    """
    warmup = math.ceil(total * train.warmup_ratio)
    if step < warmup:
        return train.learning_rate * step / max(1, warmup)
    progress = (step - warmup) / max(1, total - warmup)
    shape = {
        "cosine": max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress))),
        "linear": max(0.0, 1.0 - progress),
        "constant": 1.0,
    }[train.lr_scheduler_type]
    return train.learning_rate * shape
