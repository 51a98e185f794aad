"""AdamW with both moments in 8 bit, for weights that are spread over processes: `train.optim=adamw_bnb_8bit`.

bitsandbytes' own optimiser class does not take DTensors (0.50.2: "got mixed torch.Tensor and DTensor"), its kernel
works on any tensor, so this hands it the local shards. Moments are quantised in blocks of 256 numbers (Dettmers et al.
2021). Only matrices whose rows are whole blocks get them: then a block never lies across two processes, and a
checkpoint of N processes continues on M with the very same blocks. The rest, and the embeddings as transformers'
Trainer has it, keep float32 moments.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import tensor as distributed
from torch.distributed.tensor import DTensor

from trainer.config import TrainSection

_BLOCK = 256  # bitsandbytes.optim.optimizer: blocksize
_FEWEST = 4096  # its min_8bit_size: below, 8 bit would save nothing


class EightBitAdamW(torch.optim.Optimizer):
    """State of a quantised weight: exp_avg and exp_avg_sq (uint8, shaped and spread like it), exp_avg_scale and
    exp_avg_sq_scale (float32, one per block: (rows, row / 256), spread like it), step. Of another: AdamW's.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], train: TrainSection, in_full: Set[Tensor]) -> None:
        """
        Args:
            in_full: weights that keep float32 moments: embeddings, whose rows are seen rarely.
        """
        defaults = {
            "lr": train.learning_rate,
            "betas": (train.adam_beta1, train.adam_beta2),
            "eps": train.adam_epsilon,
            "weight_decay": train.weight_decay,
        }
        super().__init__(parameters, defaults)
        from bitsandbytes import functional

        dynamic_map: Any = functional.create_dynamic_map
        self._signed, self._unsigned = dynamic_map(signed=True), dynamic_map(signed=False)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = _beginning(
                    parameter, _quantisable(parameter) and parameter not in in_full
                )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.state[parameter]["step"] += 1
                    self._update(group, parameter)

    def _update(self, group: dict[str, Any], parameter: nn.Parameter) -> None:
        state = {key: _local(value) for key, value in self.state[parameter].items()}
        weight, gradient = _local(parameter), _local(parameter.grad)
        if not weight.numel():  # fewer rows than processes
            return
        beta1, beta2 = group["betas"]
        if "exp_avg_scale" not in state:
            torch._fused_adamw_(
                [weight], [gradient], [state["exp_avg"]], [state["exp_avg_sq"]], [], [state["step"]],
                lr=group["lr"], beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"], eps=group["eps"],
                amsgrad=False, maximize=False,
            )  # fmt: skip
            return
        self._signed = self._signed.to(weight.device)
        self._unsigned = self._unsigned.to(weight.device)
        torch.ops.bitsandbytes.optimizer_update_8bit_blockwise(
            "adam", gradient.contiguous(), weight, state["exp_avg"], state["exp_avg_sq"], beta1, beta2, 0.0, 0.0,
            group["eps"], int(state["step"]), group["lr"], self._signed, self._unsigned,
            state["exp_avg_scale"].view(-1), state["exp_avg_sq_scale"].view(-1), group["weight_decay"], 1.0, False,
        )  # fmt: skip


def _quantisable(parameter: Tensor) -> bool:
    row = parameter[0].numel() if parameter.dim() > 1 else 0
    return row > 0 and row % _BLOCK == 0 and parameter.numel() >= _FEWEST


def _beginning(parameter: Tensor, quantised: bool) -> dict[str, Tensor]:
    device = _local(parameter).device
    state = {"step": torch.zeros((), dtype=torch.float32, device=device)}
    dtype = torch.uint8 if quantised else torch.float32
    for moment in ("exp_avg", "exp_avg_sq"):
        state[moment] = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
        if quantised:
            state[f"{moment}_scale"] = _scales(parameter)
    return state


def _scales(parameter: Tensor) -> Tensor:
    shape = (parameter.shape[0], parameter.shape[1:].numel() // _BLOCK)
    if isinstance(parameter, DTensor):
        mesh, placements = parameter.device_mesh, parameter.placements
        return distributed.zeros(*shape, dtype=torch.float32, device_mesh=mesh, placements=placements)
    return torch.zeros(shape, dtype=torch.float32, device=parameter.device)


def _local(value: Any) -> Any:
    return value.to_local() if isinstance(value, DTensor) else value
