"""Which ways of training there are, what each needs, and which combinations the libraries cannot do.

Light: the launcher refuses here what the box would refuse an hour and some dollars later.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal, NamedTuple

from trainer.config import TrainConfig
from trainer.errors import ConfigError, NotReady

Kind = Literal["full", "lora", "lora-8bit", "qlora"]
Spread = Literal["fsdp", "zero-2", "zero-3"]

KINDS: tuple[Kind, ...] = ("full", "lora", "lora-8bit", "qlora")
SPREADS: tuple[Spread, ...] = ("fsdp", "zero-2", "zero-3")

# Packages beyond those that every training needs. PEFT and transformers' quantisers both stand on accelerate.
_PACKAGES: dict[Kind, tuple[str, ...]] = {
    "full": (),
    "lora": ("peft", "accelerate"),
    "lora-8bit": ("peft", "accelerate", "bitsandbytes"),
    "qlora": ("peft", "accelerate", "bitsandbytes"),
}


class Impossible(NamedTuple):
    """A combination that a library cannot do. None stands for all."""

    kind: Kind | None
    spread: Spread | None
    offload: Literal["none", "optimizer", "all"] | None
    reason: str
    hint: str


IMPOSSIBLE: tuple[Impossible, ...] = (
    Impossible(
        None,
        "fsdp",
        "optimizer",
        "FSDP2 keeps an optimiser's state where the weights are: it cannot move the optimiser alone",
        "--set parallel.offload=all moves both; --strategy deepspeed can move the optimiser alone",
    ),
    Impossible(
        None,
        "zero-2",
        "all",
        "ZeRO-2 keeps the weights whole on every card: it can move the optimiser alone",
        "--set parallel.zero_stage=3 moves both; --set parallel.offload=optimizer moves the optimiser alone",
    ),
)


def kind(config: TrainConfig) -> Kind:
    """The method together with how the frozen base is kept."""
    if config.train.method == "lora" and config.lora.load_8bit:
        return "lora-8bit"
    return config.train.method


def spread(config: TrainConfig) -> Spread:
    """The strategy together with its stage."""
    if config.parallel.strategy == "fsdp":
        return "fsdp"
    return "zero-2" if config.parallel.zero_stage == 2 else "zero-3"


def impossible(config: TrainConfig) -> Impossible | None:
    """Why the libraries cannot do what the config asks for; None if they can."""
    asked = (kind(config), spread(config), config.parallel.offload)
    for entry in IMPOSSIBLE:
        if all(want in (None, have) for want, have in zip(entry[:3], asked, strict=True)):
            return entry
    return None


def refuse_impossible(config: TrainConfig) -> None:
    """Raises ConfigError, with the reason, for what no library does and for settings that contradict each other."""
    if config.lora.load_8bit and config.train.method != "lora":
        raise ConfigError(
            f"lora.load_8bit is for --method lora, not {config.train.method}",
            hint="--set lora.load_8bit=false",
        )
    if config.train.optim == "adamw_bnb_8bit" and config.parallel.strategy == "deepspeed":
        raise ConfigError(
            "train.optim=adamw_bnb_8bit with --strategy deepspeed: in ZeRO's flat buffers a block of 8-bit moments "
            "would lie across two weights or two processes",
            hint="--strategy fsdp has it; with ZeRO, --set parallel.offload=optimizer frees more",
        )
    if entry := impossible(config):
        raise ConfigError(f"{kind(config)} with {spread(config)}: {entry.reason}", hint=entry.hint)


def require_packages(config: TrainConfig) -> None:
    """Raises NotReady, with the command that helps, where a package of the method is not installed. Imports nothing."""
    missing = [package for package in _PACKAGES[kind(config)] if find_spec(package) is None]
    if missing:
        raise NotReady(
            f"{kind(config)} needs {' and '.join(missing)}, not installed here",
            hint="pip install 'vlaunch[train]'",
        )
