"""What the libraries cannot do is refused by name before anything is written; all else is let through."""

from __future__ import annotations

from itertools import product
from typing import Any, get_args

import pytest

from trainer.config import Method, Offload, Strategy, TrainConfig
from trainer.errors import ConfigError
from trainer.methods import IMPOSSIBLE, KINDS, SPREADS, impossible, kind, refuse_impossible, spread


def config_of(method: str, *, load_8bit: bool = False, **parallel: Any) -> TrainConfig:
    tree = {"train": {"method": method}, "lora": {"load_8bit": load_8bit}, "parallel": parallel}
    return TrainConfig.model_validate(tree)


def every_config() -> list[TrainConfig]:
    methods = [("full", False), ("lora", False), ("lora", True), ("qlora", False)]
    strategies = [("fsdp", 2), ("deepspeed", 2), ("deepspeed", 3)]
    return [
        config_of(method, load_8bit=load_8bit, strategy=strategy, zero_stage=stage, offload=offload)
        for (method, load_8bit), (strategy, stage), offload in product(methods, strategies, get_args(Offload))
    ]


def test_every_method_and_strategy_of_the_config_has_its_place_in_the_table() -> None:
    assert {kind(config) for config in every_config()} == set(KINDS)
    assert {spread(config) for config in every_config()} == set(SPREADS)
    assert {config.train.method for config in every_config()} == set(get_args(Method))
    assert {config.parallel.strategy for config in every_config()} == set(get_args(Strategy))


def test_each_entry_of_the_table_refuses_something_with_its_own_reason() -> None:
    found = {entry for config in every_config() if (entry := impossible(config))}
    assert found == set(IMPOSSIBLE)
    for config in every_config():
        if entry := impossible(config):
            with pytest.raises(ConfigError) as caught:
                refuse_impossible(config)
            assert entry.reason in caught.value.message
            assert kind(config) in caught.value.message and spread(config) in caught.value.message
            assert caught.value.hint == entry.hint
        else:
            refuse_impossible(config)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("offload", ["none", "all"])
def test_fsdp_does_every_method_with_and_without_offload(method: str, offload: str) -> None:
    refuse_impossible(config_of(method, offload=offload))


def test_fsdp_cannot_move_the_optimiser_alone() -> None:
    with pytest.raises(ConfigError, match="full with fsdp: .*optimiser alone") as caught:
        refuse_impossible(config_of("full", offload="optimizer"))
    assert caught.value.hint and "parallel.offload=all" in caught.value.hint


@pytest.mark.parametrize("method", ["full", "qlora"])
def test_a_base_in_8_bit_is_refused_where_the_method_has_none(method: str) -> None:
    with pytest.raises(ConfigError, match=f"load_8bit is for --method lora, not {method}"):
        refuse_impossible(config_of(method, load_8bit=True))
