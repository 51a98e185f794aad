"""Conversations packed into one row compute exactly what each computes alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MistralConfig, PreTrainedModel

from tests.trainer.fake_flash import calls_of_the_flash_kernel
from tests.trainer.networks import llama, sharp
from trainer.attention import conversation_attention, packed_attention, register
from trainer.errors import ConfigError

LENGTHS = (17, 1, 30, 8)
BOUNDARIES = (0, 17, 18, 48, 56)
CLOSE = 1e-5
APART = 0.1

every_kind_of_heads = pytest.mark.parametrize("key_value_heads", [4, 2, 1])


def documents() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randint(0, 97, (1, length)) for length in LENGTHS]


def packed(pieces: list[Tensor], **without: Any) -> dict[str, Any]:
    inputs = {
        "input_ids": torch.cat(pieces, dim=1),
        "position_ids": torch.cat([torch.arange(piece.shape[1]) for piece in pieces])[None],
        "boundaries": BOUNDARIES,
        "use_cache": False,
    }
    return inputs | without


def alone(model: PreTrainedModel, pieces: list[Tensor]) -> Tensor:
    return torch.cat([model(input_ids=piece, use_cache=False).logits for piece in pieces], dim=1)


def gradients(model: PreTrainedModel) -> list[Tensor]:
    found = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    return found


@every_kind_of_heads
def test_packed_logits_are_those_of_each_conversation_alone(key_value_heads: int) -> None:
    model = sharp(llama(num_key_value_heads=key_value_heads))
    with torch.no_grad():
        difference = model(**packed(documents())).logits - alone(model, documents())
    assert difference.abs().max() < CLOSE


@every_kind_of_heads
def test_alone_means_what_transformers_computes(key_value_heads: int) -> None:
    config = llama(num_key_value_heads=key_value_heads)
    ours, theirs = sharp(config), sharp(config, "eager")
    with torch.no_grad():
        difference = ours(**packed(documents())).logits - alone(theirs, documents())
    assert difference.abs().max() < CLOSE


def test_without_boundaries_they_see_one_another_and_the_comparison_notices() -> None:
    model = sharp(llama())
    with torch.no_grad():
        leaking = model(**packed(documents(), boundaries=None)).logits
        assert (leaking - alone(model, documents())).abs().max() > APART


def test_one_boundary_in_a_wrong_place_is_noticed() -> None:
    model = sharp(llama())
    with torch.no_grad():
        shifted = model(**packed(documents(), boundaries=(0, 16, 18, 48, 56))).logits
        assert (shifted - alone(model, documents())).abs().max() > APART


@every_kind_of_heads
def test_packed_gradients_are_the_sum_of_the_separate_ones(key_value_heads: int) -> None:
    model = sharp(llama(num_key_value_heads=key_value_heads))
    weights = torch.randn(1, sum(LENGTHS), 97, generator=torch.Generator().manual_seed(2))
    (alone(model, documents()) * weights).sum().backward()
    separate = gradients(model)
    (model(**packed(documents())).logits * weights).sum().backward()
    for one, other in zip(gradients(model), separate, strict=True):
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()


def test_gradient_checkpointing_changes_nothing() -> None:
    model = sharp(llama()).train()
    model(**packed(documents())).logits.square().sum().backward()
    stored = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model(**packed(documents())).logits.square().sum().backward()
    for one, other in zip(gradients(model), stored, strict=True):
        assert torch.equal(one, other)


def test_dropout_is_drawn_in_training_only() -> None:
    model = sharp(llama(attention_dropout=0.5))
    torch.manual_seed(3)
    with torch.no_grad():
        evaluated = model(**packed(documents())).logits
        trained = model.train()(**packed(documents())).logits
    assert (evaluated - alone(model.eval(), documents())).abs().max() < CLOSE
    assert (evaluated - trained).abs().max() > APART


def test_an_attention_mask_is_refused() -> None:
    query = torch.randn(1, 4, 6, 8)
    with pytest.raises(ValueError, match="no attention_mask"):
        conversation_attention(torch.nn.Module(), query, query, query, torch.ones(1, 1, 6, 6))


def test_no_mask_is_built_from_one_that_a_caller_passes() -> None:
    model = sharp(llama())
    with torch.no_grad():
        plain = model(**packed(documents())).logits
        masked = model(**packed(documents()), attention_mask=torch.ones(1, sum(LENGTHS))).logits
    assert torch.equal(plain, masked)


def test_a_window_shorter_than_a_conversation_is_refused_and_a_longer_one_changes_nothing() -> None:
    def windowed(window: int | None) -> PreTrainedModel:
        shape = llama().to_dict() | {"sliding_window": window}
        return sharp(MistralConfig(**{key: value for key, value in shape.items() if key != "model_type"}))

    with torch.no_grad():
        unlimited = windowed(None)(**packed(documents())).logits
        assert torch.equal(windowed(30)(**packed(documents())).logits, unlimited)
        with pytest.raises(ConfigError, match="30 tokens exceeds the base model's attention window of 29"):
            windowed(29)(**packed(documents()))


def test_attention_that_this_is_not_is_refused() -> None:
    query = torch.randn(1, 4, 6, 8)
    with pytest.raises(ConfigError, match="not supported"):
        conversation_attention(torch.nn.Module(), query, query, query, None, softcap=50.0)


def test_the_packed_kernel_computes_the_same_forward_and_backward() -> None:
    calls_of_the_flash_kernel()
    for key_value_heads in (4, 2, 1):
        inputs = [torch.randn(1, heads, 56, 8, requires_grad=True) for heads in (4, *2 * [key_value_heads])]
        apart = conversation_attention(torch.nn.Module(), *inputs, None, boundaries=BOUNDARIES, scaling=0.4)[
            0
        ]
        packed_row = packed_attention(torch.nn.Module(), *inputs, None, boundaries=BOUNDARIES, scaling=0.4)[0]
        assert (packed_row - apart).abs().max() < CLOSE
        weights = torch.randn_like(apart)
        separate = torch.autograd.grad(apart, inputs, weights)
        together = torch.autograd.grad(packed_row, inputs, weights)
        for one, other in zip(together, separate, strict=True):
            assert (one - other).abs().max() <= 1e-5 * other.abs().max()


def test_the_packed_kernel_gets_the_boundaries_of_a_row_once_as_int32() -> None:
    calls = calls_of_the_flash_kernel()
    model = sharp(llama(), register("varlen")).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model(**packed(documents())).logits.sum().backward()
    layers = model.config.num_hidden_layers
    assert len(calls) == 2 * layers  # again where it is recomputed
    assert len({id(starts) for starts in calls}) == 1
    assert calls[0].dtype == torch.int32
    assert calls[0].tolist() == list(BOUNDARIES)


def test_the_packed_kernel_refuses_what_it_would_compute_otherwise() -> None:
    calls_of_the_flash_kernel()
    query = torch.randn(1, 4, 6, 8)
    with pytest.raises(ConfigError, match="no dropout"):
        packed_attention(torch.nn.Module(), query, query, query, None, dropout=0.1)
    with pytest.raises(ValueError, match="no attention_mask"):
        packed_attention(torch.nn.Module(), query, query, query, torch.ones(1, 1, 6, 6))
    with pytest.raises(ConfigError, match="6 tokens exceeds the base model's attention window of 5"):
        packed_attention(torch.nn.Module(), query, query, query, None, sliding_window=5)
