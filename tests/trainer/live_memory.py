"""What the real program would allocate, measured without the memory: its own model, its own FSDP2, fake tensors.

Fake tensors have shapes and storages but no data, and the fake process group answers at once, so that one process
of eight trains LLaMA-13B's layers here in seconds. Every storage that a real run would make is made and freed in
the same order; only the allocator's rounding and the kernels' own workspaces are missing.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import LlamaConfig

from trainer import adapters, methods
from trainer.config import TrainConfig
from trainer.dataset import Batch
from trainer.fsdp import FullyShardedModel
from trainer.loop import summed_loss
from trainer.memory import Load
from trainer.model import skeleton
from trainer.parallel import World
from trainer.shape import Shape


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that are alive after each operation, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, weakref.ref[Any]] = {}
        self.peak = 0

    def see(self, tree: Any) -> None:
        for tensor in tree_iter(tree):
            if isinstance(tensor, DTensor):
                tensor = tensor._local_tensor
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = id(storage)
                if key not in self._live:
                    self._live[key] = weakref.ref(storage, lambda _, key=key: self._live.pop(key, None))

    def now(self) -> int:
        storages = [reference() for reference in list(self._live.values())]
        return sum(storage.nbytes() for storage in storages if storage is not None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.see(result)
        self.peak = max(self.peak, self.now())
        return result


def measured_peak(config: TrainConfig, shape: Shape, load: Load, conversations: int = 1) -> int:
    """Most bytes that live at once in one of `load.processes` during two micro-batches and an optimiser step."""
    with _processes(load.processes) as world:
        frozen = torch.bfloat16 if config.train.bf16 else torch.float32
        full = methods.kind(config) == "full"
        model = skeleton(llama_config(shape, config), torch.float32 if full else frozen)
        if not full:
            adapters.adapt(model, config.lora)
        if config.train.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        sharded = FullyShardedModel(model, config, world)
        model.train()
        with FakeTensorMode(allow_non_fake_inputs=True):
            sharded.fill(None)
            return _peak(sharded, _batch(load.tokens, load.trained, conversations), load.reduce_each)


def _peak(sharded: FullyShardedModel, batch: Batch, reduce_each: bool) -> int:
    live = LiveBytes()
    live.see([list(sharded.model.parameters()), list(sharded.model.buffers()), sharded.state()])
    with live:
        for last in (reduce_each, True):
            sharded.backward(summed_loss(sharded.model, batch), last=last)
        with suppress(DataDependentOutputException):  # the gradient's norm as a number, after the step
            sharded.step(1e-3)
    return live.peak


def llama_config(shape: Shape, config: TrainConfig) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
        attention_dropout=config.model.dropout,
    )


def _batch(tokens: int, trained: int, conversations: int) -> Batch:
    each = tokens // conversations
    return Batch(
        torch.zeros((1, tokens), dtype=torch.int64),
        torch.arange(each).repeat(conversations)[None],
        torch.arange(trained),
        torch.zeros(trained, dtype=torch.int64),
        tuple(range(0, tokens + 1, each)),
    )


@contextmanager
def _processes(count: int) -> Iterator[World]:
    """The first of `count` processes that answer at once."""
    dist.init_process_group("fake", rank=0, world_size=count, store=FakeStore())
    try:
        nobody = cast(dist.ProcessGroup, None)
        mesh = init_device_mesh("cpu", (count,))
        yield World(0, count, torch.device("cpu"), "fake", mesh, nobody, nobody)
    finally:
        dist.destroy_process_group()
