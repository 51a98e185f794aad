"""Moments in 8 bit are bitsandbytes' own, whatever number of processes the weights are spread over."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import bitsandbytes
import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from trainer.config import TrainConfig, override
from trainer.optim_8bit import EightBitAdamW
from trainer.shortage import in_trials

TRAIN = override(TrainConfig(), [("train.learning_rate", "0.003"), ("train.weight_decay", "0.1")])[0].train
STEPS = 5
State = dict[str, NDArray[Any]]
torch.set_num_threads(1)  # processes are forked from this one


class Network(nn.Module):
    """A matrix of whole blocks, one of other rows, a vector, an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 256)
        self.whole = nn.Linear(256, 66)
        self.odd = nn.Linear(66, 100)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.odd(torch.tanh(self.whole(self.embedding(tokens))))


def network() -> Network:
    torch.manual_seed(0)
    return Network()


def optimiser(model: Network) -> EightBitAdamW:
    return EightBitAdamW(model.parameters(), TRAIN, {model.embedding.weight})


def train(model: Network, stepper: torch.optim.Optimizer, first: int = 0, last: int = STEPS) -> None:
    for step in range(first, last):
        tokens = torch.arange(8) * 3 + step
        model(tokens % 32).square().mean().backward()
        stepper.step()
        stepper.zero_grad()


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def state_of(model: Network, stepper: EightBitAdamW) -> dict[str, Tensor]:
    state = {}
    for name, parameter in model.named_parameters():
        state[name] = whole(parameter)
        state |= {f"{key}.{name}": whole(value) for key, value in stepper.state[parameter].items()}
    return state


def test_matrices_of_whole_blocks_take_two_bytes_a_weight_and_the_rest_eight() -> None:
    model = network()
    stepper = optimiser(model)
    dtypes = {name: stepper.state[p]["exp_avg"].dtype for name, p in model.named_parameters()}
    assert {name for name, dtype in dtypes.items() if dtype == torch.uint8} == {"whole.weight"}
    state = stepper.state[model.whole.weight]
    assert state["exp_avg_scale"].shape == (66, 1)
    size = sum(value.numel() * value.element_size() for value in state.values())
    assert size == pytest.approx(2.03 * model.whole.weight.numel(), rel=0.01)


def test_a_quantised_weight_moves_exactly_as_under_bitsandbytes() -> None:
    ours, theirs = network(), network()
    train(ours, EightBitAdamW([ours.whole.weight], TRAIN, set()))
    reference = bitsandbytes.optim.AdamW8bit(
        [theirs.whole.weight], lr=TRAIN.learning_rate, weight_decay=TRAIN.weight_decay
    )
    train(theirs, reference)
    assert torch.equal(ours.whole.weight, theirs.whole.weight)
    assert not torch.equal(ours.whole.weight, network().whole.weight)


def test_the_rest_moves_exactly_as_under_torch_s_own() -> None:
    ours, theirs = network(), network()
    train(ours, EightBitAdamW([ours.odd.weight, ours.embedding.weight], TRAIN, {ours.embedding.weight}))
    rest = [theirs.odd.weight, theirs.embedding.weight]
    train(
        theirs, torch.optim.AdamW(rest, lr=TRAIN.learning_rate, weight_decay=TRAIN.weight_decay, fused=True)
    )
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


def spread_run(rank: int, size: int, rendezvous: Path, begin: State | None, first: int) -> State:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
    model = network()
    mesh = init_device_mesh("cpu", (size,))
    for module in (model.whole, model.odd, model):
        fully_shard(module, mesh=mesh)
    stepper = optimiser(model)
    if begin:
        load(model, stepper, begin)
    train(model, stepper, first, first + STEPS)
    state = {key: value.numpy() for key, value in state_of(model, stepper).items()}
    dist.destroy_process_group()
    return state


@torch.no_grad()
def load(model: Network, stepper: EightBitAdamW, state: State) -> None:
    """Each process its part of the whole tensors, as a checkpoint is read."""
    for name, parameter in model.named_parameters():
        tensors = {name: parameter} | {f"{key}.{name}": v for key, v in stepper.state[parameter].items()}
        for key, target in tensors.items():
            source = torch.from_numpy(state[key])
            if isinstance(target, DTensor):
                local = target.to_local()
                begin = sum(
                    len(chunk)
                    for chunk in source.chunk(target.device_mesh.size())[: target.device_mesh.get_rank()]
                )
                local.copy_(source[begin : begin + len(local)])
            else:
                target.copy_(source)


def test_any_number_of_processes_has_the_same_blocks_and_continues_another_s(tmp_path: Path) -> None:
    """5 steps on 2 processes, 5 more on 1 and on 3; the reference is 10 steps of plain tensors."""
    plain = network()
    stepper = optimiser(plain)
    train(plain, stepper, 0, 2 * STEPS)
    expected = state_of(plain, stepper)
    half = in_trials(lambda rank: spread_run(rank, 2, tmp_path / "two", None, 0), 2)[0]
    for size in (1, 3):
        found = in_trials(partial(rest, size=size, begin=half, rendezvous=tmp_path / f"then-{size}"), size)[0]
        assert found.keys() == expected.keys()
        for name, value in found.items():
            # Sums over processes differ in their last bits, and may tip a number into the next of 256 steps.
            step = 1 if value.dtype == np.uint8 else 1e-6
            np.testing.assert_allclose(value.astype(float), expected[name].numpy().astype(float), 1e-4, step)


def rest(rank: int, size: int, begin: State, rendezvous: Path) -> State:
    return spread_run(rank, size, rendezvous, begin, STEPS)
