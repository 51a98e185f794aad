"""Choices put into effect change the speed and nothing else."""

from __future__ import annotations

import os
import resource
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from tests.trainer.fake_flash import calls_of_the_flash_kernel
from tests.trainer.networks import llama, sharp
from trainer.attention import NAME
from trainer.choices import Installed, choose
from trainer.config import TrainConfig, override
from trainer.hardware import CARDS
from trainer.kernels import (
    as_chosen,
    detect,
    equip,
    free_host_bytes,
    installed,
    let_segments_grow,
    prepare,
    resident_bytes,
    tell,
)
from trainer.shortage import in_trials


def test_a_machine_without_a_card_is_a_cpu_whose_memory_its_processes_share() -> None:
    alone, four = detect(1), detect(4)
    assert (alone.kind, alone.count, alone.compute_capability) == ("cpu", 1, None)
    assert 0 < four.memory_bytes < alone.memory_bytes
    assert resident_bytes() < alone.memory_bytes


def test_what_is_installed_is_seen() -> None:
    found = installed()
    assert found.torch == torch.__version__ and found.varlen and found.bitsandbytes
    assert found.liger == (find_spec("liger_kernel") is not None)


def test_a_limit_of_the_process_counts_as_what_is_free() -> None:
    def limited(_: int) -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + (100 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        return free_host_bytes()

    assert 50 << 20 < in_trials(limited, 1)[0] <= 100 << 20
    assert free_host_bytes() > 100 << 20


def test_tf32_is_a_setting_of_the_process() -> None:
    def prepared(_: int) -> str:
        prepare(choose(CARDS["H100"], TrainConfig()))
        return torch.get_float32_matmul_precision()

    assert in_trials(prepared, 1) == ["high"]


def test_on_a_cpu_nothing_is_prepared_equipped_or_told(caplog: pytest.LogCaptureFixture) -> None:
    before, settings = torch.get_float32_matmul_precision(), dict(os.environ)
    let_segments_grow()
    choices, model = choose(detect(1), TrainConfig()), sharp(llama())
    forward = type(model).forward
    prepare(choices)
    equip(model, choices)
    tell(detect(1), choices)
    assert torch.get_float32_matmul_precision() == before and dict(os.environ) == settings
    assert model.config._attn_implementation == NAME and type(model).forward is forward
    assert not model._forward_pre_hooks and not caplog.messages


def test_a_card_without_bfloat16_makes_the_run_a_float32_one() -> None:
    config = TrainConfig()
    assert not as_chosen(config, choose(CARDS["T4"], config)).train.bf16
    assert as_chosen(config, choose(CARDS["A100"], config)) == config


def test_the_packed_kernel_is_put_into_a_model_that_was_built_without() -> None:
    calls = calls_of_the_flash_kernel()
    model = sharp(llama())
    equip(model, choose(CARDS["A100"], TrainConfig()))
    model(input_ids=torch.zeros(1, 4, dtype=torch.int64), boundaries=(0, 1, 4), use_cache=False)
    assert [starts.tolist() for starts in calls] == [[0, 1, 4]] * model.config.num_hidden_layers


def test_a_gpu_s_choices_are_told_with_their_reasons(caplog: pytest.LogCaptureFixture) -> None:
    card = CARDS["A100"].of(8)
    with caplog.at_level("INFO", "trainer"):
        tell(card, choose(card, TrainConfig()))
    assert caplog.messages[0] == "training on 8 x A100"
    assert any(message.startswith("reduce each: ") for message in caplog.messages)


def gradients(model: nn.Module, boundaries: tuple[int, ...]) -> list[Tensor]:
    length = boundaries[-1]
    ids = torch.randint(0, 97, (1, length), generator=torch.Generator().manual_seed(length))
    spans = zip(boundaries[:-1], boundaries[1:], strict=True)
    positions = torch.cat([torch.arange(end - start) for start, end in spans])[None]
    logits = model(input_ids=ids, position_ids=positions, boundaries=boundaries, use_cache=False).logits
    logits.square().sum().backward()
    found = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    return found


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's tracing asks every tensor
def test_compiled_layers_compute_the_same_and_are_compiled_once_for_rows_of_any_kind() -> None:
    """Under checkpointing; with torch's tracing and differentiation but without its C++ or Triton code."""
    config, _ = override(TrainConfig(), [("train.torch_compile", "true")])
    choices = choose(CARDS["H100"], config, Installed())
    plain, compiled = sharp(llama()).train(), sharp(llama()).train()
    for model in (plain, compiled):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    equip(compiled, replace(choices, attention="sdpa"), backend="aot_eager")
    rows = [(0, 7, 20), (0, 5), (0, 3, 9, 17, 31, 40)]
    graphs = []
    for boundaries in rows:
        for one, other in zip(gradients(compiled, boundaries), gradients(plain, boundaries), strict=True):
            assert (one - other).abs().max() <= 1e-4 * other.abs().max()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[-1] > 0
