"""How long a run computes: operations per token, divided by what this program gets out of a card.

Utilisation is the share of the card's peak that the model's own operations reach (MFU: recomputation is not counted).
Published figures are of tuned pre-training, so a margin is taken off: rows are filled with conversations of all
lengths here, every step recomputes its activations, nothing is compiled. docs/decisions/018-plan-model.md compares the
result with the hours that the documents report. None of it was measured on a card of ours yet.
"""

from __future__ import annotations

from trainer import methods
from trainer.hardware import CARDS
from trainer.shape import Shape

# MFU of MPT-7B and -13B, FSDP, 2048 tokens, 8 cards: MosaicML llm-foundry, scripts/train/benchmarking/README.md, commit
# 061f2c7 (A100-80GB 13B 59.6 %, A100-40GB 43.9 %, H100 39.8 %). H200: Kempner Institute's KempnerForge benchmarks, 13B,
# FSDP over 8, recomputing (44.4 %).
_PUBLISHED = {"A100-80GB": 0.596, "A100": 0.439, "H100": 0.398, "H200": 0.444}
# Cards without NVLink have no such table: as the lowest above, for one card; less where a model is spread over several,
# because every layer then crosses the PCIe bus.
_ELSE, _ELSE_SPREAD = 0.40, 0.25
_MARGIN = 0.7
# Share of the rate that is left when the frozen base has to be unpacked. 4 bit: a run takes 39 % longer than plain
# LoRA (Raschka 2023, "Finetuning LLMs with LoRA and QLoRA", Lightning). 8 bit: LLM.int8() splits every product in two;
# from the single-16-GB-card document, whose A100 took 16 hours.
_UNPACKING: dict[methods.Kind, float] = {"full": 1.0, "lora": 1.0, "qlora": 0.72, "lora-8bit": 0.4}
# Sustained float32 rate of one CPU core training a small model, FLOP/s (docs/benchmarks.md).
_CORE_FLOPS = 35e9


def flops_per_token(shape: Shape, kind: methods.Kind, length: int) -> float:
    """Of one training step: 6 a weight (forward 2, backward 4; Kaplan et al. 2020, section 2.1), 4 where the base is
    frozen, and causal attention over half a row on average (Chowdhery et al. 2022, appendix B)."""
    per_weight = 6.0 if kind == "full" else 4.0
    attention = 2.0 * per_weight * shape.layers * shape.heads * shape.head_dim * length / 2
    return per_weight * shape.parameters + attention


def card_flops(name: str, cards: int, kind: methods.Kind, bf16: bool) -> float | None:
    """FLOP/s that this program gets out of each of so many cards; None where the card is not in the table."""
    card = CARDS.get(name)
    if card is None:
        return None
    peak = card.bf16_tflops if bf16 and card.bf16_tflops else card.float32_tflops
    if peak is None:
        return None
    return peak * 1e12 * utilisation(name, cards, kind)


def utilisation(name: str, cards: int, kind: methods.Kind) -> float:
    """Share of the peak: published, less the margin, less unpacking."""
    published = _PUBLISHED.get(name, _ELSE if cards == 1 else _ELSE_SPREAD)
    return published * _MARGIN * _UNPACKING[kind]


def cpu_flops(cores: int) -> float:
    return _CORE_FLOPS * cores
