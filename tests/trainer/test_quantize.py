"""A quantised base is the one that anybody would load, stays whole, and is not rewritten behind our back."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from tests.trainer.networks import llama
from trainer import adapters, quantize
from trainer import model as building
from trainer.config import LoraSection, TrainConfig
from trainer.fsdp import FullyShardedModel
from trainer.parallel import World, joined

CPU = torch.device("cpu")
SHAPE = llama(hidden_size=64, intermediate_size=128)
every_kind = pytest.mark.parametrize("kind", ["lora-8bit", "qlora"])
TOKENS = torch.arange(40)[None]

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(SHAPE).save_pretrained(folder)
    return folder


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with joined(0, 1, f"file://{tmp_path}/rendezvous", threads=1) as one:
        yield one


def loaded(base: Path, kind: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return quantize.load(base, SHAPE, kind, dtype, CPU)


def adapted(base: Path, kind: str) -> PreTrainedModel:
    """With adapters that have weights."""
    model = loaded(base, kind)
    adapters.adapt(model, LoraSection(target_modules="all-linear", dropout=0.0))
    source, names = adapters.beginning(model, None, seed=0), building.unfilled(model)
    building.allocate(model, CPU)
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).copy_(source(name))
    return model


def contents(model: nn.Module) -> dict[str, Tensor]:
    """All bytes of all weights, with the scales of the quantised ones."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@every_kind
def test_linear_layers_but_the_head_are_quantised_and_the_rest_has_the_dtype_of_the_computation(
    base: Path, kind: str
) -> None:
    model = loaded(base, kind, torch.bfloat16)
    kept = {"Int8Params": torch.int8, "Params4bit": torch.uint8}
    for name, parameter in model.named_parameters():
        if "_proj" in name:
            assert parameter.dtype == kept[type(parameter).__name__]
        else:
            assert parameter.dtype == torch.bfloat16 and type(parameter) is nn.Parameter
    assert len(quantize.whole(model)) == 14


@every_kind
def test_it_has_the_bytes_that_transformers_gives_to_anybody(base: Path, kind: str) -> None:
    asked = (
        BitsAndBytesConfig(load_in_8bit=True)
        if kind == "lora-8bit"
        else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    )
    theirs = AutoModelForCausalLM.from_pretrained(base, quantization_config=asked, dtype=torch.float32)
    assert same(contents(loaded(base, kind)), contents(theirs))


def test_four_bit_takes_four_bits_and_an_eighth(tmp_path: Path) -> None:
    shape = llama(hidden_size=512, intermediate_size=1024)
    AutoModelForCausalLM.from_config(shape).save_pretrained(tmp_path)
    model = quantize.load(tmp_path, shape, "qlora", torch.float32, CPU)
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    held = [layer.weight.data, layer.weight.quant_state.absmax, layer.weight.quant_state.state2.absmax]
    bits = 8 * sum(tensor.numel() * tensor.element_size() for tensor in held) / (512 * 1024)
    assert bits == pytest.approx(4.127, abs=0.001)


@every_kind
def test_a_forward_pass_leaves_its_bytes_as_they_are_in_training_and_out_of_it(base: Path, kind: str) -> None:
    """bitsandbytes repacks 4-bit weights for a faster kernel on some CPUs, and rounds their scales in doing so."""
    model = loaded(base, kind)
    before = {name: weight.data.clone() for name, weight in model.named_parameters()}
    with torch.no_grad():
        first = model.eval()(input_ids=TOKENS, use_cache=False).logits
        model.train()(input_ids=TOKENS, use_cache=False)
        again = model.eval()(input_ids=TOKENS, use_cache=False).logits
    assert torch.equal(first, again)
    assert all(torch.equal(before[name], weight.data) for name, weight in model.named_parameters())


@every_kind
def test_each_process_keeps_it_whole_and_spreads_the_rest(base: Path, world: World, kind: str) -> None:
    model = loaded(base, kind)
    adapters.adapt(model, LoraSection(target_modules="all-linear"))
    config = TrainConfig.model_validate({"train": {"bf16": False}})
    before = {name: p.data.clone() for name, p in model.named_parameters() if "base_layer" in name}
    sharded = FullyShardedModel(model, config, world)
    sharded.fill(adapters.beginning(model, None, seed=0))
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor) != (name in before)
        assert not parameter.is_meta
        if name in before:
            assert torch.equal(parameter.data, before[name])


@every_kind
def test_gradients_of_adapters_are_those_on_the_dequantised_weights(base: Path, kind: str) -> None:
    """Out of training 8-bit activations would differ; in training a CPU multiplies with the dequantised weights."""
    from peft.utils.integrations import dequantize_bnb_weight

    model, plain = adapted(base, kind), AutoModelForCausalLM.from_pretrained(base)
    model.train()(input_ids=TOKENS, use_cache=False)
    for name, module in model.named_modules():
        if name.endswith("base_layer"):
            weight = dequantize_bnb_weight(module.weight, getattr(module, "state", None))
            plain.get_submodule(name.removesuffix(".base_layer")).weight.data = weight.float()
    adapters.adapt(plain, LoraSection(target_modules="all-linear", dropout=0.0))
    source, names = adapters.beginning(plain, None, seed=0), building.unfilled(plain)
    building.allocate(plain, CPU)
    with torch.no_grad():
        for name in names:
            plain.get_parameter(name).copy_(source(name))
    for one in (model, plain):
        one.train()(input_ids=TOKENS, use_cache=False).logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.allclose(parameter.grad, plain.get_parameter(name).grad, rtol=1e-3, atol=1e-7)


def held_activations(model: PreTrainedModel, length: int) -> int:
    """Bytes that a forward pass holds on to for its backward pass."""
    output = model(input_ids=torch.zeros(1, length, dtype=torch.long), use_cache=False).logits
    gc.collect()
    held: dict[int, int] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of objects that do not like to be asked what they are
        for thing in gc.get_objects():
            if type(thing) is Tensor and length in thing.shape:
                storage = thing.untyped_storage()
                held[storage.data_ptr()] = storage.nbytes()
    del output
    return sum(held.values())


def test_gradient_checkpointing_holds_as_little_on_8_bits_as_on_16(base: Path) -> None:
    """bitsandbytes holds each layer's input where checkpointing does not see it."""
    held = {}
    for kind in ("lora-8bit", "qlora"):
        model = adapted(base, kind).train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        held[kind] = held_activations(model, 1009)
    assert held["lora-8bit"] == held["qlora"]


@every_kind
def test_bitsandbytes_is_quiet(base: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model = adapted(base, kind)
        model.eval()(input_ids=TOKENS, use_cache=False)
        model.train()(input_ids=TOKENS, use_cache=False).logits.sum().backward()
    assert caplog.records == []
