"""The network that is trained is the one that Hugging Face would build or load, however it is spread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from tests.trainer.dialogues import FAMILIES, save
from tests.trainer.killing import Death, live
from tests.trainer.networks import llama
from tests.trainer.runs import create_run, write_corpus
from trainer.artifacts.metrics import StepRecord, read_metrics
from trainer.artifacts.store import open_store
from trainer.config import ModelSection, TrainConfig
from trainer.errors import ConfigError
from trainer.fsdp import FullyShardedModel, decoder_layers
from trainer.model import (
    allocate,
    base_weights,
    model_config,
    parameter_count,
    random_weights,
    skeleton,
    unfilled,
    write_random,
)
from trainer.parallel import Source, World, joined

every_tying = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with joined(0, 1, f"file://{tmp_path_factory.mktemp('world')}/rendezvous", threads=1) as one:
        yield one


def filled(
    shape: LlamaConfig, world: World, source: Callable[[PreTrainedModel], Source | None]
) -> PreTrainedModel:
    """A sharded model with weights of the source made for it."""
    model = skeleton(shape)
    sharded = FullyShardedModel(model, TrainConfig.model_validate({"train": {"bf16": False}}), world)
    sharded.fill(source(model))
    return model


def based(shape: LlamaConfig, world: World, folder: Path) -> PreTrainedModel:
    return filled(shape, world, lambda model: base_weights(folder, model))


def whole(model: PreTrainedModel) -> dict[str, Tensor]:
    return {
        name: parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        for name, parameter in model.named_parameters()
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- from nothing -----------------------------------------------------------------------------


def test_a_skeleton_of_13_billion_weights_takes_no_memory() -> None:
    shape = LlamaConfig(
        hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40
    )
    model = skeleton(shape)
    assert 12.9e9 < parameter_count(model) < 13.1e9
    assert all(parameter.is_meta for parameter in model.parameters())
    assert len(decoder_layers(model)) == 40


@every_tying
def test_random_weights_are_those_that_transformers_draws(world: World, tied: bool) -> None:
    shape = llama(tie_word_embeddings=tied)
    model = filled(shape, world, lambda _: random_weights(shape, seed=5))
    torch.manual_seed(5)
    theirs = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
    assert same(whole(model), dict(theirs.named_parameters()))


def test_drawing_weights_leaves_the_random_stream_where_it_was() -> None:
    torch.manual_seed(6)
    before = torch.get_rng_state()
    random_weights(llama(), seed=5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 10_000.0},
        {"rope_type": "default", "rope_theta": 500_000.0},
        {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
        {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0},
        {
            "rope_type": "llama3",
            "rope_theta": 10_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=lambda rope: f"{rope['rope_type']}-{rope['rope_theta']:.0f}",
)
def test_what_no_checkpoint_holds_is_computed_anew(world: World, rope: dict[str, Any]) -> None:
    shape = llama(rope_parameters=rope)
    ours = dict(filled(shape, world, lambda _: None).named_buffers())
    theirs = dict(AutoModelForCausalLM.from_config(shape).named_buffers())
    assert theirs and same(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_no_checkpoint_holds_has_the_precision_that_transformers_gives_it(
    world: World, tmp_path: Path, dtype: torch.dtype
) -> None:
    write_random(llama(), 5, tmp_path)
    model = skeleton(llama(), dtype)
    allocate(model, world.device)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert same(dict(model.named_buffers()), dict(theirs.named_buffers()))


@every_tying
def test_written_random_weights_are_a_folder_that_transformers_loads(tmp_path: Path, tied: bool) -> None:
    write_random(llama(tie_word_embeddings=tied), 5, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    drawn = random_weights(llama(tie_word_embeddings=tied), seed=5)
    assert same(dict(theirs.named_parameters()), {name: drawn(name) for name, _ in theirs.named_parameters()})
    assert theirs.config.architectures == ["LlamaForCausalLM"] and theirs.config.use_cache


def test_memory_is_given_only_to_what_has_none(world: World) -> None:
    model = skeleton(llama())
    there = torch.ones(32)
    model.model.norm.weight = torch.nn.Parameter(there.clone())
    assert len(unfilled(model)) == len(list(model.parameters())) - 1
    allocate(model, world.device)
    assert not unfilled(model) and torch.equal(model.model.norm.weight, there)


# --- from a base model ------------------------------------------------------------------------


@every_tying
@pytest.mark.parametrize("shard_size", ["1GB", "10KB"], ids=["one file", "many files"])
def test_a_base_model_is_loaded_exactly(world: World, tmp_path: Path, tied: bool, shard_size: str) -> None:
    shape = llama(tie_word_embeddings=tied)
    base = AutoModelForCausalLM.from_config(shape)
    base.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard_size == "10KB")
    model = based(shape, world, tmp_path)
    assert same(whole(model), dict(base.named_parameters()))


def test_a_base_model_in_half_precision_is_trained_in_full(world: World, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_config(llama(), dtype=torch.bfloat16)
    base.save_pretrained(tmp_path)
    model = based(llama(), world, tmp_path)
    assert same(whole(model), {name: weight.float() for name, weight in base.named_parameters()})


def test_a_base_model_gives_the_logits_that_transformers_gives(world: World, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(llama(tie_word_embeddings=True)).save_pretrained(tmp_path)
    model = based(llama(tie_word_embeddings=True), world, tmp_path)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path)(tokens).logits
        assert torch.allclose(model(input_ids=tokens, use_cache=False).logits, theirs, atol=1e-6)


def test_pickled_weights_are_refused(world: World, tmp_path: Path) -> None:
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="no .safetensors file") as caught:
        base_weights(tmp_path, skeleton(llama()))
    assert caught.value.hint and ".bin" in caught.value.hint


def test_a_base_model_that_lacks_weights_is_refused_by_name(world: World, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(llama(num_hidden_layers=1)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"lacks model\.layers\.1\.\S+ and \d+ more"):
        base_weights(tmp_path, skeleton(llama()))


def test_a_base_model_of_another_shape_is_refused_by_name(world: World, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(llama(intermediate_size=48)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"mlp.* has shape \[48, 32\], its config.json means \[64, 32\]"):
        base_weights(tmp_path, skeleton(llama()))


# --- its config -------------------------------------------------------------------------------


def config_of(**model: Any) -> TrainConfig:
    return TrainConfig(model=ModelSection(**model))


def test_the_config_takes_vocabulary_and_special_tokens_from_the_tokeniser() -> None:
    tokeniser = FAMILIES["byte-level"]()
    shape = model_config(config_of(shape={"hidden_size": 32}, dropout=0.25), tokeniser, None)
    assert (shape.model_type, shape.vocab_size, shape.hidden_size) == ("llama", len(tokeniser), 32)
    assert (shape.bos_token_id, shape.eos_token_id, shape.pad_token_id) == (1, 2, 0)
    assert shape.attention_dropout == 0.25
    assert shape.max_position_embeddings == TrainConfig().data.max_length


def test_a_tokeniser_larger_than_the_base_model_is_refused(tmp_path: Path) -> None:
    llama(vocab_size=300).save_pretrained(tmp_path)
    tokeniser = FAMILIES["byte-level"]()
    with pytest.raises(ConfigError, match=f"{len(tokeniser)} tokens, the base model only 300"):
        model_config(config_of(), tokeniser, tmp_path)


def test_a_base_model_that_is_quantised_already_is_refused(tmp_path: Path) -> None:
    quantised = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    llama(vocab_size=1000, quantization_config=quantised).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="quantised already"):
        model_config(config_of(), FAMILIES["byte-level"](), tmp_path)


def test_rows_longer_than_the_base_model_has_positions_are_refused(tmp_path: Path) -> None:
    llama(vocab_size=1000, max_position_embeddings=2047).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="max_length 2048 exceeds the 2047 positions") as caught:
        model_config(config_of(), FAMILIES["byte-level"](), tmp_path)
    assert caught.value.hint == "--max-length 2047"


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"model_type": "llma"}, "llma"),
        ({"hidden_size": "large"}, "hidden_size"),
        ({"hidden_size": 32, "num_attention_heads": 5}, "not a multiple of the number of attention heads"),
    ],
)
def test_an_impossible_shape_is_refused(shape: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"model: .*{said}"):
        model_config(config_of(shape=shape), FAMILIES["byte-level"](), None)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    save(FAMILIES["byte-level"](), tmp_path)
    with pytest.raises(ConfigError, match="model: "):
        model_config(config_of(), FAMILIES["byte-level"](), tmp_path)


# --- spread over processes --------------------------------------------------------------------


def curve(folder: Path, processes: int) -> list[StepRecord]:
    corpus = write_corpus(folder / "train.jsonl", 40)
    run = str(folder / f"runs/with-{processes}")
    create_run(
        run, corpus, train__max_steps=5, train__global_batch_size=5, parallel__processes=processes,
        checkpoint__save_steps=100, model__dropout=0.0,
    )  # fmt: skip
    live(run, folder / f"box-{processes}", Death("never"))
    return read_metrics(open_store(run))[0]


def test_two_processes_compute_what_one_computes(tmp_path: Path) -> None:
    # Five rows per step: one process has three, the other two and an empty pass.
    for one, two in zip(curve(tmp_path, 1), curve(tmp_path, 2), strict=True):
        assert two.batch == one.batch
        assert two.loss == pytest.approx(one.loss, rel=1e-5)
        assert two.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)
