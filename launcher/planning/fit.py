"""Whether a run fits and runs on cards that the laptop does not have, and what would make it fit. Pure.

The sums are trainer/memory.py's for training and serving/memory.py's for answering, the choice of kernels is
trainer/choices.py's: the box computes with the same functions, so a plan cannot promise what the box refuses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from launcher.errors import ConfigError, NotReady, Problem
from launcher.values import Gpus
from trainer.config import TrainConfig
from trainer.fitting import Case, changes_that_fit
from trainer.hardware import CARDS, Hardware
from trainer.memory import Term, gib
from trainer.shape import LLAMA_7B, LLAMA_13B, Shape

# Published configurations, for models that are only known by the size in their name: Touvron et al. 2023 (7, 13, 30/33,
# 65), Llama 2 (70) and the config.json files of Llama 3 (1, 3, 8).
_BY_SIZE: dict[float, Shape] = {
    1: Shape(2048, 8192, 16, 32, 8, 64, 128256, tied=True),
    3: Shape(3072, 8192, 28, 24, 8, 128, 128256, tied=True),
    7: LLAMA_7B,
    8: Shape(4096, 14336, 32, 32, 8, 128, 128256),
    13: LLAMA_13B,
    30: Shape(6656, 17920, 60, 52, 52, 128, 32000),
    33: Shape(6656, 17920, 60, 52, 52, 128, 32000),
    65: Shape(8192, 22016, 80, 64, 64, 128, 32000),
    70: Shape(8192, 28672, 80, 64, 8, 128, 32000),
}


class Model(NamedTuple):
    """The sizes that a plan reckons with, and how they are known."""

    shape: Shape
    assumed: str | None
    """What was assumed, in words; None where the sizes are the model's own."""


@dataclass(frozen=True, slots=True)
class Fit:
    """The verdict on one card of a machine."""

    fits: bool | None
    """None where the card is not known here, or there is none."""
    card: str
    card_bytes: int
    moment: str
    """When the card is fullest."""
    terms: tuple[Term, ...] = ()
    host_bytes: int = 0
    """Host memory of the whole machine that offloading takes."""
    changes: tuple[str, ...] = ()
    """What would make it fit: options, with the memory and the price of each."""
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(term.bytes for term in self.terms)


def model_of(config: TrainConfig, base_shape: Mapping[str, Any] | None) -> Model:
    """The sizes of a run's model: of its own configuration where that is known, else of its name.

    Raises:
        ConfigError: model.shape lacks a field.
    """
    own = config.model.shape or base_shape
    if own is not None:
        return Model(Shape.of(_completed(own, config)), None)
    base = config.model.base or ""
    found = re.search(r"(\d+(?:\.\d+)?)b\b", base.lower())
    billions = float(found[1]) if found else 7.0
    nearest = min(_BY_SIZE, key=lambda size: abs(size - billions))
    shape = _BY_SIZE[nearest]
    if "llama" in base.lower() and nearest == billions:
        return Model(shape, None)
    why = "by the size in its name" if found else "no size is in its name"
    return Model(shape, f"{base or 'the model'} is reckoned as a LLaMA of {nearest:g}B ({why})")


def training_fit(config: TrainConfig, shape: Shape, gpus: Gpus, nodes: int, named: Sequence[str] = ()) -> Fit:
    """Whether a training run fits so many cards, at its fullest moment. Some 100 microseconds.

    Args:
        named: fields that the user set by name: these are done or refused, never replaced.
    """
    card = CARDS.get(gpus.name)
    if card is None:
        return unknown_card(gpus.name)
    case = Case(config, card.of(gpus.number), shape, gpus.number * nodes)
    refused = [*_refusals(card, named, config)]
    try:
        choices, found = case.choices(), case.estimate()
    except (ConfigError, NotReady) as error:
        what = Problem(error.message, error.hint or "another card")
        return Fit(False, card.name, card.memory_bytes, "", problems=(what, *refused))
    fits = found.fits(case.hardware)
    changes = () if fits else tuple(str(change) for change in changes_that_fit(case))
    if not fits:
        refused.append(_too_large(case, found.bytes, found.moment, changes))
    notes = [] if choices.bf16 or not config.train.bf16 else [choices.reasons["bf16"]]
    notes += [text for key, text in choices.reasons.items() if key == "base"]
    return Fit(
        fits and not refused,
        card.name,
        card.memory_bytes,
        found.moment,
        found.terms,
        found.host_bytes * gpus.number,
        changes,
        tuple(refused),
        tuple([*notes, *_old_card(card)]),
    )


def unknown_card(name: str) -> Fit:
    return Fit(None, name, 0, "", notes=(f"the memory of {name} is not known here: nothing was checked",))


def _old_card(card: Hardware) -> list[str]:
    """What a card before Turing needs of its set-up (trainer/choices.py refuses it on the box otherwise)."""
    if (card.compute_capability or (9, 9)) >= (7, 5):
        return []
    return [
        f"{card.name} is older than what the usual torch is built for: its set-up has to take the build for CUDA 12.6"
    ]


def _completed(own: Mapping[str, Any], config: TrainConfig) -> dict[str, Any]:
    """A shape that leaves out what transformers has defaults for, and the vocabulary of our own tokeniser."""
    full = {"num_attention_heads": 1, "vocab_size": 32_000, **own}
    if "hidden_size" in full:
        full.setdefault("intermediate_size", 4 * int(full["hidden_size"]))
    if config.model.vocab_size:
        full["vocab_size"] = config.model.vocab_size
    for name in ("hidden_size", "num_hidden_layers"):
        if name not in full:
            raise ConfigError(
                f"model.shape has no {name}", hint="it holds the fields of a Hugging Face config"
            )
    return full


def _refusals(card: Hardware, named: Sequence[str], config: TrainConfig) -> list[Problem]:
    """What was asked for by name and this card cannot do."""
    if "train.bf16" in named and config.train.bf16 and not card.bf16:
        capability = ".".join(map(str, card.compute_capability or ()))
        return [
            Problem(
                f"train.bf16: {card.name} (compute capability {capability}) has no bfloat16, 8.0 and later have",
                "--set train.bf16=false trains in float32 there; --gpus A10G:1 has it",
            )
        ]
    return []


def _too_large(case: Case, needed: int, moment: str, changes: Sequence[str]) -> Problem:
    card = case.hardware
    fix = " or ".join(change.partition("  (")[0] for change in changes)
    return Problem(
        f"it does not fit {card.count} x {card.name}: {gib(needed)} of {gib(card.memory_bytes)} on each, "
        f"in {moment}",
        fix or "a smaller model, or larger cards",
    )
