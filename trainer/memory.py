"""How much memory a training process takes, term by term, before there is a process.

It describes this program and no other: FSDP2 with float32 master weights, moments and gradients spread over the
processes, one decoder layer gathered at a time in the number format of the computation, a frozen base in that format or
quantised and whole in every process, logits for trained positions alone. The peak comes at one of a few moments of a
step; each is added up and the largest counts. tests/trainer/test_memory.py holds the sums against the storages that
the real program makes at LLaMA's real widths; what a GPU adds (context, workspaces, fragmentation) is assumed here
and measured by tests/gpu.

Light and pure: the laptop asks it for cards that it does not have. Letters: h hidden size, f intermediate size, V
vocabulary, T tokens of one forward pass, N of them with logits, b bytes of a number of the computation (2 or 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from trainer import methods
from trainer.choices import Attention, Choices
from trainer.config import Offload, TrainConfig
from trainer.hardware import GIB, Hardware
from trainer.shape import Shape

# What a process takes beside torch's tensors. Context with lazily loaded kernels and cuBLAS workspaces; NCCL's channels
# to its peers; share of memory that the allocator holds but cannot use where segments may grow. Assumed from common
# reports; tests/gpu/test_training_on_a_gpu.py prints the measured ones.
CONTEXT = int(0.6 * GIB)
_PEERS = int(0.5 * GIB)
FRAGMENTED = 0.04
# A CPU process with the trainer imported: 0.35 GiB resident (torch 2.13, transformers 5.17), and what grows with it.
_PROGRAM = int(0.4 * GIB)

# NF4 with double quantisation (Dettmers et al. 2023, section 3): half a byte a weight, a one-byte scale for 64 of
# them, a float32 scale for 256 scales. LLM.int8() (Dettmers et al. 2022): a byte a weight, a float32 scale a row.
NF4, NF4_SCALES = 0.5, 1 / 64 + 4 / (64 * 256)

# DeepSpeed 0.19, runtime/zero/config.py: numbers of a reduction bucket, and of gathered weights under ZeRO-3.
_BUCKET, _LIVE = 500_000_000, 1_000_000_000


@dataclass(frozen=True, slots=True)
class Load:
    """What one process has to do at once."""

    kind: methods.Kind
    spread: methods.Spread
    offload: Offload
    processes: int
    tokens: int
    """T: tokens of one forward pass."""
    trained: int
    """N: positions of those with logits."""
    bf16: bool = True
    checkpointing: bool = True
    attention: Attention = "varlen"
    liger: bool = False
    eight_bit_moments: bool = False
    reduce_each: bool = True
    """Whether gradients are spread over the processes after every backward pass; else every process adds up those of
    the whole model in float32 until the last pass of a step."""
    adapter_rank: int = 8
    adapter_dropout: bool = True
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    on_gpu: bool = True

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        choices: Choices,
        shape: Shape,
        processes: int,
        *,
        on_gpu: bool = True,
        tokens: int | None = None,
        trained: int | None = None,
    ) -> Load:
        """Of a run. Without `tokens` and `trained`, of the worst rows there can be: full, and trained throughout."""
        worst = config.train.per_device_train_batch_size * config.data.max_length
        wanted = config.lora.target_modules
        return cls(
            kind=methods.kind(config),
            spread=methods.spread(config),
            offload=config.parallel.offload,
            processes=processes,
            tokens=worst if tokens is None else tokens,
            trained=worst if trained is None else trained,
            bf16=choices.bf16,
            checkpointing=config.train.gradient_checkpointing,
            attention=choices.attention,
            liger=choices.liger,
            eight_bit_moments=choices.optimiser == "adamw_bnb_8bit",
            reduce_each=choices.reduce_each,
            adapter_rank=config.lora.r,
            adapter_dropout=config.lora.dropout > 0,
            targets=tuple(shape.linears) if wanted == "all-linear" else tuple(wanted),
            on_gpu=on_gpu,
        )

    @property
    def number(self) -> int:
        """b: bytes of a number of the computation."""
        return 2 if self.bf16 else 4


class Term(NamedTuple):
    name: str
    bytes: int
    why: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """Memory of one process at its fullest moment."""

    moment: str
    terms: tuple[Term, ...]
    """What makes up the peak of the card (of the process, on a CPU); zero terms are left out."""
    host_bytes: int
    """Host memory of one process that offloading takes besides."""

    @property
    def bytes(self) -> int:
        return sum(term.bytes for term in self.terms)

    def fits(self, hardware: Hardware) -> bool:
        return self.bytes <= hardware.memory_bytes

    def lines(self) -> list[str]:
        """The terms for people, largest first, those under a MiB left out."""
        ordered = sorted((term for term in self.terms if term.bytes >> 20), key=lambda term: -term.bytes)
        return [f"{gib(term.bytes):>9}  {term.name}: {term.why}" for term in ordered]


def gib(count: float) -> str:
    """Bytes for people, e.g. "23.5 GiB"."""
    return f"{count / GIB:.1f} GiB" if count >= 0.1 * GIB else f"{count / (1 << 20):.0f} MiB"


def estimate(shape: Shape, load: Load) -> Estimate:
    """The fullest moment of a training step. Microseconds."""
    lasting, host = _lasting(shape, load)
    moments = _moments(shape, load)
    fullest = max(moments, key=lambda moment: sum(moments[moment].values()))
    terms = [*lasting, *(Term(name, int(size), _WHY[name]) for name, size in moments[fullest].items())]
    terms += _beside_tensors(load, sum(term.bytes for term in terms))
    return Estimate(fullest, tuple(term for term in terms if term.bytes > 0), host)


def adapter_weights(shape: Shape, load: Load) -> int:
    """Of one decoder layer: A and B of each target (Hu et al. 2021, section 4.1)."""
    return sum(load.adapter_rank * sum(shape.linears[name]) for name in load.targets if name in shape.linears)


def _lasting(shape: Shape, load: Load) -> tuple[list[Term], int]:
    """What lives from step to step: on the card, and bytes on the host."""
    full, processes = load.kind == "full", load.processes
    trained = shape.parameters if full else shape.layers * adapter_weights(shape, load)
    share = trained / processes
    moments = 8.0
    if load.eight_bit_moments:  # a byte each, and a float32 scale for 256 of them; embeddings keep float32
        in_full = shape.embedding / trained if full else 0.0
        moments = 8 * in_full + 2 * (1 + 4 / 256) * (1 - in_full)
    gradients = 4 * (share if load.reduce_each or not full else trained)
    if load.spread == "fsdp":
        weights, optimiser = 4 * share, moments * share
    else:
        # Rajbhandari et al. 2020, section 3: the weights of the computation whole (stage 2) or spread (3); a float32
        # copy of them is part of the optimiser; gradients in 16 bit, and in float32 while the optimiser steps.
        whole = trained if load.spread == "zero-2" else share
        weights, optimiser, gradients = load.number * whole, (4 + moments) * share, (load.number + 4) * share
    spread = f"over {processes} process{'es' if processes > 1 else ''}"
    terms = [
        Term("weights", int(weights), f"{trained / 1e6:,.0f} million that are trained, {spread}"),
        Term("gradients", int(gradients), f"float32, {spread}"),
        Term("optimiser", int(optimiser), f"AdamW's moments, {spread}"),
        *_frozen(shape, load),
    ]
    away = [term for term in terms if term.name in _MOVED[load.offload]]
    return [term for term in terms if term not in away], sum(term.bytes for term in away)


_MOVED: dict[Offload, set[str]] = {
    "none": set(),
    "optimizer": {"optimiser", "gradients"},
    "all": {"weights", "gradients", "optimiser", "frozen weights"},
}


def _frozen(shape: Shape, load: Load) -> list[Term]:
    if load.kind == "full":
        return []
    linear = shape.layers * shape.linear
    processes = load.processes if load.spread != "zero-2" else 1
    if load.kind == "lora":
        size = load.number * shape.parameters / processes
        return [Term("frozen weights", int(size), "the base, in the number format of the computation")]
    rows = sum(outputs for _, outputs in shape.linears.values()) * shape.layers
    bits, packed, scales = (
        (4, NF4 * linear, NF4_SCALES * linear) if load.kind == "qlora" else (8, linear, 4 * rows)
    )
    rest = load.number * (shape.parameters - linear) / processes
    return [
        Term("quantised weights", int(packed), f"the base in {bits} bit, whole in every process"),
        Term("quantisation constants", int(scales), "scales of the quantised weights"),
        Term("frozen weights", int(rest), "embeddings, head and norms, not quantised"),
    ]


_LOSS, _LAYER = "the loss", "the backward pass of a layer"
_WHY = {
    "gathered weights": "in the number format of the computation, while they are used",
    "gradients on their way": "of one layer and the head, and the buffer that sums them over processes",
    "unpacked weights": "the largest quantised matrix, as numbers",
    "activations": "what the backward pass needs of all layers",
    "one layer": "its activations, recomputed, and its gradients",
    "logits": "of trained positions: log-probabilities and two gradients in float32, 12 bytes a number",
}


def _moments(shape: Shape, load: Load) -> dict[str, dict[str, float]]:
    """What comes and goes, by moment and term: the candidates for the fullest moment."""
    b, h, T = load.number, shape.hidden, load.tokens
    kept, inner = _activations(shape, load)
    quantised = load.kind in ("lora-8bit", "qlora")
    weights_and_gradients = _of_fsdp(shape, load) if load.spread == "fsdp" else _of_deepspeed(shape, load)
    layers = shape.layers if load.checkpointing else shape.layers - 1
    stored = layers * (b * h if load.checkpointing else kept) * T
    trained = (shape.layer if load.kind == "full" else adapter_weights(shape, load)) * b
    activations: dict[str, dict[str, float]] = {
        _LOSS: {
            # The last norm, and the hidden states picked for the logits.
            "activations": stored + (0 if load.checkpointing else kept) * T + (4 + 2 * b) * h * T,
            "logits": 12 * load.trained * shape.vocabulary,
        },
        _LAYER: {
            "activations": stored,
            # First all its activations and none of its gradients, in the end its gradients and the first norm's.
            "one layer": max((kept + inner) * T, trained + 26 * h * T),
            "unpacked weights": b * max(i * o for i, o in shape.linears.values()) if quantised else 0,
        },
    }
    embeddings: dict[str, float] = {"activations": b * h * T}
    return {
        moment: terms | activations.get(moment, embeddings) for moment, terms in weights_and_gradients.items()
    }


def _of_fsdp(shape: Shape, load: Load) -> dict[str, dict[str, float]]:
    """FSDP2's buffers, as torch 2.13 makes and frees them; the root keeps its weights from forward to backward."""
    b, full, quantised = load.number, load.kind == "full", load.kind in ("lora-8bit", "qlora")
    trained = shape.layer if full else adapter_weights(shape, load)
    root = b * shape.root
    layer = b * (shape.layer - (shape.linear if quantised else 0) + (0 if full else trained))
    copies = (
        1 if load.processes == 1 else 2
    )  # an all-gather fills one buffer, which is then cut up into another
    head = b * shape.embedding if full else 0
    reduced = 4 * trained
    # Gradients and their copy in float32; then that copy and the reduced part of it.
    last = max(b + 4, 4 + 4 / load.processes) * shape.root if full else 0
    return {
        _LOSS: {"gathered weights": root},
        _LAYER: {"gathered weights": root + copies * layer, "gradients on their way": head + reduced},
        "the last reduction": {"gradients on their way": last},
        "the backward pass of the embeddings": {
            "gathered weights": root,
            "gradients on their way": reduced + head * (3 if shape.tied else 2),
        },
        "the first gathering": {"gathered weights": copies * (root + layer)},
    }


def _of_deepspeed(shape: Shape, load: Load) -> dict[str, dict[str, float]]:
    """DeepSpeed's: buckets of a fixed size, and under stage 3 gathered weights up to a fixed number."""
    quantised = load.kind in ("lora-8bit", "qlora")
    trained = shape.parameters if load.kind == "full" else shape.layers * adapter_weights(shape, load)
    spread = shape.parameters - (shape.layers * shape.linear if quantised else 0)
    passing = {
        "gathered weights": load.number * min(spread, _LIVE) if load.spread == "zero-3" else 0.0,
        "gradients on their way": 2 * load.number * min(trained, _BUCKET),  # the bucket and its copy
    }
    return {_LOSS: passing, _LAYER: passing}


def _activations(shape: Shape, load: Load) -> tuple[float, float]:
    """Bytes per token of one decoder layer: kept for its backward pass, and in use during it besides.

    Counted from what autograd saves in transformers' LlamaDecoderLayer, in the manner of Korthikanti et al. 2022,
    section 4.1, who count a GPT: 34 h + 5 a s there, no quadratic term here (attention recomputes its weights).
    """
    b, h, f = load.number, shape.hidden, shape.intermediate
    wide, narrow = shape.heads * shape.head_dim, shape.key_value_heads * shape.head_dim
    norms = 2 * b * h if load.liger else 2 * (4 + b) * h  # Liger saves the input alone
    attention = 2 * b * (wide + narrow) + 4 * shape.heads + (b * wide if load.attention == "sdpa" else 0)
    gate = (2 if load.liger else 3) * b * f
    inputs = _adapter_inputs(shape, load)
    if load.kind in ("full", "lora-8bit"):  # MatMul8bitLt keeps its inputs though its weights are frozen
        inputs += b * (2 * h + f)
    inner = b * ((2 if load.kind == "full" else 3) * f + h)
    return norms + attention + gate + inputs, inner


def _adapter_inputs(shape: Shape, load: Load) -> float:
    """What the adapters keep, bytes per token: with dropout each its own input, and a byte that says what was
    dropped; without, layers that read the same share it, and the output projection's is the attention's output."""
    if load.kind == "full":
        return 0
    targets = [name for name in load.targets if name in shape.linears]
    if load.adapter_dropout:
        return (load.number + 1) * sum(shape.linears[name][0] for name in targets)
    readers = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
    read = {readers.get(name, name) for name in targets} - {"o_proj"}
    return load.number * sum(shape.linears[name][0] for name in read)


def _beside_tensors(load: Load, tensors: int) -> list[Term]:
    if not load.on_gpu:
        return [Term("program", _PROGRAM, "Python and the libraries' code")]
    holes = int(FRAGMENTED * tensors)
    return [
        Term("CUDA context", CONTEXT, "the driver, kernels and cuBLAS workspaces"),
        Term("communication", _PEERS if load.processes > 1 else 0, "NCCL's buffers"),
        Term("fragmentation", holes, f"{FRAGMENTED:.0%} of all tensors: held by the allocator, of no use"),
    ]
