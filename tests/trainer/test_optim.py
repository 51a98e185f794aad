"""The schedule is transformers', the optimiser is PyTorch's, and both follow from the step alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from trainer.config import TrainSection
from trainer.optim import adamw, learning_rate, set_learning_rate, set_steps_taken

torch.set_num_threads(1)

SCHEDULES: dict[str, Callable[..., torch.optim.lr_scheduler.LambdaLR]] = {
    "cosine": get_cosine_schedule_with_warmup,
    "linear": get_linear_schedule_with_warmup,
    "constant": get_constant_schedule_with_warmup,
}


def theirs(kind: str, warmup: int, total: int, peak: float) -> list[float]:
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    lengths = (warmup,) if kind == "constant" else (warmup, total)
    schedule = SCHEDULES[kind](optimiser, *lengths)
    rates = []
    for _ in range(total):
        rates.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize(
    ("ratio", "total", "warmup"), [(0.03, 1000, 30), (0.03, 240, 8), (0.03, 1, 1), (0.0, 17, 0), (0.5, 3, 2)]
)
def test_the_rate_of_every_step_is_that_of_transformers(
    kind: str, ratio: float, total: int, warmup: int
) -> None:
    train = TrainSection(learning_rate=2e-5, warmup_ratio=ratio, lr_scheduler_type=kind)
    ours = [learning_rate(train, step, total) for step in range(total)]
    assert ours == pytest.approx(theirs(kind, warmup, total, 2e-5), rel=1e-12, abs=1e-30)


def test_the_rate_rises_from_zero_to_its_peak_and_falls_towards_zero() -> None:
    train = TrainSection(learning_rate=1.0, warmup_ratio=0.1)
    rates = [learning_rate(train, step, 100) for step in range(100)]
    assert rates[0] == 0.0 and rates[10] == 1.0 and rates[99] < 0.001
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


TRAIN = TrainSection(
    learning_rate=1e-2, weight_decay=0.1, adam_beta1=0.85, adam_beta2=0.98, adam_epsilon=1e-6
)


def twenty_steps(model: nn.Module, optimiser: torch.optim.Optimizer, first: int = 0) -> list[Tensor]:
    for step in range(first, 20):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(TRAIN, step, 20)
        data = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
        model(data).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize(("fused", "tolerance"), [(True, 0.0), (False, 1e-6)])
def test_twenty_steps_are_those_of_pytorch(fused: bool, tolerance: float) -> None:
    one, other = network(), network()
    reference = torch.optim.AdamW(
        other.parameters(), betas=(0.85, 0.98), eps=1e-6, weight_decay=0.1, fused=fused
    )
    ours, expected = twenty_steps(one, adamw(one.parameters(), TRAIN)), twenty_steps(other, reference)
    for mine, theirs in zip(ours, expected, strict=True):
        assert (mine - theirs).abs().max() <= tolerance


def test_a_new_optimiser_with_moments_and_step_count_goes_on_to_the_bit() -> None:
    model = network()
    optimiser = adamw(model.parameters(), TRAIN)
    for step in range(7):
        set_learning_rate(optimiser, learning_rate(TRAIN, step, 20))
        model(torch.randn(4, 8, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    again = network()
    again.load_state_dict(model.state_dict())
    resumed = adamw(again.parameters(), TRAIN)
    for old, new in zip(model.parameters(), again.parameters(), strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            resumed.state[new][name].copy_(optimiser.state[old][name])
    set_steps_taken(resumed, 7)

    went_on, whole = twenty_steps(again, resumed, first=7), twenty_steps(model, optimiser, first=7)
    assert all(torch.equal(one, other) for one, other in zip(went_on, whole, strict=True))


def test_without_the_step_count_it_would_not() -> None:
    one, other = network(), network()
    right, wrong = adamw(one.parameters(), TRAIN), adamw(other.parameters(), TRAIN)
    set_steps_taken(right, 7)
    assert not torch.equal(twenty_steps(one, right)[0], twenty_steps(other, wrong)[0])
