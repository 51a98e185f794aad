"""What a machine's processors are, as a value: the choice of kernels and the memory estimate are functions of it.

Light, so that a laptop can plan for a card that it does not have. detect.py fills the same record from the machine
that it runs on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

GIB = 1 << 30

Capability = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Hardware:
    """The processors of one machine, all of one kind."""

    name: str
    """As CARDS and SkyPilot call it; for a card that is not in CARDS, as its driver does."""
    kind: Literal["cpu", "cuda"]
    count: int
    """Cards; of a CPU machine, the processes that share its memory."""
    memory_bytes: int
    """Of one card, as torch reports it (total_memory); of a CPU machine, one process's share of what is free."""
    compute_capability: Capability | None = None
    """NVIDIA's, e.g. (8, 0); None for a CPU."""
    bf16_tflops: float | None = None
    """Dense bfloat16 matrix products accumulated in float32; None where the card has no such unit or is unknown."""
    float32_tflops: float | None = None
    """Plain float32, without TF32."""
    bandwidth_gb_s: float | None = None
    """Peak of the card's own memory, GB/s."""

    @property
    def bf16(self) -> bool:
        """Whether bfloat16 matrix products run on units of their own: Ampere (8.0) was the first to have them."""
        return self.kind == "cpu" or (self.compute_capability or (0, 0)) >= (8, 0)

    def of(self, count: int) -> Hardware:
        return replace(self, count=count)


# Memory: what torch reports as total, in GiB, which is less than the card's label says: the lowest figure seen in
# torch's own out-of-memory messages in public issues (named per row), or nvidia-smi's less what like cards lose.
# Speed: NVIDIA's data sheets and whitepapers, without sparsity, accumulated in float32. Collected in November 2026.
# Volta and Turing have float16 units (V100 125, T4 65 TFLOP/s), useless without loss scaling, which we do not do.
def _card(
    name: str, gib: float, capability: Capability, bf16: float | None, float32: float, gb_s: float
) -> Hardware:
    return Hardware(name, "cuda", 1, int(gib * GIB), capability, bf16, float32, gb_s)


_TABLE = (
    _card("P40", 22.38, (6, 1), None, 11.8, 346),  # LLaMA-Adapter#151; P40 data sheet 2016
    _card("P100", 15.90, (6, 0), None, 10.6, 732),  # messages of Colab's card; P100 SXM2 data sheet 2016
    _card("V100", 15.75, (7, 0), None, 15.7, 900),  # GPT2-Chinese#215; V100 SXM2 data sheet 2020
    _card("V100-32GB", 31.74, (7, 0), None, 15.7, 900),  # ChatGLM-Finetuning#73; the same
    _card("T4", 14.56, (7, 5), None, 8.1, 320),  # CatVTON#133; T4 data sheet 2019
    _card("A10", 21.99, (8, 6), 125, 31.2, 600),  # CogVLM#236; A10 data sheet 2021
    _card("A10G", 21.99, (8, 6), 70, 31.5, 600),  # A10's 23028 MiB; AWS's G5 data sheet 2021
    _card("L4", 22.00, (8, 9), 121, 30.3, 300),  # 23034 MiB (modal-client#2797) as A10; L4 data sheet 2023
    _card("RTX3090", 23.50, (8, 6), 71, 35.6, 936),  # havatar#6; GA102 whitepaper 2020
    _card("RTX4090", 23.52, (8, 9), 165, 82.6, 1008),  # SoulX-FlashTalk#5; Ada whitepaper 2022
    _card("A100", 39.50, (8, 0), 312, 19.5, 1555),  # CoSeR#10; A100 SXM data sheet 2021
    _card("A100-80GB", 79.25, (8, 0), 312, 19.5, 2039),  # Vad-R1#11; the same
    _card("L40S", 44.40, (8, 9), 362, 91.6, 864),  # Qwen3-VL#2097 (an L40); L40S data sheet 2023
    _card("H100", 79.11, (9, 0), 989, 67.0, 3350),  # vllm#27508; H100 SXM data sheet 2023
    _card("H200", 139.40, (9, 0), 989, 67.0, 4800),  # 143771 MiB, as H100; H200 data sheet 2024
)
CARDS: dict[str, Hardware] = {card.name: card for card in _TABLE}
"""One card each, by SkyPilot's names. Bare A100 and V100 are the smaller ones, as SkyPilot means them."""


def card_named(driver_name: str, memory_bytes: int | None = None) -> Hardware | None:
    """The card that a driver calls e.g. "NVIDIA A100-SXM4-80GB" or "Tesla V100-SXM2-16GB"; None if unknown.

    The memory decides between two sizes of one card where the name does not say.
    """
    words = set(re.split(r"[^A-Z0-9]+", driver_name.upper()))
    joined = re.sub(r"[^A-Z0-9]", "", driver_name.upper())
    # A PCIe H100 is slower than the table's, a 4090 D is not a 4090: better no figure than a wrong one.
    if words & {"D", "NVL", "LAPTOP", "MOBILE", "SUPER", "TI"} or ("H100" in words and "PCIE" in words):
        return None
    fitting = [
        card
        for card in CARDS.values()
        if (model := card.name.partition("-")[0]) in words
        or (model.startswith("RTX") and joined.endswith(model))
    ]
    if not fitting:
        return None
    if memory_bytes is None:
        stated = re.search(r"(\d+)\s*GB", driver_name.upper())
        memory_bytes = int(stated[1]) * GIB if stated else min(card.memory_bytes for card in fitting)
    return min(fitting, key=lambda card: abs(card.memory_bytes - memory_bytes))
