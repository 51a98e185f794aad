"""Which part of each trained weight this process keeps under ZeRO, and how that is named in a checkpoint.

DeepSpeed keeps weights and moments in flat float32 buffers whose ends are padded to the number of processes.
A checkpoint must mean the same at every size, so what is saved is cut from those buffers without the padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

# DeepSpeed's stage 2 pads a buffer to a multiple of this times the number of processes
# (nccl_start_alignment_factor in runtime/zero/stage_1_and_2.py), so a part never begins inside such a pair.
_PAIR = 2


@dataclass(frozen=True, slots=True)
class Piece:
    """This process's part of one trained weight: `length` elements from `start` on, of the weight laid flat; in
    flat buffer number `buffer` they begin at `offset`. The length may be 0."""

    name: str
    shape: torch.Size
    start: int
    length: int
    buffer: int
    offset: int

    def of(self, buffers: list[Tensor]) -> Tensor:
        return buffers[self.buffer].detach().narrow(0, self.offset, self.length)

    def cut(self, whole: Tensor) -> Tensor:
        return whole.reshape(-1).narrow(0, self.start, self.length)


class Flat:
    """Stage 2: all trained weights one after the other in one buffer, cut into as many parts as there are
    processes. The weights that the model computes with are whole on every process."""

    def __init__(self, optimizer: Any, names: dict[nn.Parameter, str], rank: int) -> None:
        self._optimizer, self._rank = optimizer, rank
        self.masters: list[Tensor] = optimizer.single_partition_of_fp32_groups
        self.pieces: list[Piece] = []
        self._totals: list[int] = []
        for buffer, weights in enumerate(optimizer.bit16_groups):
            here = rank * self.masters[buffer].numel()
            after = here + self.masters[buffer].numel()
            at = 0
            for weight in weights:
                low, high = max(at, here), min(at + weight.numel(), after)
                length = max(0, high - low)
                start, offset = (low - at, low - here) if length else (0, 0)
                self.pieces.append(Piece(names[weight], weight.shape, start, length, buffer, offset))
                at += weight.numel()
            self._totals.append(at)

    def put_frozen(self, weight: nn.Parameter, whole: Tensor) -> None:
        weight.data.copy_(whole)

    def publish(self) -> None:
        """The model computes with what the masters say, on every process. A collective."""
        self._optimizer.update_lp_params()

    def forget_gradients(self) -> None:
        """Of a step that was skipped. DeepSpeed 0.19.8 keeps them where the optimiser is offloaded under bf16, and
        then skips every later step."""
        self._optimizer.averaged_gradients = dict.fromkeys(self._optimizer.averaged_gradients)

    def saved(self, label: str, buffers: list[Tensor], mesh: DeviceMesh) -> dict[str, Tensor]:
        """The buffers as pairs of elements: cut into chunks of whole pairs, they lie where DeepSpeed has them, at
        every number of processes, and their whole shape depends on the model alone."""
        saved: dict[str, Tensor] = {}
        for number, (buffer, total) in enumerate(zip(buffers, self._totals, strict=True)):
            pairs, mine = -(-total // _PAIR), buffer.numel() // _PAIR
            rows = min(max(pairs - self._rank * mine, 0), mine)
            local = buffer.detach().view(-1, _PAIR)[:rows]
            saved[f"{label}.flat.{number}"] = _distributed(local, (pairs, _PAIR), mesh)
        return saved


class Partitioned:
    """Stage 3: every weight, trained or frozen, is cut by itself into as many parts as there are processes."""

    def __init__(self, optimizer: Any, names: dict[nn.Parameter, str], rank: int) -> None:
        self._optimizer, self._rank = optimizer, rank
        self.masters: list[Tensor] = optimizer.fp32_partitioned_groups_flat
        self.pieces: list[Piece] = []
        for buffer, weights in enumerate(optimizer.fp16_groups):
            offset = 0
            for weight in weights:
                shape: torch.Size = weight.ds_shape
                self.pieces.append(Piece(names[weight], shape, *self._part(weight), buffer, offset))
                offset += weight.ds_tensor.ds_numel

    def put_frozen(self, weight: Any, whole: Tensor) -> None:
        start, length = self._part(weight)
        weight.ds_tensor.data[:length].copy_(whole.reshape(-1)[start : start + length])

    def publish(self) -> None:
        for low, master in zip(self._optimizer.fp16_partitioned_groups_flat, self.masters, strict=True):
            low.data.copy_(master.data)

    def forget_gradients(self) -> None:
        """DeepSpeed has."""

    def saved(self, label: str, buffers: list[Tensor], mesh: DeviceMesh) -> dict[str, Tensor]:
        """Each weight laid flat; torch's chunks of it are DeepSpeed's parts, without their padding."""
        return {
            f"{label}.{piece.name}": _distributed(_alone(piece.of(buffers)), (piece.shape.numel(),), mesh)
            for piece in self.pieces
        }

    def _part(self, weight: Any) -> tuple[int, int]:
        """Start and length of this process's part of it."""
        start = min(self._rank * weight.ds_tensor.ds_numel, weight.ds_numel)
        return start, min(weight.ds_tensor.ds_numel, weight.ds_numel - start)


def assembled(pieces: list[Piece], masters: list[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Each trained weight in float32, whole on the first process, undefined on the others. A collective.

    One weight takes memory at a time.
    """
    for piece in pieces:
        mine = piece.of(masters)
        whole = torch.zeros(piece.shape.numel(), dtype=torch.float32, device=mine.device)
        piece.cut(whole).copy_(mine)
        if dist.get_world_size() > 1:  # bits are summed, not numbers: -0.0 + 0.0 would be 0.0
            dist.reduce(whole.view(torch.int32), dst=0)
        yield piece.name, whole.view(piece.shape)


def _alone(part: Tensor) -> Tensor:
    """The same memory as a tensor that begins where its storage begins. DCP's copy for a save (torch 2.13,
    _state_dict_stager.py) takes a DTensor whose local part does not for an ordinary tensor, and fails."""
    begin, size = part.storage_offset() * part.element_size(), part.numel() * part.element_size()
    storage = part.untyped_storage()[begin : begin + size]
    return torch.empty(0, dtype=part.dtype, device=part.device).set_(storage)


def _distributed(local: Tensor, shape: tuple[int, ...], mesh: DeviceMesh) -> Tensor:
    """`local` itself as this process's chunk of a tensor of `shape`."""
    stride = (_PAIR, 1) if len(shape) == 2 else (1,)
    return DTensor.from_local(
        local, mesh, [Shard(0)], run_check=False, shape=torch.Size(shape), stride=stride
    )
