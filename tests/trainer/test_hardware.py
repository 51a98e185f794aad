"""Cards are found by what their drivers call them, and never mistaken for a cousin."""

from __future__ import annotations

import pytest

from trainer.hardware import CARDS, GIB, Hardware, card_named

DRIVERS = {
    "Tesla P40": "P40",
    "Tesla P100-PCIE-16GB": "P100",
    "Tesla V100-SXM2-16GB": "V100",
    "Tesla V100-SXM2-32GB": "V100-32GB",
    "Tesla T4": "T4",
    "NVIDIA A10": "A10",
    "NVIDIA A10G": "A10G",
    "NVIDIA L4": "L4",
    "NVIDIA GeForce RTX 3090": "RTX3090",
    "NVIDIA GeForce RTX 4090": "RTX4090",
    "NVIDIA A100-SXM4-40GB": "A100",
    "NVIDIA A100-SXM4-80GB": "A100-80GB",
    "NVIDIA A100 80GB PCIe": "A100-80GB",
    "NVIDIA L40S": "L40S",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA H200": "H200",
}


@pytest.mark.parametrize(("driver", "name"), DRIVERS.items())
def test_a_card_is_found_by_its_driver_name(driver: str, name: str) -> None:
    assert card_named(driver) == CARDS[name]


@pytest.mark.parametrize(
    "driver",
    [
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA L40",
        "NVIDIA H100 PCIe",
        "NVIDIA H100 NVL",
        "NVIDIA RTX A6000",
    ],
)
def test_a_cousin_of_a_known_card_is_unknown(driver: str) -> None:
    assert card_named(driver) is None


def test_the_memory_tells_two_sizes_apart_where_the_name_does_not() -> None:
    assert card_named("NVIDIA A100-SXM4", 79 * GIB) == CARDS["A100-80GB"]
    assert card_named("NVIDIA A100-SXM4", 39 * GIB) == CARDS["A100"]


def test_every_card_of_the_table_has_plausible_figures() -> None:
    for name, card in CARDS.items():
        assert card.name == name and card.kind == "cuda" and card.count == 1
        assert card.compute_capability and (6, 0) <= card.compute_capability <= (9, 0)
        assert 10 * GIB < card.memory_bytes < 144 * GIB
        assert (card.bf16_tflops is not None) == card.bf16
        assert card.float32_tflops and card.bandwidth_gb_s


def test_bfloat16_units_came_with_ampere() -> None:
    without = {name for name, card in CARDS.items() if not card.bf16}
    assert without == {"P40", "P100", "V100", "V100-32GB", "T4"}
    assert Hardware("CPU", "cpu", 1, GIB).bf16


def test_several_cards_are_one_value() -> None:
    assert CARDS["A100"].of(8).count == 8
    assert CARDS["A100"].of(8).memory_bytes == CARDS["A100"].memory_bytes
