"""What is chosen on each card from a P40 to an H200, why, and what is refused with what to do instead."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.choices import Choices, Installed, choose
from trainer.config import TrainConfig, override
from trainer.errors import ConfigError, NotReady
from trainer.hardware import CARDS, GIB, Hardware

CPU = Hardware("CPU", "cpu", 1, 8 * GIB)
FUTURE = Hardware("B200", "cuda", 1, 180 * GIB, (10, 0))
CONSUMER_BLACKWELL = Hardware("RTX5090", "cuda", 1, 31 * GIB, (12, 0))
OLD = ("P40", "P100", "V100", "V100-32GB", "T4")
NEW = ("A10", "A10G", "L4", "RTX3090", "RTX4090", "A100", "A100-80GB", "L40S", "H100", "H200")
WITHOUT_192 = ("A10", "A10G", "L4", "RTX3090", "RTX4090", "L40S")


def config(**settings: Any) -> TrainConfig:
    given = [(key.replace("__", "."), str(value)) for key, value in settings.items()]
    return override(TrainConfig(), given)[0]


def on(card: str, installed: Installed | None = None, head_dim: int = 128, **settings: Any) -> Choices:
    return choose(CARDS[card], config(**settings), installed, head_dim)


@pytest.mark.parametrize("card", OLD)
def test_cards_before_ampere_compute_in_float32_with_the_kernel_that_torch_picks(card: str) -> None:
    chosen = on(card)
    assert (chosen.bf16, chosen.attention, chosen.tf32) == (False, "sdpa", False)
    assert "has no units for it" in chosen.reasons["bf16"]
    assert "loss scaling" in chosen.reasons["bf16"]
    assert "needs compute capability 8.0" in chosen.reasons["attention"]


@pytest.mark.parametrize("card", NEW)
def test_cards_since_ampere_compute_in_bfloat16_with_packed_flash_attention(card: str) -> None:
    chosen = on(card)
    assert (chosen.bf16, chosen.attention, chosen.tf32) == (True, "varlen", True)


def test_a_cpu_computes_as_the_config_says_without_any_kernel_of_a_gpu() -> None:
    chosen = choose(CPU, config(), Installed(liger=True))
    assert (chosen.bf16, chosen.attention, chosen.liger, chosen.compile) == (True, "sdpa", False, False)
    assert (chosen.tf32, chosen.reduce_each, chosen.allocator) == (False, False, None)
    assert not choose(CPU, config(train__bf16="false")).bf16


@pytest.mark.parametrize("card", WITHOUT_192)
@pytest.mark.parametrize("head_dim", [200, 224, 256])
def test_no_kernel_is_chosen_whose_backward_pass_the_card_cannot_run(card: str, head_dim: int) -> None:
    """Eight RTX 4090 stood still for this: a forward pass that ran and a backward pass that did not."""
    chosen = on(card, head_dim=head_dim)
    assert chosen.attention == "sdpa"
    assert "exceed the 192 that flash attention runs backward" in chosen.reasons["attention"]
    with pytest.raises(ConfigError, match="runs backward") as refused:
        on(card, head_dim=head_dim, train__attn_implementation="varlen")
    assert refused.value.hint and "auto" in refused.value.hint


@pytest.mark.parametrize("card", ["A100", "A100-80GB", "H100", "H200"])
def test_data_centre_chips_run_heads_of_256_backward(card: str) -> None:
    assert on(card, head_dim=256).attention == "varlen"


def test_later_chips_are_judged_by_their_capability() -> None:
    assert choose(FUTURE, config(), head_dim=256).attention == "varlen"
    assert choose(CONSUMER_BLACKWELL, config(), head_dim=256).attention == "sdpa"
    assert choose(CONSUMER_BLACKWELL, config(), head_dim=128).attention == "varlen"


@pytest.mark.parametrize(("head_dim", "wanted"), [(64, "varlen"), (100, "sdpa"), (264, "sdpa")])
def test_heads_that_flash_attention_does_not_take_go_to_another_kernel(head_dim: int, wanted: str) -> None:
    assert on("H100", head_dim=head_dim).attention == wanted


def test_attention_with_dropout_is_not_packed() -> None:
    chosen = choose(CARDS["H100"], config(), attention_dropout=0.1)
    assert chosen.attention == "sdpa" and "has no dropout" in chosen.reasons["attention"]


def test_float32_training_and_an_old_torch_have_no_packed_attention() -> None:
    assert on("H100", train__bf16="false").attention == "sdpa"
    assert on("H100", Installed(torch="2.8", varlen=False)).attention == "sdpa"


@pytest.mark.parametrize("card", OLD)
def test_packed_attention_by_name_is_refused_where_it_cannot_run(card: str) -> None:
    with pytest.raises(ConfigError, match="compute capability 8.0"):
        on(card, train__attn_implementation="varlen")


def test_packed_attention_by_name_is_refused_on_a_cpu() -> None:
    with pytest.raises(ConfigError, match="needs a GPU"):
        choose(CPU, config(train__attn_implementation="varlen"))


def test_separate_attention_by_name_is_done_everywhere() -> None:
    for card in CARDS:
        assert on(card, train__attn_implementation="sdpa").attention == "sdpa"


def test_liger_is_taken_where_it_is_installed_and_runs() -> None:
    there = Installed(liger=True)
    assert on("H100", there).liger and on("RTX3090", there).liger
    assert not on("T4", there).liger
    assert not on("H100").liger and "pip install liger-kernel" in on("H100").reasons["liger"]
    assert not on("H100", there, train__use_liger_kernel="false").liger


def test_liger_by_name_is_refused_where_it_is_missing_or_cannot_run() -> None:
    with pytest.raises(NotReady, match="not installed") as missing:
        on("H100", train__use_liger_kernel="true")
    assert missing.value.hint == "pip install liger-kernel"
    with pytest.raises(ConfigError, match="8.0, not T4"):
        on("T4", Installed(liger=True), train__use_liger_kernel="true")
    with pytest.raises(ConfigError, match="not a CPU"):
        choose(CPU, config(train__use_liger_kernel="true"), Installed(liger=True))


def test_nothing_is_compiled_unless_it_is_asked_for() -> None:
    assert not on("H100").compile and "at each start" in on("H100").reasons["compile"]
    assert on("H100", train__torch_compile="true").compile
    assert on("V100", train__torch_compile="true").compile
    for card in ("P40", "P100"):
        with pytest.raises(ConfigError, match="7.0 and later"):
            on(card, train__torch_compile="true")


def test_the_eight_bit_optimiser_needs_bitsandbytes() -> None:
    assert on("A10", train__optim="adamw_bnb_8bit").optimiser == "adamw_bnb_8bit"
    with pytest.raises(NotReady, match="bitsandbytes"):
        on("A10", Installed(bitsandbytes=False), train__optim="adamw_bnb_8bit")


def test_tf32_is_left_off_where_the_config_says_so() -> None:
    assert not on("A100", train__tf32="false").tf32


def test_gradients_of_a_whole_model_are_reduced_after_every_pass_on_a_gpu() -> None:
    assert on("A100").reduce_each
    assert not on("A100", train__method="lora").reduce_each
    assert not on("A100", parallel__strategy="deepspeed").reduce_each


def test_eight_bit_weights_on_a_card_that_cannot_multiply_them_are_told_of() -> None:
    for card in ("P40", "P100", "V100"):
        assert "--method qlora" in on(card, train__method="lora", lora__load_8bit="true").reasons["base"]
    assert "base" not in on("T4", train__method="lora", lora__load_8bit="true").reasons


# torch.cuda.get_arch_list() of 2.13's wheels: CUDA 12.6 and 13.0 (pytorch/pytorch#172352).
CU126 = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
CU130 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")


@pytest.mark.parametrize("card", ["P40", "P100", "V100", "V100-32GB"])
def test_a_torch_that_is_not_built_for_the_card_is_refused_with_the_one_that_is(card: str) -> None:
    with pytest.raises(NotReady, match="not built for") as refused:
        on(card, Installed(architectures=CU130))
    assert refused.value.hint and "whl/cu126" in refused.value.hint
    assert on(card, Installed(architectures=CU126)).attention == "sdpa"


@pytest.mark.parametrize("card", ["T4", *NEW])
def test_the_usual_torch_runs_on_cards_since_turing(card: str) -> None:
    on(card, Installed(architectures=CU130))


def test_a_card_newer_than_torch_runs_what_can_be_compiled_for_it() -> None:
    unborn = Hardware("X", "cuda", 1, GIB, (13, 0))
    choose(unborn, config(), Installed(architectures=CU130))
    with pytest.raises(NotReady, match="not built for"):
        choose(unborn, config(), Installed(architectures=CU126))


def test_every_choice_that_differs_from_the_plain_one_has_its_reason() -> None:
    for card in CARDS:
        chosen = on(card, Installed(liger=True))
        for field in ("bf16", "attention", "liger", "tf32"):
            assert field in chosen.reasons or not getattr(chosen, field)
        assert all(reason and not reason.endswith(".") for reason in chosen.reasons.values())
