"""What a run does on a given card: number format, attention kernel, fused kernels; and why.

One pure function of (hardware, config, what is installed). The box logs its reasons; the laptop asks it before any
money is spent. What the user has set by name is done or refused with what to do instead, never quietly replaced;
what is left to the card takes the fastest that the card can also run backward. Eight RTX 4090 of the seeds' were
rented for nothing because a kernel's backward pass refused them after the model was loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainer.config import TrainConfig
from trainer.errors import ConfigError, NotReady
from trainer.hardware import Capability, Hardware

Attention = Literal["sdpa", "varlen"]

# torch's flash kernels, sdp_utils.cpp and flash_api.cpp of 2.13: from sm80 on, 16-bit, heads of at most 256 numbers in
# multiples of 8. Backward beyond 192 runs on the data-centre chips alone: others have less shared memory per block.
_FLASH: Capability = (8, 0)
_FLASH_HEAD = 256
_FLASH_HEAD_BACKWARD_SMALL = 192
_LARGE_SHARED_MEMORY: tuple[Capability, ...] = ((8, 0), (9, 0), (10, 0), (10, 3))
# torch.utils._triton: inductor compiles for 7.0 and later. Triton itself names 8.0 (its README); Liger's kernels are
# Triton's and are tested on nothing older.
_INDUCTOR: Capability = (7, 0)
_TRITON: Capability = (8, 0)
# bitsandbytes.cuda_specs.has_imma: 8-bit matrix products in hardware; before, they are done in float32.
_INT8: Capability = (7, 5)
ALLOCATOR = "expandable_segments:True"
"""PYTORCH_ALLOC_CONF where the user has set none."""


@dataclass(frozen=True, slots=True)
class Installed:
    """What the box's Python environment offers. The default is a fresh `pip install 'vlaunch[train]'`."""

    torch: str = "2.13"
    architectures: tuple[str, ...] = ()
    """torch.cuda.get_arch_list(): sm_75, ..., compute_120; empty where unknown."""
    varlen: bool = True
    """torch.nn.attention.varlen with a causal window: torch 2.11 and later."""
    triton: bool = True
    liger: bool = False
    bitsandbytes: bool = True


@dataclass(frozen=True, slots=True)
class Choices:
    """What was chosen. `reasons`: one sentence for each field that had a choice."""

    bf16: bool
    """Forward and backward in bfloat16; else in float32."""
    attention: Attention
    liger: bool
    compile: bool
    tf32: bool
    optimiser: Literal["adamw_torch_fused", "adamw_bnb_8bit"]
    reduce_each: bool
    """Gradients are summed over processes after every backward pass, not once a step: no process then keeps those of
    the whole model."""
    allocator: str | None
    reasons: dict[str, str]


def choose(
    hardware: Hardware,
    config: TrainConfig,
    installed: Installed | None = None,
    head_dim: int | None = None,
    attention_dropout: float = 0.0,
) -> Choices:
    """How this run computes on this hardware.

    Args:
        head_dim: of the base model, which decides whether a kernel's backward pass runs; None, unknown, is taken to
            be at most 128, as in every LLaMA.
        attention_dropout: of the model.

    Raises:
        ConfigError: the config names what this hardware cannot do.
        NotReady: torch is not built for this card, or a package that the config names is missing.
    """
    installed = installed or Installed()
    _refuse_card(hardware, installed)
    reasons: dict[str, str] = {}
    bf16 = _number_format(hardware, config, reasons)
    card = _Card(hardware, installed, bf16, head_dim or 128, attention_dropout)
    attention = _attention(card, config, reasons)
    liger = _liger(card, config, reasons)
    compiled = _compile(card, config, liger, reasons)
    tf32 = _tf32(hardware, config, bf16, reasons)
    _optimiser(installed, config, reasons)
    _base(hardware, config, reasons)
    on_gpu = hardware.kind == "cuda"
    reduce_each = reduces_each(config, on_gpu)
    if reduce_each:
        reasons["reduce_each"] = (
            "a whole model's float32 gradients in every process would be 4 bytes a weight more"
        )
    if on_gpu:
        reasons["allocator"] = "segments that grow: rows of many lengths would leave holes in fixed ones"
    return Choices(
        bf16,
        attention,
        liger,
        compiled,
        tf32,
        config.train.optim,
        reduce_each,
        ALLOCATOR if on_gpu else None,
        reasons,
    )


def reduces_each(config: TrainConfig, on_gpu: bool) -> bool:
    """Whether FSDP sums gradients over processes after every backward pass: `Choices.reduce_each`.

    Not on CPUs, where memory is the host's, and not for adapters, whose gradients are small: one sum a step is less
    to send. DeepSpeed decides that itself.
    """
    return on_gpu and config.train.method == "full" and config.parallel.strategy == "fsdp"


@dataclass(frozen=True, slots=True)
class _Card:
    hardware: Hardware
    installed: Installed
    bf16: bool
    head_dim: int
    dropout: float

    @property
    def capability(self) -> Capability:
        return self.hardware.compute_capability or (0, 0)

    def __str__(self) -> str:
        return _named(self.hardware)


def _named(hardware: Hardware) -> str:
    if hardware.compute_capability is None:
        return "a CPU"
    return f"{hardware.name} ({'.'.join(map(str, hardware.compute_capability))})"


def _refuse_card(hardware: Hardware, installed: Installed) -> None:
    """CUDA runs machine code of the same major version and a minor one at most the card's, or compiles PTX."""
    if hardware.compute_capability is None or not installed.architectures:
        return
    major, minor = hardware.compute_capability
    for architecture in installed.architectures:
        kind, _, digits = architecture.partition("_")
        number = "".join(filter(str.isdigit, digits))
        built = (int(number[:-1]), int(number[-1]))
        if (built[0] == major and built[1] <= minor) if kind == "sm" else built <= (major, minor):
            return
    wheel = "cu126" if major < 8 else "cu130"
    raise NotReady(
        f"torch {installed.torch} here is not built for {_named(hardware)}, only for "
        + ", ".join(installed.architectures),
        hint=f"pip install torch --index-url https://download.pytorch.org/whl/{wheel}"
        + (" (CUDA 12.6 is the last that knows cards before Turing)" if (major, minor) < (7, 5) else ""),
    )


def _number_format(hardware: Hardware, config: TrainConfig, reasons: dict[str, str]) -> bool:
    if config.train.bf16 and hardware.bf16:
        reasons["bf16"] = (
            "bfloat16 over float32 master weights: half the memory of float32, and no loss scaling"
        )
        return True
    if config.train.bf16:
        reasons["bf16"] = (
            f"float32, not bfloat16: {_named(hardware)} has no units for it (8.0 and later have), and float16 "
            "would need loss scaling; activations take twice the memory"
        )
    else:
        reasons["bf16"] = "float32, as train.bf16=false says"
    return False


def _attention(card: _Card, config: TrainConfig, reasons: dict[str, str]) -> Attention:
    wanted = config.train.attn_implementation
    obstacle = None if wanted == "sdpa" else _varlen_obstacle(card)
    if wanted == "varlen" and obstacle:
        raise ConfigError(
            f"train.attn_implementation=varlen: {obstacle}",
            hint="train.attn_implementation=auto takes what this machine can run backward",
        )
    if wanted == "sdpa":
        reasons["attention"] = "one call for each conversation, as train.attn_implementation=sdpa says"
    elif obstacle:
        reasons["attention"] = f"one call for each conversation, with the kernel that torch picks: {obstacle}"
    else:
        reasons["attention"] = (
            "torch's flash kernel over a whole packed row: one launch, no pair across conversations"
        )
        return "varlen"
    return "sdpa"


def _varlen_obstacle(card: _Card) -> str | None:
    """Why the flash kernel cannot train here; None if it can."""
    if card.hardware.kind == "cpu":
        return "packed flash attention needs a GPU"
    if card.capability < _FLASH:
        return f"flash attention needs compute capability 8.0, {card} has less"
    if not card.installed.varlen:
        return f"torch {card.installed.torch} has no packed attention (2.11 and later have)"
    if not card.bf16:
        return "flash attention computes in 16 bit, this run in float32"
    if card.dropout:
        return f"packed flash attention has no dropout, the model drops {card.dropout:g} of its attention"
    if card.head_dim > _FLASH_HEAD or card.head_dim % 8:
        return f"flash attention takes heads of at most 256 numbers in multiples of 8, the model's have {card.head_dim}"
    if card.head_dim > _FLASH_HEAD_BACKWARD_SMALL and card.capability not in _LARGE_SHARED_MEMORY:
        return (
            f"heads of {card.head_dim} numbers exceed the 192 that flash attention runs backward on {card}: its shared "
            "memory is too small"
        )
    return None


def _liger(card: _Card, config: TrainConfig, reasons: dict[str, str]) -> bool:
    wanted, runs = config.train.use_liger_kernel, card.capability >= _TRITON and card.installed.triton
    if wanted and not runs:
        raise ConfigError(
            f"train.use_liger_kernel: Liger's kernels need Triton and a GPU of compute capability 8.0, not {card}",
            hint="train.use_liger_kernel=false computes the same with torch's own kernels",
        )
    if wanted and not card.installed.liger:
        raise NotReady(
            "train.use_liger_kernel: liger-kernel is not installed", hint="pip install liger-kernel"
        )
    chosen = card.installed.liger and runs if wanted is None else wanted
    if chosen:
        reasons["liger"] = (
            "fused norms, rotations and gates: fewer passes over memory, a quarter fewer activations"
        )
    elif wanted is None and runs:
        reasons["liger"] = (
            "liger-kernel is not installed; pip install liger-kernel would fuse norms and gates"
        )
    return chosen


def _compile(card: _Card, config: TrainConfig, liger: bool, reasons: dict[str, str]) -> bool:
    wanted = config.train.torch_compile
    on_gpu = card.hardware.kind == "cuda"
    if wanted and on_gpu and (card.capability < _INDUCTOR or not card.installed.triton):
        raise ConfigError(
            f"train.torch_compile: torch compiles with Triton for compute capability 7.0 and later, not for {card}",
            hint="train.torch_compile=false runs the same without",
        )
    if wanted:
        reasons["compile"] = "each decoder layer, as train.torch_compile says; every start pays for it again"
    elif on_gpu and wanted is None and not liger:
        reasons["compile"] = "not compiled: it costs minutes at each start, and a spot machine starts often"
    return bool(wanted)


def _tf32(hardware: Hardware, config: TrainConfig, bf16: bool, reasons: dict[str, str]) -> bool:
    """Ampere brought it, together with bfloat16."""
    chosen = config.train.tf32 and hardware.kind == "cuda" and hardware.bf16
    if chosen:
        rest = "the few float32 products that are left" if bf16 else "all matrix products"
        reasons["tf32"] = f"TensorFloat-32 for {rest}: 8 times the speed, 10 bits of mantissa"
    return chosen


def _optimiser(installed: Installed, config: TrainConfig, reasons: dict[str, str]) -> None:
    if config.train.optim != "adamw_bnb_8bit":
        return
    if not installed.bitsandbytes:
        raise NotReady("train.optim=adamw_bnb_8bit needs bitsandbytes", hint="pip install 'vlaunch[train]'")
    reasons["optimiser"] = "AdamW with both moments in 8 bit: 2 bytes a weight instead of 8, other numbers"


def _base(hardware: Hardware, config: TrainConfig, reasons: dict[str, str]) -> None:
    capability = hardware.compute_capability
    if config.lora.load_8bit and capability is not None and capability < _INT8:
        reasons["base"] = (
            f"{_named(hardware)} multiplies no 8-bit numbers (7.5 and later do): bitsandbytes takes float32 for "
            "them, which is slow; --method qlora is smaller and faster"
        )
