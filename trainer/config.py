"""What a run is: one frozen tree, written once to `config.json` and read by every attempt.

Fields that Hugging Face's TrainingArguments has carry its names. Unknown keys are refused with the
nearest known one, and a run whose config would change between attempts is refused with the difference:
a silent change would make two halves of one loss curve incomparable.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trainer.errors import ConfigError, nearest

Method = Literal["full", "lora", "qlora"]
Strategy = Literal["fsdp", "deepspeed"]
Offload = Literal["none", "optimizer", "all"]


# Seconds of standing still that a save is taken to cost before one has been measured: little, so that the first
# save of an attempt comes early and measures it.
ASSUMED_STALL_S = 0.2


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class StoredFile(Section):
    """A file of the user's that travels to every region through the store, by its hash."""

    name: str
    """The file's own name; its ending tells format and compression."""
    blob: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the content, the key under blob/."""
    size: int = Field(ge=0)
    """Bytes."""


class ModelSection(Section):
    base: str | None = None
    """Hugging Face id or a path that the box sees; None starts from random weights of `shape`."""
    revision: str | None = None
    """Commit, tag or branch of a Hugging Face base; None is its newest, which may change between attempts."""
    files: tuple[StoredFile, ...] = ()
    """A local base model's files (config, tokeniser, safetensors), carried through the store."""
    origin: str | None = None
    """The folder that `files` came from: what adapter_config.json calls the base."""
    shape: dict[str, Any] | None = None
    """Hugging Face config fields of a model trained from scratch, with its `model_type`."""
    vocab_size: int | None = Field(default=None, ge=300, le=262_144)
    """Tokens of a tokeniser trained on the corpus; None takes the base model's tokeniser."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Attention dropout. LLaMA is fine-tuned without; the tests turn it on to prove RNG resume."""

    @model_validator(mode="after")
    def _one_origin(self) -> ModelSection:
        origins = [self.base is not None, bool(self.files), self.shape is not None]
        if sum(origins) > 1:
            raise ValueError("give one of base, files and shape, not several")
        return self


class DataSection(Section):
    train: tuple[StoredFile, ...] = ()
    """Corpus files, in order."""
    eval: tuple[StoredFile, ...] = ()
    """Held-out files: their loss is reported, nothing is learnt from them."""
    template: str = "vicuna_v1.1"
    """Chat template; stored with the model so that serving uses the same one."""
    max_length: int = Field(default=2048, ge=16, le=1_048_576)
    """Tokens of one training row (model_max_length in FastChat). Longer conversations are cut there."""
    packing: bool = True
    """Put whole conversations side by side in one row; they never see one another."""


class TrainSection(Section):
    method: Method = "full"
    """full: all weights; lora: adapters on a 16- or 8-bit base; qlora: adapters on a 4-bit base."""
    num_train_epochs: float = Field(default=3.0, gt=0)
    """Passes over the corpus; 3 is Vicuna's."""
    max_steps: int = Field(default=-1, ge=-1)
    """Optimiser steps; -1 derives them from num_train_epochs."""
    global_batch_size: int = Field(default=128, ge=1)
    """Rows per optimiser step over all processes; 128 is Vicuna's. Accumulation is derived from it."""
    per_device_train_batch_size: int = Field(default=4, ge=1)
    """Rows per forward pass of one process; 4 is Vicuna's on an A100-80GB."""
    auto_batch: bool = False
    """Find the most rows that one forward pass holds on this card; the global batch stays what it is."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak; 2e-5 is Vicuna's for all weights."""
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after warm-up."""
    warmup_ratio: float = Field(default=0.03, ge=0.0, lt=1.0)
    """Share of all steps in which the rate rises from zero; 0.03 is Vicuna's."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """AdamW's decoupled decay; Vicuna has none."""
    adam_beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    """AdamW's decay of the mean gradient; 0.9 is TrainingArguments' default."""
    adam_beta2: float = Field(default=0.999, ge=0.0, lt=1.0)
    """AdamW's decay of the mean squared gradient; 0.999 is TrainingArguments' default."""
    adam_epsilon: float = Field(default=1e-8, gt=0.0)
    """AdamW's guard against division by zero; 1e-8 is TrainingArguments' default."""
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    """Gradients are clipped to this global norm."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: a third more compute for most of their memory."""
    bf16: bool = True
    """bfloat16 forward and backward over float32 master weights; False keeps float32 throughout."""
    optim: Literal["adamw_torch_fused", "adamw_bnb_8bit"] = "adamw_torch_fused"
    """AdamW's kernel; bnb_8bit keeps both moments in 8 bit (2 bytes a weight instead of 8), other numbers."""
    attn_implementation: Literal["auto", "sdpa", "varlen"] = "auto"
    """Attention kernel; auto takes the fastest that this card can also run backward."""
    use_liger_kernel: bool | None = None
    """Liger's fused kernels; None takes them where they are installed and the card runs them."""
    torch_compile: bool | None = None
    """Compile each decoder layer; None leaves it to the card: a compilation costs minutes at each start."""
    tf32: bool = True
    """TensorFloat-32 in float32 matrix products of cards that have it."""
    seed: int = Field(default=42, ge=0, lt=2**31)
    """Of initial weights, sample order and dropout; 42 is TrainingArguments' default."""
    eval_strategy: Literal["no", "steps"] = "steps"
    """When the held-out loss is measured besides at the end; 'no' measures it only there."""
    eval_steps: int = Field(default=500, ge=1)
    """Steps between two held-out losses; 500 is TrainingArguments' default."""
    max_eval_samples: int = Field(default=256, ge=1)
    """Held-out conversations measured each time: enough for two digits, at a few seconds of one GPU."""
    early_stopping_patience: int = Field(default=0, ge=0)
    """End the run after so many held-out losses in a row without a better one; 0 never does."""
    logging_seconds: float = Field(default=15.0, gt=0.0)
    """Metrics reach the store at least this often, so that a status is fresh without one PUT a step."""


class LoraSection(Section):
    r: int = Field(default=8, ge=1)
    """Rank; 8 is FastChat's."""
    alpha: int = Field(default=16, ge=1)
    """Scale times rank; 16 is FastChat's."""
    dropout: float = Field(default=0.05, ge=0.0, lt=1.0)
    """On the adapters' input; 0.05 is FastChat's."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = ("q_proj", "v_proj")
    """Layers that get an adapter; FastChat adapts q_proj and v_proj."""
    load_8bit: bool = False
    """Keep the frozen base in 8 bit: 7B then fits a 16 GB card."""


class CheckpointSection(Section):
    save_strategy: Literal["auto", "steps"] = "auto"
    """auto: by time, from the measured cost of a save (Young 1974); steps: every save_steps."""
    save_steps: int = Field(default=500, ge=1)
    """Steps between saves under save_strategy=steps."""
    mtbf_s: float = Field(default=7200.0, gt=0)
    """Expected seconds between preemptions until some were seen; 2 h is a poor spot zone's. --preempt-every sets it."""
    max_interval_s: float = Field(default=1200.0, gt=0)
    """No work older than this is ever at risk, whatever the formula says."""
    upload_limit_mb_per_s: float | None = Field(default=None, gt=0)
    """The most that one machine sends of its checkpoints, in megabytes (10^6) per second; None is all it can."""
    save_total_limit: int = Field(default=2, ge=1)
    """Newest checkpoints kept; 2, so that a corrupt one has a fallback."""
    keep_every: int = Field(default=0, ge=0)
    """Keep also every checkpoint whose step is a multiple; 0 keeps none."""
    keep_best: bool = False
    """Keep the checkpoint with the lowest held-out loss, and export that one instead of the last."""
    on_notice: bool = True
    """Try one more save when the machine announces its end."""


class Replica(Section):
    uri: str
    """Another store, in which the run has a folder of the same name."""
    region: str = ""
    """Cloud and region of it, as `aws/eu-west-1`; empty asks S3 or GCS."""


class StoreSection(Section):
    region: str = ""
    """Cloud and region of the run's own store, as `aws/us-east-1`; empty asks S3 or GCS."""
    replicas: tuple[Replica, ...] = ()
    """Stores in other regions that get copies of checkpoints, as `[{"uri": "s3://..."}]`; adapters always."""
    replicate_full_every: int = Field(default=0, ge=0)
    """Of checkpoints of all weights, copy one in so many; 0 none: a copy of each costs more than a move."""


class ParallelSection(Section):
    strategy: Strategy = "fsdp"
    """fsdp: PyTorch FSDP2; deepspeed: ZeRO."""
    zero_stage: Literal[2, 3] = 2
    """Under deepspeed, what is spread besides the optimiser: 2 gradients, 3 the weights too."""
    offload: Offload = "none"
    """What lives in host memory instead of the card's: optimizer, or all (weights too)."""
    deepspeed: dict[str, Any] = {}
    """Further keys of a DeepSpeed configuration, as --deepspeed FILE gave them."""
    processes: int | None = Field(default=None, ge=1)
    """Processes per machine; None is one per GPU, or one where there is none."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads per process; None shares the cores out."""


class ExportSection(Section):
    prompt: str = "What does the function os.path.join do?"
    """Asked of the exported model once, as a smoke test a person can read."""
    max_new_tokens: int = Field(default=60, ge=0)
    """Length of that answer; 0 asks nothing."""


class TrackingSection(Section):
    report_to: Literal["auto", "wandb", "none"] = "auto"
    """Where a machine shows the curve while it trains; auto is W&B where WANDB_API_KEY is set, else nowhere."""
    project: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")
    """Project at W&B; None is WANDB_PROJECT, else vlaunch."""
    entity: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")
    """Team or user at W&B; None is WANDB_ENTITY, else the account's own default."""


class TrainConfig(Section):
    """The whole configuration of a run."""

    version: Literal[1] = 1
    recipe: str = "custom"
    """The recipe this came from, for people."""
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    train: TrainSection = TrainSection()
    lora: LoraSection = LoraSection()
    checkpoint: CheckpointSection = CheckpointSection()
    store: StoreSection = StoreSection()
    parallel: ParallelSection = ParallelSection()
    export: ExportSection = ExportSection()
    tracking: TrackingSection = TrackingSection()

    @model_validator(mode="after")
    def _measured(self) -> TrainConfig:
        """What follows the held-out loss needs one now and then."""
        if self.follows_held_out_loss and self.train.eval_strategy == "no":
            raise ValueError("early stopping and keep_best follow the held-out loss: set eval_strategy=steps")
        return self

    @property
    def follows_held_out_loss(self) -> bool:
        return bool(self.train.early_stopping_patience or self.checkpoint.keep_best)

    def encode(self) -> bytes:
        """Stable JSON: equal configs give equal bytes."""
        return (json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()


# Names that FastChat's command lines and older libraries use, and the field each means today.
OLD_NAMES: dict[str, str] = {
    "evaluation_strategy": "train.eval_strategy",
    "model_max_length": "data.max_length",
    "model_name_or_path": "model.base",
    "lora_r": "lora.r",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_target_modules": "lora.target_modules",
    "load_in_8bit": "lora.load_8bit",
    "train_batch_size": "train.global_batch_size",
    "lr": "train.learning_rate",
    "epochs": "train.num_train_epochs",
    "load_best_model_at_end": "checkpoint.keep_best",
}
DERIVED = {
    "gradient_accumulation_steps": "it follows from global_batch_size, per_device_train_batch_size and "
    "the number of processes; set global_batch_size"
}


def parse_config(raw: Any) -> TrainConfig:
    """A validated config.

    Raises:
        ConfigError: naming each wrong key with its nearest known one, or each impossible value.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(f"a configuration is a mapping of sections, not {type(raw).__name__}")
    try:
        return TrainConfig.model_validate(raw)
    except ValidationError as error:
        problems = [_problem(detail) for detail in error.errors()]
        raise ConfigError("; ".join(problems), hint="docs/recipes.md lists every field") from None


def decode_config(data: bytes, where: str) -> TrainConfig:
    try:
        raw = json.loads(data)
    except ValueError as error:
        raise ConfigError(f"{where} is not JSON: {error}") from None
    return parse_config(raw)


def field_paths() -> dict[str, str]:
    """Every settable field, dotted, with its one-paragraph description."""
    paths: dict[str, str] = {}
    for name, info in TrainConfig.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            for leaf, leaf_info in info.annotation.model_fields.items():
                paths[f"{name}.{leaf}"] = leaf_info.description or ""
    return paths


def resolve_key(key: str) -> tuple[str, str | None]:
    """The dotted field that `key` means, and a note where the spelling is an old one.

    A bare leaf name is enough where only one section has it.

    Raises:
        ConfigError: unknown, derived or ambiguous, with what to write instead.
    """
    paths = field_paths()
    leaf_of = key.rsplit(".", 1)[-1]
    if leaf_of in DERIVED:
        raise ConfigError(f"{key} cannot be set: {DERIVED[leaf_of]}")
    if key in paths:
        return key, None
    if key in OLD_NAMES:
        return OLD_NAMES[key], f"{key} is {OLD_NAMES[key]} here"
    matches = [path for path in paths if path.split(".")[1] == key]
    if len(matches) == 1:
        return matches[0], None
    if matches:
        raise ConfigError(f"{key} is ambiguous", hint=f"write one of {', '.join(matches)}")
    raise ConfigError(f"no configuration field {key!r}", hint=_nearest(key, [*paths, *OLD_NAMES]))


def override(config: TrainConfig, settings: Iterable[tuple[str, str]]) -> tuple[TrainConfig, list[str]]:
    """The config with `key=value` pairs applied, values read as JSON where they are; notes for people."""
    tree = config.model_dump(mode="json")
    notes: list[str] = []
    for key, text in settings:
        path, note = resolve_key(key)
        if note:
            notes.append(note)
        section, leaf = path.split(".")
        tree[section][leaf] = text if _is_choice(section, leaf, text) else _value(text)
    return parse_config(tree), notes


def _is_choice(section: str, leaf: str, text: str) -> bool:
    """Whether the text is one of the field's words, as "none" of parallel.offload is: no JSON, and no null."""
    fields: dict[str, Any] = TrainConfig.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
    return text in get_args(fields[leaf].annotation)


def difference(old: TrainConfig, new: TrainConfig) -> list[str]:
    """One line per field that differs, e.g. `train.learning_rate: 2e-05 -> 0.0003`.

    Where a base came from is not one of them: its files are what counts.
    """
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    return [
        f"{key}: {json.dumps(before.get(key))} -> {json.dumps(after.get(key))}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key) and key != "model.origin"
    ]


def _problem(detail: Any) -> str:
    path = ".".join(str(part) for part in detail["loc"]) or "the configuration"
    if detail["type"] == "extra_forbidden":
        return f"no configuration field {path!r} ({_nearest(path, list(field_paths()))})"
    message = detail["msg"].removeprefix("Value error, ")
    given = detail.get("input")
    shown = "" if isinstance(given, dict | list) else f" (given: {given!r})"
    return f"{path}: {message}{shown}"


def _nearest(key: str, known: list[str]) -> str:
    by_leaf = {name.rsplit(".", 1)[-1]: name for name in known}
    leaf = nearest(key.rsplit(".", 1)[-1], by_leaf)
    close = nearest(key, known) or (by_leaf[leaf] if leaf else None)
    return f"did you mean {close}?" if close else "docs/recipes.md lists every field"


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        lowered = text.lower()
        if lowered in ("true", "false", "none"):
            return {"true": True, "false": False, "none": None}[lowered]
        return text


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {prefix.rstrip("."): tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.")
    return flat
